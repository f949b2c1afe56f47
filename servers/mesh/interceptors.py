"""What happens around every RPC, in one order that is written here and nowhere else.

    correlation   the id that follows the call; it returns with the answer
    telemetry     how long it took and how it ended
    errors        whatever is raised becomes a `google.rpc.Status`; nothing internal leaves
    admission     who calls, may they, on whose behalf, how often           (per call, then per message)
    validation    the contract's field rules                                (per message)

Messages are read inside the steps too, so that a body that is no message is refused like everything else.

An RPC's plan is made once, when the server is built; a call then costs a dictionary look-up and these five steps. As
five gRPC interceptors
they would cost a coroutine and a new handler each, for every call.
"""

from __future__ import annotations

import logging
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from servers.mesh import identity, policy
from servers.mesh.context import GATEWAY, CallContext, enter_call
from servers.mesh.errors import STATUS_DETAILS_KEY, ErrorReason, MeshError
from servers.mesh.streams import DrainingError, StreamGate
from servers.mesh.telemetry import SERVER_FAULTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from google.protobuf.message import Message
    from opentelemetry.trace import Span

    from servers.mesh.limits import RateLimiter
    from servers.mesh.telemetry import RpcTelemetry
    from servers.mesh.validation import MessageValidator

_log = logging.getLogger(__name__)
_audit = logging.getLogger("behaviorguard.audit")

CORRELATION_KEY: Final = "x-correlation-id"
TRACEPARENT_KEY: Final = "traceparent"
# Stores keep it as a UUID; anything else is replaced.
_CORRELATION: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_RETRY_SECONDS: Final = 1.0
_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class AuditSink(Protocol):
    """Takes the records of calls whose contract says `audited`."""

    def record(self, call: CallContext, outcome: str) -> None:
        """Keep that `call` ended with status code `outcome`, allowed or refused. Must not block."""


class LogAudit:
    """Writes audit records to the log `behaviorguard.audit`."""

    def record(self, call: CallContext, outcome: str) -> None:
        """See `AuditSink`."""
        said = {"actor": call.actor, "organization_id": call.organization_id, "outcome": outcome}
        _audit.info("audited call", extra=said)


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """What the mesh knows of one RPC before it is called."""

    name: str
    """Full name, `/package.Service/Method`."""
    policy: policy.MethodPolicy | None = None
    """None: nobody may call."""
    infrastructure: bool = False
    """Health and reflection: every workload of the mesh may call, nobody is behind the call, and it is not counted."""
    self_checked: bool = False
    """The method checks each message of its request stream itself."""
    parse: Callable[[bytes], Message] | None = None
    """Reads a request; None leaves it as it came."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """What all calls of one server share."""

    telemetry: RpcTelemetry
    validator: MessageValidator
    limiter: RateLimiter
    audit: AuditSink
    gate: StreamGate
    max_concurrent: int


class Call:
    """One call on its way through the steps: entered, then `admit`, then `accept` for each request message."""

    def __init__(self, mesh: Mesh, plan: MethodPlan, servicer_context: aio.ServicerContext[Any, Any]) -> None:
        self._mesh = mesh
        self._plan = plan
        self._servicer_context = servicer_context
        self._conveyed: dict[str, str] = {}
        self._begun = time.perf_counter()
        self._span: Span | None = None
        self._context = CallContext(plan.name, "", "")

    async def __aenter__(self) -> Self:
        self._correlate()
        self._span = self._mesh.telemetry.begin(self._plan.name, self._context.traceparent)
        self._context.traceparent = self._mesh.telemetry.traceparent(self._span, self._context.traceparent)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, aio.AbortError):
            self._finish(_code_name(self._servicer_context.code()))
        elif isinstance(error, Exception):
            await self._refuse(error)
        else:  # cancelled by the caller, by its deadline or by the end of the server
            remaining = self._servicer_context.time_remaining()
            late = remaining is not None and remaining <= 0
            self._finish("DEADLINE_EXCEEDED" if late else "CANCELLED")

    def admit(self) -> None:
        """Admission of the call: who calls, and may they.

        Raises:
            MeshError: they may not, or there is no room.
        """
        call, plan = self._context, self._plan
        call.caller = identity.workload_name(self._servicer_context.auth_context())
        call.end_user = identity.end_user(call.caller, self._conveyed)
        if self._conveyed:
            seen = identity.origin(self._conveyed)
            call.source_ip, call.user_agent = seen.source_ip, seen.user_agent
        if plan.infrastructure:
            return
        policy.authorize(plan.policy, call.caller, call.end_user)
        if self._mesh.telemetry.active > self._mesh.max_concurrent:
            raise MeshError(ErrorReason.ERROR_REASON_OVERLOADED, "too many calls at once", retry_after_s=_RETRY_SECONDS)

    def parse(self, body: bytes) -> Message:
        """Read one request.

        Raises:
            MeshError: it is not the message that the RPC takes.
        """
        if self._plan.parse is None:
            raise RuntimeError(f"{self._plan.name} takes no messages")
        try:
            return self._plan.parse(body)
        except DecodeError:
            raise MeshError(
                ErrorReason.ERROR_REASON_MALFORMED_BODY, "the body is not the protobuf message that the RPC takes"
            ) from None

    async def accept(self, message: Message) -> None:
        """Admission and validation of one request message.

        Raises:
            MeshError: it names somebody else, is over the budget, or breaks a rule.
        """
        rules = self._plan.policy
        if rules is None:  # infrastructure: `admit` has refused everything else
            return
        policy.authorize_message(rules, self._context.end_user, message)
        subject = self._budget_subject(rules, message)
        wait = await self._mesh.limiter.admit(subject, self._plan.name, rules.budget)
        if wait is not None:
            raise MeshError(
                ErrorReason.ERROR_REASON_RATE_LIMITED, f"over {rules.budget} calls a minute", retry_after_s=wait
            )
        self._mesh.validator.check(message)

    def requests(self, messages: AsyncIterator[bytes], *, resumable: bool) -> Requests:
        """The request stream, each message accepted before the method sees it.

        Args:
            messages: as they arrive.
            resumable: True when the method answers each message by itself, so that a draining server may end the
                stream after any.
        """
        incoming = Requests(self, messages, self._mesh.gate, resumable=resumable, checks=not self._plan.self_checked)
        if self._plan.self_checked:
            self._context.check_message = incoming.check
        return incoming

    async def response(self, responses: AsyncIterator[Message]) -> Message:
        """The next response of a stream that only the server writes.

        Raises:
            StopAsyncIteration: there is none.
            MeshError: the server is stopping.
        """
        try:
            return await self._mesh.gate.next(responses)
        except DrainingError:
            raise stopping() from None

    def _budget_subject(self, rules: policy.MethodPolicy, message: Message) -> str:
        """Whose budget a message draws on: the person's behind the call, or the one's whom a workload names.

        What somebody who is not signed in sends says nothing: they are counted by the client that the gateway sees.
        """
        call = self._context
        if call.end_user is not None:
            return call.end_user.user_id
        if call.caller == GATEWAY:
            return self._conveyed.get(identity.CLIENT_KEY) or GATEWAY
        return rules.users.first(message) or call.caller

    def _correlate(self) -> None:
        call = self._context
        for key, value in self._servicer_context.invocation_metadata() or ():
            if not isinstance(value, str):
                continue
            if key == CORRELATION_KEY and _CORRELATION.fullmatch(value):
                call.correlation_id = value
            elif key == TRACEPARENT_KEY and _TRACEPARENT.fullmatch(value):
                call.traceparent = value
            elif key.startswith(identity.END_USER_PREFIX):
                self._conveyed[key] = value
        if not call.correlation_id:
            call.correlation_id = new_correlation_id()
            # Whoever sent an id knows it; sending it back would cost every call an eighth of its time.
            self._servicer_context.set_trailing_metadata(((CORRELATION_KEY, call.correlation_id),))
        remaining = self._servicer_context.time_remaining()
        if remaining is not None:
            call.deadline = time.monotonic() + remaining
        enter_call(call)

    async def _refuse(self, error: Exception) -> None:
        refusal = as_mesh_error(error)
        code = refusal.code.name
        said = {"code": code, "reason": refusal.reason_name}
        if refusal.reason == ErrorReason.ERROR_REASON_INTERNAL:
            _log.error("call failed", extra=said, exc_info=error)
        elif code in SERVER_FAULTS:
            _log.warning("call failed", extra=said, exc_info=error)
        else:
            _log.info("call refused", extra=said)
        self._finish(code)
        correlation_id = self._context.correlation_id
        details = refusal.to_status(correlation_id).SerializeToString()
        await self._servicer_context.abort(
            refusal.code, refusal.message, ((STATUS_DETAILS_KEY, details), (CORRELATION_KEY, correlation_id))
        )

    def _finish(self, code: str) -> None:
        seconds = time.perf_counter() - self._begun
        self._mesh.telemetry.end(self._plan.name, code, seconds, self._span)
        if self._plan.policy is not None and self._plan.policy.audited:
            self._mesh.audit.record(self._context, code)


class Requests:
    """A request stream: each message is accepted before the method sees it."""

    def __init__(
        self, call: Call, messages: AsyncIterator[bytes], gate: StreamGate, *, resumable: bool, checks: bool
    ) -> None:
        self._call = call
        self._messages = messages
        self._gate = gate
        self._resumable = resumable
        self._checks = checks
        self._unchecked: Message | None = None
        self._cut = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._unchecked is not None:
            raise RuntimeError("the method reads on without having checked the message before")
        try:
            message = self._call.parse(await self._gate.next(self._messages))
        except DrainingError:
            if not self._resumable:
                raise stopping() from None
            self._cut = True
            raise StopAsyncIteration from None
        if self._checks:
            await self._call.accept(message)
        else:
            self._unchecked = message
        return message

    async def check(self, message: Message) -> None:
        """Accept the message that was read last; see `CallContext.check`."""
        self._unchecked = None
        await self._call.accept(message)

    def end(self) -> None:
        """Call when the method has answered everything.

        Raises:
            MeshError: the stream was cut short because the server is stopping.
        """
        if self._cut:
            raise stopping()


def stopping() -> MeshError:
    """What streams end with when the server is told to stop."""
    return MeshError(
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        "the server is stopping: connect again and go on from the last answer",
        retry_after_s=_RETRY_SECONDS,
    )


def as_mesh_error(error: Exception) -> MeshError:
    """What a caller may know of an exception: nothing that it says, unless it is ours."""
    if isinstance(error, MeshError):
        return error
    if isinstance(error, NotImplementedError):
        return MeshError(ErrorReason.ERROR_REASON_NOT_IMPLEMENTED, "this server does not implement the RPC")
    if isinstance(error, TimeoutError):
        return MeshError(ErrorReason.ERROR_REASON_DEADLINE, "the call did not finish in time")
    if isinstance(error, aio.AioRpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return MeshError(ErrorReason.ERROR_REASON_DEADLINE, "another service did not answer in time")
    if isinstance(error, aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE:
        return MeshError(
            ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            "another service is away",
            retry_after_s=_RETRY_SECONDS,
        )
    return MeshError(ErrorReason.ERROR_REASON_INTERNAL, "an internal fault; the correlation id leads to it")


def _code_name(code: grpc.StatusCode | int | None) -> str:
    """gRPC keeps the code as enum or number, and as 0 or None where it was never set."""
    return code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES[code or 0]


def new_correlation_id() -> str:
    """A random UUID. It need not be secret, and the system's randomness would cost every call a system call."""
    drawn = f"{random.getrandbits(128):032x}"
    return f"{drawn[:8]}-{drawn[8:12]}-4{drawn[13:16]}-8{drawn[17:20]}-{drawn[20:]}"
