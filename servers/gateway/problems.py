"""Errors as browsers get them: `{error, errorCode, correlationId, suggestedAction, fields?}`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import orjson
from google.rpc import error_details_pb2, status_pb2

from servers.mesh.errors import ERROR_DOMAIN, STATUS_DETAILS_KEY, ErrorReason, MeshError, suggested_action

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as ProtoAny

    from servers.gateway.json_values import JsonMismatchError

_STATUS_BY_CODE: Final = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_STATUS_BY_REASON: Final = {
    ErrorReason.ERROR_REASON_TOO_LARGE: 413,
    ErrorReason.ERROR_REASON_OVERLOADED: 503,
}
# Refusals of the gateway itself by a service: a fault of the deployment that nobody at a browser can mend.
_OURS: Final = (
    ErrorReason.ERROR_REASON_UNKNOWN_CALLER,
    ErrorReason.ERROR_REASON_CALLER_NOT_ALLOWED,
    ErrorReason.ERROR_REASON_KEY_EXCHANGE_NOT_ALLOWED,
)
_REASON_BY_CODE: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: ErrorReason.ERROR_REASON_DEADLINE,
    grpc.StatusCode.UNAVAILABLE: ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED: ErrorReason.ERROR_REASON_NOT_IMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ErrorReason.ERROR_REASON_OVERLOADED,
}
_SNAKE: Final = re.compile(r"_([a-z0-9])")


@dataclass(frozen=True, slots=True)
class Problem:
    """An error on its way to a browser."""

    status: int
    """HTTP status."""
    code: grpc.StatusCode
    """Canonical status, for the close code of sockets."""
    reason: ErrorReason.ValueType
    """Machine-readable reason."""
    message: str
    """What is wrong, in words that may be shown."""
    action: str
    """What to do next."""
    fields: tuple[tuple[str, str], ...] = ()
    """(lowerCamelCase path, what is wrong) of each field that is refused."""
    retry_after_s: float | None = None
    """When trying again may help."""

    @property
    def error_code(self) -> str:
        """The reason's short lower-case name: `invalid_field`."""
        return ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_").lower()

    @property
    def retry_after(self) -> str | None:
        """Whole seconds for the Retry-After header, at least 1."""
        return None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s)))

    def body(self, correlation_id: str) -> bytes:
        """The JSON document."""
        document: dict[str, object] = {
            "error": self.message,
            "errorCode": self.error_code,
            "correlationId": correlation_id,
            "suggestedAction": self.action,
        }
        if self.fields:
            document["fields"] = [{"field": field, "description": text} for field, text in self.fields]
        return orjson.dumps(document)


def internal() -> Problem:
    """A fault of ours: says nothing of its cause."""
    reason = ErrorReason.ERROR_REASON_INTERNAL
    text = "Something went wrong on our side."
    return Problem(500, grpc.StatusCode.INTERNAL, reason, text, suggested_action(reason))


def from_mesh_error(error: MeshError, *, status: int | None = None) -> Problem:
    """A refusal of the gateway's own; `status` overrides the one that follows from the reason."""
    return Problem(
        status or _STATUS_BY_REASON.get(error.reason) or _STATUS_BY_CODE.get(error.code, 500),
        error.code,
        error.reason,
        error.message,
        error.suggested_action,
        tuple((camel_path(problem.field), problem.description) for problem in error.fields),
        error.retry_after_s,
    )


def from_mismatch(error: JsonMismatchError) -> Problem:
    """A body, parameter or frame that the contract does not know."""
    if not error.path:
        reason = ErrorReason.ERROR_REASON_MALFORMED_BODY
        return from_mesh_error(MeshError(reason, f"The body {error.description}."))
    found = ((error.path, error.description),)
    reason = ErrorReason.ERROR_REASON_INVALID_FIELD
    action = suggested_action(reason)
    message = f"{error.path} {error.description}."
    return Problem(400, grpc.StatusCode.INVALID_ARGUMENT, reason, message, action, found)


def from_rpc_error(error: grpc.aio.AioRpcError) -> Problem:
    """A service's refusal or failure, from the `google.rpc.Status` that it sent; without one its text is not shown."""
    code = error.code()
    status = _status_of(error)
    reason, fields, retry = _details(status) if status is not None else (None, (), None)
    if reason in _OURS:
        return internal()
    if status is None or reason is None:
        fallback = _REASON_BY_CODE.get(code)
        if fallback is None:
            return internal()
        retry = 1.0 if code == grpc.StatusCode.UNAVAILABLE else None
        return from_mesh_error(MeshError(fallback, _PLAIN[fallback], retry_after_s=retry))
    http = _STATUS_BY_REASON.get(reason) or _STATUS_BY_CODE.get(code, 500)
    return Problem(http, code, reason, status.message, suggested_action(reason), fields, retry)


def has_details(error: grpc.aio.AioRpcError) -> bool:
    """True when a service of the mesh has answered: the refusal is its own, not the connection's."""
    return _status_of(error) is not None


_PLAIN: Final = {
    ErrorReason.ERROR_REASON_DEADLINE: "The service did not answer in time.",
    ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE: "The service cannot be reached.",
    ErrorReason.ERROR_REASON_NOT_IMPLEMENTED: "The service does not offer this.",
    ErrorReason.ERROR_REASON_OVERLOADED: "The service has no room for more work now.",
}


def camel_path(path: str) -> str:
    """A field path in JSON's names: `event_data.hold_ms[0]` is `eventData.holdMs[0]`."""
    return _SNAKE.sub(lambda match: match.group(1).upper(), path)


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _details(
    status: status_pb2.Status,
) -> tuple[ErrorReason.ValueType | None, tuple[tuple[str, str], ...], float | None]:
    reason: ErrorReason.ValueType | None = None
    fields: tuple[tuple[str, str], ...] = ()
    retry: float | None = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            reason = _reason(detail)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            fields = tuple((camel_path(problem.field), problem.description) for problem in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info = error_details_pb2.RetryInfo()
            detail.Unpack(info)
            retry = info.retry_delay.ToMilliseconds() / 1000
    return reason, fields, retry


def _reason(detail: ProtoAny) -> ErrorReason.ValueType | None:
    info = error_details_pb2.ErrorInfo()
    detail.Unpack(info)
    known = info.domain == ERROR_DOMAIN and info.reason in ErrorReason.keys()  # noqa: SIM118 -- an enum wrapper, not a dict
    return ErrorReason.Value(info.reason) if known else None
