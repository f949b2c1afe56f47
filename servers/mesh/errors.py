"""One way to refuse or fail: a reason from the contract, turned into `google.rpc.Status` with what the caller needs
next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import grpc
from behaviorguard.api.v1 import errors_pb2
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

ErrorReason = errors_pb2.ErrorReason

ERROR_DOMAIN: Final = "behaviorguard"
"""`google.rpc.ErrorInfo.domain` of every error."""

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata that carries the serialised `google.rpc.Status`."""

# An error must fit into gRPC's 8 KiB of metadata, in base64 and with its other details.
_MAX_TEXT: Final = 300
_MAX_PROBLEMS_TEXT: Final = 3000

_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field of a request."""

    field: str
    """Path in the request: `event_data.behavioral_metrics.keystroke_dynamics[0].hold_ms`."""
    description: str
    """What is wrong, in words; never the value."""
    reason: str = ""
    """The rule that is broken, machine-readable: `STRING_UUID`."""


class MeshError(Exception):
    """A refusal or failure with a reason that the caller may know.

    The text is shown to callers: it says what is wrong and never holds personal data, secrets or anything internal.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        fields: Sequence[FieldProblem] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> grpc.StatusCode:
        """The canonical status code, which follows from the reason."""
        return status_code(self.reason)

    @property
    def suggested_action(self) -> str:
        """What the caller should do next, from the contract."""
        return suggested_action(self.reason)

    @property
    def reason_name(self) -> str:
        """Name of the reason: `ERROR_REASON_INVALID_FIELD`."""
        return ErrorReason.Name(self.reason)

    def to_status(self, correlation_id: str) -> status_pb2.Status:
        """The error as `google.rpc.Status` with its details."""
        details: list[any_pb2.Any] = [
            _pack(error_details_pb2.ErrorInfo(reason=self.reason_name, domain=ERROR_DOMAIN)),
            _pack(error_details_pb2.RequestInfo(request_id=correlation_id)),
            _pack(error_details_pb2.LocalizedMessage(locale="en", message=self.suggested_action)),
        ]
        if self.fields:
            details.append(_pack(_bad_request(self.fields)))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(int(self.retry_after_s * 1000))
            details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status_pb2.Status(code=self.code.value[0], message=self.message[:_MAX_TEXT], details=details)


class OperatorError(Exception):
    """The service cannot run as it is set up; the text tells an operator what to change and is logged as it is."""


@cache
def status_code(reason: ErrorReason.ValueType) -> grpc.StatusCode:
    """The canonical status code that the contract gives the reason."""
    return _STATUS_CODES[_options(reason).Extensions[errors_pb2.code]]


@cache
def suggested_action(reason: ErrorReason.ValueType) -> str:
    """What the caller should do next: the contract's sentence for the reason."""
    return _options(reason).Extensions[errors_pb2.suggested_action]


def _options(reason: ErrorReason.ValueType) -> descriptor_pb2.EnumValueOptions:
    value = errors_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_number[reason]
    return value.GetOptions()


def _bad_request(problems: Sequence[FieldProblem]) -> error_details_pb2.BadRequest:
    answer = error_details_pb2.BadRequest()
    room = _MAX_PROBLEMS_TEXT
    for problem in problems:
        path, description = problem.field[:_MAX_TEXT], problem.description[:_MAX_TEXT]
        room -= len(path) + len(description) + len(problem.reason)
        if room < 0:
            break
        answer.field_violations.add(field=path, description=description, reason=problem.reason)
    return answer


def _pack(
    detail: error_details_pb2.ErrorInfo
    | error_details_pb2.RequestInfo
    | error_details_pb2.LocalizedMessage
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
