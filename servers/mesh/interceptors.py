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
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from servers.mesh import identity, policy
from servers.mesh.audit import Outcome, audit_unavailable
from servers.mesh.context import CORRELATION_KEY, GATEWAY, CallContext, enter_call
from servers.mesh.errors import STATUS_DETAILS_KEY, ErrorReason, MeshError
from servers.mesh.streams import DrainingError, StreamGate
from servers.mesh.telemetry import SERVER_FAULTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from google.protobuf.message import Message
    from opentelemetry.trace import Span

    from servers.mesh.audit import AuditSink
    from servers.mesh.limits import RateLimiter
    from servers.mesh.telemetry import RpcTelemetry
    from servers.mesh.validation import MessageValidator

_log = logging.getLogger(__name__)

TRACEPARENT_KEY: Final = "traceparent"
# Stores keep it as a UUID; anything else is replaced.
_CORRELATION: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_RETRY_SECONDS: Final = 1.0
_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


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
    max_message_bytes: int = 4 * 1024 * 1024
    """Largest request message, bytes. gRPC itself takes larger ones up to a multiple of this, so that the refusal has
    its reason and its audit record."""


class Call:
    """One call on its way through the steps: entered, then `admit`, then `accept` for each request message."""

    def __init__(self, mesh: Mesh, plan: MethodPlan, servicer_context: aio.ServicerContext[Any, Any]) -> None:
        self._mesh = mesh
        self._plan = plan
        self._servicer_context = servicer_context
        self._conveyed: dict[str, str] = {}
        self._begun = time.perf_counter()
        self._span: Span | None = None
        self._context = CallContext(plan.name, "", "", begun=self._begun)

    async def __aenter__(self) -> Self:
        self._correlate()
        self._span = self._mesh.telemetry.begin(self._plan.name, self._context.traceparent)
        self._context.traceparent = self._mesh.telemetry.traceparent(self._span, self._context.traceparent)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._succeed()
        elif isinstance(error, aio.AbortError):  # the method has answered already
            await self._end_unsaid(_code_name(self._servicer_context.code()))
        elif isinstance(error, Exception):
            await self._refuse(as_mesh_error(error), error)
        else:  # cancelled by the caller, by its deadline or by the end of the server
            remaining = self._servicer_context.time_remaining()
            late = remaining is not None and remaining <= 0
            await self._end_unsaid("DEADLINE_EXCEEDED" if late else "CANCELLED")

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
            MeshError: it is too large, or not the message that the RPC takes.
        """
        limit = self._mesh.max_message_bytes
        if len(body) > limit:
            raise MeshError(ErrorReason.ERROR_REASON_TOO_LARGE, f"the message is over {limit} bytes")
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

    async def _succeed(self) -> None:
        """An audited success leaves only when its record is durable."""
        code = _code_name(self._servicer_context.code())
        if self._audited:
            try:
                await self._record(code)
            except Exception as error:
                unwritten = error if isinstance(error, MeshError) else audit_unavailable("the record cannot be written")
                await self._answer(unwritten, error)
                return
        self._finish(code)

    async def _refuse(self, refusal: MeshError, error: Exception) -> None:
        if self._audited:
            await self._record_or_log(refusal.code.name, refusal.reason_name, refusal.message)
        await self._answer(refusal, error)

    async def _end_unsaid(self, code: str) -> None:
        """End a call to whose caller nothing can be said any more."""
        self._finish(code)
        if self._audited:
            await self._record_or_log(code)

    async def _answer(self, refusal: MeshError, error: Exception) -> None:
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

    @property
    def _audited(self) -> bool:
        return self._plan.policy is not None and self._plan.policy.audited

    async def _record(self, code: str, reason: str = "", message: str = "") -> None:
        if self._context.audit.recorded:
            return
        seconds = time.perf_counter() - self._begun
        await self._mesh.audit.record(self._context, Outcome(code, reason, message, seconds))

    async def _record_or_log(self, code: str, reason: str = "", message: str = "") -> None:
        """The record of a call that was not done anyway: its own reason is the answer even when this fails."""
        try:
            await self._record(code, reason, message)
        except Exception as error:
            said = {"code": code, "reason": reason, "cause": type(error).__name__}
            _log.error("the audit record of a refused call could not be written", extra=said)

    def _finish(self, code: str) -> None:
        seconds = time.perf_counter() - self._begun
        self._mesh.telemetry.end(self._plan.name, code, seconds, self._span)


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
