"""Refusals and failures of services as one exception, read from the `google.rpc.Status` that they send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from behaviorguard.api.v1 import errors_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

_STATUS_KEY = "grpc-status-details-bin"
_PREFIX = "ERROR_REASON_"
_REASONS = errors_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"]
# For failures that no service of ours has put into words: the connection itself, or the deadline.
_REASON_BY_CODE = {
    grpc.StatusCode.UNAVAILABLE: "dependency_unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
    grpc.StatusCode.UNIMPLEMENTED: "not_implemented",
}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field that broke its rule."""

    field: str
    """Path in the request: `event_data.session_id`."""
    description: str
    """What is wrong with it."""
    reason: str
    """The rule's name, machine-readable; may be empty."""


class ServiceError(Exception):
    """A service refused or failed, or could not be reached."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        suggested_action: str = "",
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
        correlation_id: str = "",
    ) -> None:
        super().__init__(f"{message} [{reason}]" if reason else message)
        self.code = code
        """Canonical gRPC status."""
        self.reason = reason
        """Short name of the `behaviorguard.api.v1.ErrorReason`: "rate_limited"; empty when there is none."""
        self.message = message
        """What is wrong, in words."""
        self.suggested_action = suggested_action
        """What to do next; empty when the service did not say."""
        self.field_violations = field_violations
        """The fields that broke their rules."""
        self.retry_after_s = retry_after_s
        """Seconds after which trying again may help; None when it will not by itself."""
        self.correlation_id = correlation_id
        """Names the call in the services' logs."""


def service_error(error: grpc.RpcError, correlation_id: str = "") -> ServiceError:
    """What gRPC raised, as a `ServiceError`; for calls made with stubs on a channel of one's own."""
    call: Any = error
    code = call.code()
    message = call.details() or "the call failed without a word"
    status = _status(call.trailing_metadata() or ())
    details = _Details() if status is None else _read(status)
    reason = details.reason or _REASON_BY_CODE.get(code, "")
    return ServiceError(
        code,
        reason,
        message if status is None else status.message or message,
        suggested_action=details.action or _contract_action(reason),
        field_violations=details.fields,
        retry_after_s=details.retry_after_s,
        correlation_id=correlation_id,
    )


@dataclass(slots=True)
class _Details:
    reason: str = ""
    action: str = ""
    fields: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None


def _status(metadata: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status | None:
    for key, value in metadata:
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _read(status: status_pb2.Status) -> _Details:
    found = _Details()
    for detail in status.details:
        info, text = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            found.reason = info.reason.removeprefix(_PREFIX).lower()
        elif detail.Unpack(text):
            found.action = text.message
        elif detail.Unpack(bad):
            found.fields = tuple(FieldViolation(f.field, f.description, f.reason) for f in bad.field_violations)
        elif detail.Unpack(retry):
            found.retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return found


def _contract_action(reason: str) -> str:
    """The contract's own advice for a reason, for failures that came without any."""
    value = _REASONS.values_by_name.get(_PREFIX + reason.upper())
    return "" if value is None else str(value.GetOptions().Extensions[errors_pb2.suggested_action])
