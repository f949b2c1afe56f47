"""Audit records of changes to keys, in the same transaction: in the name of the call, or of the service itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from servers.mesh.context import call_context
from servers.mesh.interceptors import new_correlation_id
from servers.quantum.audit_calls import call_entry
from servers.quantum.audit_trail import AuditEntry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from psycopg import AsyncConnection

    from servers.quantum.audit_trail import AuditTrail

T = TypeVar("T")

SERVICE: Final = "quantum"
"""Who is responsible for what nobody asked for: expiry, scheduled rotation, the platform's own keys."""


@dataclass(frozen=True, slots=True)
class Action:
    """What is done to a key."""

    operation: str
    """Label of the contract's `QuantumOperation`: "keygen"."""
    organization_id: str
    key_id: str
    data: Mapping[str, Any] = field(default_factory=dict)
    """Particulars without secrets."""
    hsm_operation_id: str = ""
    begun: float = field(default_factory=time.perf_counter)
    """On the clock of `time.perf_counter`; counts where no call does."""


class Recorder(Protocol):
    """Commits a change together with its record."""

    async def commit(self, action: Action, change: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Do `change` and write the record of `action`: both are durable on return, or neither is.

        Raises:
            MeshError: AUDIT_UNAVAILABLE, or what `change` raised.
        """


class CallRecorder:
    """Records what a call asked for, as the one record of that call: the mesh then writes none."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    async def commit(self, action: Action, change: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        """See `Recorder`."""
        call = call_context()
        notes = call.audit
        notes.operation, notes.organization_id, notes.key_id = action.operation, action.organization_id, action.key_id
        notes.data, notes.hsm_operation_id = dict(action.data), action.hsm_operation_id
        return await self._trail.commit(call_entry(call), change)


class OwnRecorder:
    """Records what nobody asked for: expiry, scheduled rotation, the platform's own keys."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    async def commit(self, action: Action, change: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        """See `Recorder`."""
        entry = AuditEntry(
            operation=action.operation,
            organization_id=action.organization_id,
            correlation_id=new_correlation_id(),
            service_id=SERVICE,
            key_id=action.key_id,
            data=dict(action.data),
            processing_time_ms=int((time.perf_counter() - action.begun) * 1000),
            hsm_operation_id=action.hsm_operation_id,
        )
        return await self._trail.commit(entry, change)
