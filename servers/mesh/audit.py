"""Where the records of audited calls go: the log, or the audit trail that the quantum service keeps."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from behaviorguard.quantum.v1.audit_service_pb2_grpc import AuditServiceStub
from grpc import aio

from servers.mesh.context import CORRELATION_KEY
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from servers.mesh.context import CallContext

_audit = logging.getLogger("behaviorguard.audit")
_log = logging.getLogger(__name__)

AUDIT_SERVICE: Final = "behaviorguard.quantum.v1.AuditService"
"""The service that `RemoteAudit` calls: name it in the channel's contract."""

_RETRY_SECONDS: Final = 1.0
_SUCCESS: Final = "OK"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call."""

    code: str
    """Name of its gRPC status code: "OK", "NOT_FOUND", "CANCELLED"."""
    reason: str
    """Name of its `ErrorReason`; empty on success and where the caller gave up."""
    message: str
    """What the caller was told; empty on success. Holds no personal data, as error texts never do."""
    seconds: float
    """Time that it took."""

    @property
    def success(self) -> bool:
        """Whether it was done."""
        return self.code == _SUCCESS


class AuditSink(Protocol):
    """Takes the records of calls whose contract says `audited`."""

    async def record(self, call: CallContext, outcome: Outcome) -> None:
        """Keep what became of `call`, allowed or refused; durable on return. An answer of success waits for it.

        Raises:
            MeshError: AUDIT_UNAVAILABLE, the record could not be written within the sink's deadline: the call fails.
        """


class LogAudit:
    """Writes audit records to the log `behaviorguard.audit`."""

    async def record(self, call: CallContext, outcome: Outcome) -> None:
        """See `AuditSink`."""
        said = {"actor": call.actor, "organization_id": call.organization_id, "outcome": outcome.code}
        _audit.info("audited call", extra=said)


class RemoteAudit:
    """Writes audit records into the audit trail, through the quantum service.

    An audited call of this service then succeeds only while the quantum service can write.
    """

    def __init__(self, channel: aio.Channel, *, within_seconds: float = 3.0, at_once: int = 256) -> None:
        """`channel` leads to the quantum service (`open_channel` with `AUDIT_SERVICE` in its contract); at most
        `at_once` records are on their way."""
        self._append = AuditServiceStub(channel).AppendAuditRecord
        self._within_seconds = within_seconds
        self._room = at_once

    async def record(self, call: CallContext, outcome: Outcome) -> None:
        """See `AuditSink`."""
        if self._room == 0:
            raise audit_unavailable("too many audit records are waiting")
        self._room -= 1
        try:
            # Outside the call's context: its deadline may be what the record has to tell of.
            sending = asyncio.create_task(self._send(append_request(call, outcome)), context=Context())
            async with asyncio.timeout(self._within_seconds):
                await sending
        except (aio.AioRpcError, MeshError, TimeoutError) as error:
            cause = error.code().name if isinstance(error, aio.AioRpcError) else type(error).__name__
            _log.warning("an audit record could not be written", extra={"cause": cause})
            raise audit_unavailable("the audit trail cannot be written") from error
        finally:
            self._room += 1

    async def _send(self, request: pb.AppendAuditRecordRequest) -> None:
        metadata = ((CORRELATION_KEY, request.correlation_id),)
        await self._append(request, timeout=self._within_seconds, metadata=metadata)


def append_request(call: CallContext, outcome: Outcome) -> pb.AppendAuditRecordRequest:
    """The record of a call of this service."""
    notes = call.audit
    request = pb.AppendAuditRecordRequest(
        method=call.method.removeprefix("/"),
        user_id=notes.user_id or (call.end_user.user_id if call.end_user is not None else ""),
        organization_id=notes.organization_id or call.organization_id,
        correlation_id=call.correlation_id,
        result=_result(notes.result, outcome),
        reason="" if outcome.success else (outcome.reason or outcome.code),
        processing_time_ms=min(86_400_000, int(outcome.seconds * 1000)),
        source_ip=call.source_ip,
        user_agent=call.user_agent,
    )
    request.operation_timestamp.FromNanoseconds(time.time_ns())
    return request


def audit_unavailable(message: str) -> MeshError:
    """What a call ends with whose record cannot be written."""
    return MeshError(ErrorReason.ERROR_REASON_AUDIT_UNAVAILABLE, message, retry_after_s=_RETRY_SECONDS)


def _result(noted: str, outcome: Outcome) -> pb.OperationResult.ValueType:
    if not outcome.success:
        return pb.OperationResult.OPERATION_RESULT_FAILURE
    if noted == "partial":
        return pb.OperationResult.OPERATION_RESULT_PARTIAL
    return pb.OperationResult.OPERATION_RESULT_SUCCESS
