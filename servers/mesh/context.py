"""Who calls, on whose behalf, under which correlation id: what a method may ask about the call that it serves."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from behaviorguard.api.v1 import policy_pb2

from servers.mesh.settings import DEFAULT_ORGANIZATION_ID

if TYPE_CHECKING:
    from google.protobuf.message import Message

Scope = policy_pb2.Scope
CORRELATION_KEY: Final = "x-correlation-id"
"""Metadata that carries the id which follows a request through every service."""
GATEWAY = "gateway"
"""The workload that every end user comes in by: it calls for somebody, or for somebody who is not signed in."""
SPEAKERS = frozenset({GATEWAY, "identity", "mobile"})
"""Workloads that may speak for end users; whom any other one names is refused."""


@dataclass(frozen=True, slots=True)
class EndUser:
    """The person behind a call, as the gateway, identity or mobile established them."""

    user_id: str
    """UUID of the person."""
    organization_id: str
    """UUID of the person's organisation."""
    scope: Scope.ValueType
    """SCOPE_SELF, SCOPE_ANALYST or SCOPE_ADMIN."""


class MessageCheck(Protocol):
    """Admits and validates one message of a stream."""

    async def __call__(self, message: Message) -> None:
        """Raise `MeshError` when the message is refused."""


@dataclass(slots=True)
class AuditNotes:
    """Particulars for the one audit record of a call, added by the method that serves it."""

    operation: str = ""
    """Label of the operation ("keygen"); empty: what the RPC's name says."""
    key_id: str = ""
    """UUID of the key; empty when none was concerned."""
    organization_id: str = ""
    """UUID of the organisation; empty: the call's."""
    user_id: str = ""
    """UUID of the person concerned; empty: the person behind the call."""
    data: dict[str, object] = field(default_factory=dict)
    """Particulars as plain JSON values: algorithm, sizes, versions; nothing personal, nothing secret."""
    hsm_operation_id: str = ""
    """The HSM's own number for the operation."""
    result: str = ""
    """"partial" when only some items of a batch were done; empty: what became of the call."""
    recorded: bool = False
    """Set by whoever wrote the record together with the change itself: the mesh then writes none."""


@dataclass(slots=True)
class CallContext:
    """One call in progress."""

    method: str
    """Full name, `/behaviorguard.threat.v1.ThreatService/AnalyzeRealtime`."""
    caller: str
    """The calling workload's name, proven by its certificate."""
    correlation_id: str
    """Follows the request through every service: a UUID."""
    end_user: EndUser | None = None
    """The person behind the call; None when a workload acts for nobody, or for somebody who is not signed in."""
    deadline: float | None = None
    """When the caller gives up, on the clock of `time.monotonic`; None when it waits for ever."""
    traceparent: str = ""
    """W3C trace context to hand on; empty when the call belongs to no trace."""
    source_ip: str = ""
    """Address that the edge saw, for audit records; empty when unknown. Personal data."""
    user_agent: str = ""
    """Name of the browser or app, at most 512 characters, for audit records; empty when unknown. Personal data."""
    check_message: MessageCheck | None = None
    """Set by the mesh in RPCs that check their stream themselves."""
    begun: float = 0.0
    """When the call arrived, on the clock of `time.perf_counter`."""
    _audit: AuditNotes | None = None

    @property
    def audit(self) -> AuditNotes:
        """Notes for the call's audit record; nothing becomes of them where the contract does not say `audited`."""
        if self._audit is None:
            self._audit = AuditNotes()
        return self._audit

    @property
    def organization_id(self) -> str:
        """UUID of the organisation whose data the call may touch."""
        return self.end_user.organization_id if self.end_user is not None else DEFAULT_ORGANIZATION_ID

    @property
    def only_user_id(self) -> str | None:
        """The one person whose data the call may see, or None when it may see the whole organisation's.

        Methods that list or watch must apply this where the request names nobody.
        """
        if self.end_user is None:
            return None if self.caller != GATEWAY else ""
        return self.end_user.user_id if self.end_user.scope < Scope.SCOPE_ANALYST else None

    @property
    def actor(self) -> str:
        """Who is responsible for the call, for audit records: the person's id, else the workload's name."""
        return self.end_user.user_id if self.end_user is not None else self.caller

    def remaining(self) -> float | None:
        """Seconds until the caller gives up (at least 0), or None when it waits for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    async def check(self, message: Message) -> None:
        """Admit and validate one message of a stream that is bound with `ServiceBinding.self_checked`.

        Raises:
            MeshError: the message names somebody else, is over the budget, or breaks a field's rule.
            RuntimeError: the RPC was not bound as checking its own stream: its messages are checked already.
        """
        if self.check_message is None:
            raise RuntimeError("name this RPC in ServiceBinding.self_checked before checking its messages yourself")
        await self.check_message(message)


_current: ContextVar[CallContext] = ContextVar("behaviorguard_call")


def call_context() -> CallContext:
    """The call that is being served.

    Raises:
        LookupError: no call is being served here (background work: pass what it needs explicitly).
    """
    return _current.get()


def current_call() -> CallContext | None:
    """The call that is being served, or None outside one."""
    return _current.get(None)


def enter_call(call: CallContext) -> None:
    """Make `call` the current one for the rest of the running task."""
    _current.set(call)
