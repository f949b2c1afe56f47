"""The quantum service's own calls as audit entries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from behaviorguard.api.v1.errors_pb2 import ErrorReason

from servers.quantum.audit_trail import AuditEntry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.mesh.audit import Outcome
    from servers.mesh.context import CallContext
    from servers.quantum.audit_trail import AuditTrail

OPERATIONS: Final[Mapping[str, str]] = {
    "KeyService/GenerateKey": "keygen",
    "KeyService/GetKey": "manage",
    "KeyService/ListKeys": "manage",
    "KeyService/RotateKey": "rotate",
    "KeyService/UpdateKey": "manage",
    "KeyService/RevokeKey": "revoke",
    "KeyService/RewrapEnvelopes": "rewrap",
    "TemplateService/EncryptTemplate": "encrypt",
    "TemplateService/EncryptBiometric": "encrypt",
    "TemplateService/BatchEncryptTemplates": "encrypt",
    "TemplateService/DecryptTemplate": "decrypt",
    "TemplateService/BatchDecryptTemplates": "decrypt",
    "TokenService/GenerateToken": "sign",
    "TokenService/VerifyToken": "verify",
    "TokenService/RevokeTokens": "revoke",
    "TokenService/SignMessage": "sign",
    "TokenService/VerifySignature": "verify",
}
"""What an RPC does, where its method says nothing else; every other audited RPC is a "call"."""

_UNAVAILABLE: Final = ErrorReason.Name(ErrorReason.ERROR_REASON_AUDIT_UNAVAILABLE)
_PACKAGE: Final = "behaviorguard.quantum.v1."


def call_entry(call: CallContext, outcome: Outcome | None = None) -> AuditEntry:
    """The entry of a call, with its notes.

    Args:
        call: the call that is being served. Methods that write their record with their change use this with
            `AuditTrail.commit`; the mesh then writes none.
        outcome: what became of it; None: success, so far.
    """
    notes = call.audit
    rpc = call.method.removeprefix("/")
    if outcome is None or outcome.success:
        result, reason, message = notes.result or "success", "", ""
    else:
        result, reason, message = "failure", outcome.reason or outcome.code, outcome.message
    seconds = outcome.seconds if outcome is not None else time.perf_counter() - call.begun
    return AuditEntry(
        operation=notes.operation or OPERATIONS.get(rpc.removeprefix(_PACKAGE), "call"),
        organization_id=notes.organization_id or call.organization_id,
        correlation_id=call.correlation_id,
        service_id=call.caller,
        result=result,
        key_id=notes.key_id,
        user_id=notes.user_id or (call.end_user.user_id if call.end_user is not None else ""),
        source_ip=call.source_ip,
        user_agent=call.user_agent,
        data={"rpc": rpc, **notes.data},
        processing_time_ms=int(seconds * 1000),
        reason=reason,
        message=message,
        hsm_operation_id=notes.hsm_operation_id,
        notes=notes,
    )


class TrailAudit:
    """The quantum service's `AuditSink`: its calls go into its own trail."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    async def record(self, call: CallContext, outcome: Outcome) -> None:
        """See `AuditSink`."""
        entry = call_entry(call, outcome)
        if outcome.reason == _UNAVAILABLE:  # waiting again for what did not come would help nobody
            self._trail.write_later(entry, unless_recorded=True)
        else:
            await self._trail.commit(entry, unless_recorded=True)
