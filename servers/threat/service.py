"""`behaviorguard.threat.v1.ThreatService`: messages in, domain calls, messages out."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.threat.v1 import threat_service_pb2 as pb
from behaviorguard.threat.v1.threat_service_pb2_grpc import ThreatServiceServicer

from servers.mesh.context import CallContext, call_context
from servers.mesh.errors import MeshError
from servers.threat import messages
from servers.threat.alerts import Level
from servers.threat.person import PersonState
from servers.threat.rows import EventFilter, StreamFilter, microseconds
from servers.threat.tokens import InvalidTokenError, PageStart, page_start, page_token, resume_position, resume_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc import aio

    from servers.threat.intake import Intake, Receipt, Ticket
    from servers.threat.members import Members
    from servers.threat.mirror import RedisMirror
    from servers.threat.people import People
    from servers.threat.rows import StoredEvent
    from servers.threat.settings import ThreatSettings
    from servers.threat.store import Store
    from servers.threat.watch import AlertHub

    Context = aio.ServicerContext[Any, Any]

RESUME_KEY: Final = "x-bg-resume-token"
"""Initial metadata of `WatchAlerts`: where the stream begins, so that even a reader without an alert yet can resume."""

_DEFAULT_PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class ThreatParts:
    """What the service is made of."""

    settings: ThreatSettings
    intake: Intake
    members: Members
    people: People
    hub: AlertHub
    mirror: RedisMirror
    store: Store


class ThreatService(ThreatServiceServicer):
    """One short method per RPC; who may call what stands in the contract."""

    def __init__(self, parts: ThreatParts) -> None:
        self._settings = parts.settings
        self._intake = parts.intake
        self._members = parts.members
        self._people = parts.people
        self._hub = parts.hub
        self._mirror = parts.mirror
        self._store = parts.store

    async def AnalyzeRealtime(  # noqa: N802 - gRPC's names are the contract's
        self, request: pb.AnalyzeRealtimeRequest, context: Context
    ) -> pb.AnalyzeRealtimeResponse:
        """Accepts one event; answers when it is durable."""
        del context
        ticket = await self._submit(request, call_context())
        return _accepted(await ticket.receipt())

    async def StreamEvents(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamEventsRequest], context: Context
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        """Accepts events in order; up to a window of them wait for the broker at the same time."""
        del context
        answers: asyncio.Queue[tuple[str, Ticket | MeshError] | None] = asyncio.Queue(self._settings.stream_window)
        reading = asyncio.create_task(self._read_events(request_iterator, answers))
        try:
            while (answer := await answers.get()) is not None:
                yield await _stream_response(*answer)
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def WatchAlerts(  # noqa: N802
        self, request: pb.WatchAlertsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAlertsResponse]:
        """Follows alerts: first what was missed, then live."""
        call = call_context()
        wanted = StreamFilter(
            call.organization_id,
            _visible_users(call, frozenset(user_id.lower() for user_id in request.user_ids)),
            messages.level_of(request.minimum_level, Level.SUSPICIOUS),
            request.session_id.lower(),
        )
        position = _resume(request.resume_token, call.organization_id) if request.resume_token else None
        begin = await self._hub.start(position)
        await context.send_initial_metadata(((RESUME_KEY, resume_token(call.organization_id, begin)),))
        # Closed at once when the caller leaves: its place among the readers is another's.
        async with aclosing(self._hub.follow(wanted, begin)) as results:
            async for result in results:
                yield messages.watch_response(result)

    async def GetRiskProfile(  # noqa: N802
        self, request: pb.GetRiskProfileRequest, context: Context
    ) -> pb.GetRiskProfileResponse:
        """A person's risk now."""
        del context
        user_id = request.user_id.lower()
        async with _database():
            await self._members.admit(user_id, call_context().organization_id)
            person = await self._people.load(user_id)
        if person is None:
            self._members.forget(user_id)
            raise MeshError(ErrorReason.ERROR_REASON_UNKNOWN_USER, "the user is not known to this organisation")
        return pb.GetRiskProfileResponse(profile=messages.risk_profile(person))

    async def ListThreatEvents(  # noqa: N802
        self, request: pb.ListThreatEventsRequest, context: Context
    ) -> pb.ListThreatEventsResponse:
        """A page of results, the last stored first."""
        del context
        wanted = _event_filter(request, call_context())
        size = request.page_size or _DEFAULT_PAGE
        issued_for = (
            wanted.organization_id,
            wanted.user_id or "",
            wanted.minimum_level.label,
            str(wanted.start),
            str(wanted.end),
        )
        start = _page(request.page_token, issued_for) if request.page_token else None
        async with _database():
            events = await self._store.list_events(wanted, start, size + 1)
        page, more = events[:size], len(events) > size
        last = page[-1] if page else None
        return pb.ListThreatEventsResponse(
            events=[messages.threat_event(event) for event in page],
            next_page_token=page_token(_place(last), *issued_for) if more and last else "",
        )

    async def GetThreatEvent(  # noqa: N802
        self, request: pb.GetThreatEventRequest, context: Context
    ) -> pb.GetThreatEventResponse:
        """One result."""
        del context
        event = await self._event(call_context().organization_id, request.event_id.lower())
        return pb.GetThreatEventResponse(event=messages.threat_event(event))

    async def RecordVerdict(  # noqa: N802
        self, request: pb.RecordVerdictRequest, context: Context
    ) -> pb.RecordVerdictResponse:
        """Records a verdict; an event that was the person after all teaches the baseline, once."""
        del context
        call = call_context()
        event_id = request.event_id.lower()
        verdict = messages.verdict_of(request.verdict, call.actor, datetime.now(UTC))
        async with _database():
            before = await self._store.set_verdict(call.organization_id, event_id, verdict)
        if before is None:
            raise _no_event()
        event = await self._event(call.organization_id, event_id)
        if verdict.kind == "genuine" and before != "genuine" and event.stored.alert.level is not Level.NORMAL:
            await self._learn_verified(event)
        return pb.RecordVerdictResponse(event=messages.threat_event(event))

    async def StartTrial(  # noqa: N802
        self, request: pb.StartTrialRequest, context: Context
    ) -> pb.StartTrialResponse:
        """Creates a throwaway person with a session."""
        del request, context  # the label is for the caller's own lists; nothing here shows it
        settings = self._settings
        if not settings.trials_enabled:
            raise MeshError(ErrorReason.ERROR_REASON_WRONG_STATE, "this deployment does not allow trials")
        user_id, session_id = str(uuid.uuid4()), str(uuid.uuid4())
        expires_at = datetime.now(UTC) + timedelta(minutes=settings.trial_minutes)
        async with _database():
            created = await self._store.create_trial(
                user_id, settings.trial_organization_id, expires_at, settings.trials_at_once
            )
        if not created:
            raise MeshError(ErrorReason.ERROR_REASON_OVERLOADED, "too many trials at once", retry_after_s=60.0)
        await self._mirror.start_session(session_id, user_id, expires_at)
        return pb.StartTrialResponse(
            user_id=user_id, session_id=session_id, expires_at=messages.timestamp_of(expires_at)
        )

    async def EraseBehavior(  # noqa: N802
        self, request: pb.EraseBehaviorRequest, context: Context
    ) -> pb.EraseBehaviorResponse:
        """Erases what is stored, learnt and cached of a person."""
        del context
        user_id = request.user_id.lower()
        async with _database():
            await self._members.admit(user_id, call_context().organization_id)
            # Results of events that are on their way now were accepted before this moment and will be dropped.
            empty = PersonState(erased_at_s=datetime.now(UTC).timestamp())
            erased = await self._store.erase(user_id, empty)
        self._people.forget(user_id)
        self._people.forget_evidence(user_id)
        await self._mirror.erase(user_id)
        return pb.EraseBehaviorResponse(events_erased=erased)

    async def _submit(self, request: pb.AnalyzeRealtimeRequest, call: CallContext) -> Ticket:
        seen = messages.observation_of(request, call.correlation_id)
        return await self._intake.submit(seen, call.organization_id, messages.content_digest(request))

    async def _read_events(
        self,
        requests: AsyncIterator[pb.StreamEventsRequest],
        answers: asyncio.Queue[tuple[str, Ticket | MeshError] | None],
    ) -> None:
        """Take each event as it comes; `answers` is full when the window is, and then nothing more is read."""
        call = call_context()
        try:
            async for request in requests:
                answer: Ticket | MeshError
                try:
                    await call.check(request)
                    answer = await self._submit(request.event, call)
                except MeshError as refusal:
                    answer = refusal
                await answers.put((request.event.event_data.event_id, answer))
        finally:
            # A full queue empties as answers are sent; with the answering side gone this task is cancelled.
            await answers.put(None)

    async def _event(self, organization_id: str, event_id: str) -> StoredEvent:
        async with _database():
            event = await self._store.event(organization_id, event_id)
        if event is None:
            raise _no_event()
        return event

    async def _learn_verified(self, event: StoredEvent) -> None:
        user_id = event.stored.alert.user_id
        async with _database():
            person = await self._people.load(user_id)
            if person is not None:
                self._people.verify(person, event.stored)
                await self._people.save(lambda other: other.user_id == user_id)


@asynccontextmanager
async def _database() -> AsyncIterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise MeshError(
            ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the database cannot be reached", retry_after_s=1.0
        ) from error


def _accepted(receipt: Receipt) -> pb.AnalyzeRealtimeResponse:
    queued, known = pb.PROCESSING_STATUS_QUEUED_FOR_MORPHEUS, pb.PROCESSING_STATUS_ALREADY_QUEUED
    return pb.AnalyzeRealtimeResponse(
        event_id=receipt.event_id,
        preliminary_risk=receipt.preliminary_risk,
        processing_status=known if receipt.repeated else queued,
    )


async def _stream_response(event_id: str, answer: Ticket | MeshError) -> pb.StreamEventsResponse:
    if not isinstance(answer, MeshError):
        try:
            return pb.StreamEventsResponse(accepted=_accepted(await answer.receipt()))
        except MeshError as refusal:
            answer = refusal
    return pb.StreamEventsResponse(
        refused=pb.EventRefusal(
            event_id=_readable(event_id),
            code=answer.code.value[0],
            reason=answer.reason_name,
            message=answer.message,
            suggested_action=answer.suggested_action,
        )
    )


def _readable(event_id: str) -> str:
    try:
        return str(uuid.UUID(event_id))
    except ValueError:
        return ""


def _visible_users(call: CallContext, asked: frozenset[str]) -> frozenset[str]:
    """Whom a reader follows: whom it asks for, as far as the call may see them; empty means the whole organisation."""
    only = call.only_user_id
    if only is None:
        return asked
    if not only or asked - {only}:
        raise MeshError(ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED, "only your own alerts can be followed")
    return frozenset({only})


def _event_filter(request: pb.ListThreatEventsRequest, call: CallContext) -> EventFilter:
    return EventFilter(
        call.organization_id,
        request.user_id.lower() or call.only_user_id,
        messages.level_of(request.minimum_level, Level.NORMAL),
        messages.moment_of(request, "start_time"),
        messages.moment_of(request, "end_time"),
    )


def _place(event: StoredEvent) -> PageStart:
    return PageStart(microseconds(event.stored_at), event.stored.alert.event_id)


def _resume(token: str, organization_id: str) -> int:
    try:
        return resume_position(token, organization_id)
    except InvalidTokenError as error:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_TOKEN, str(error)) from None


def _page(token: str, issued_for: tuple[str, ...]) -> PageStart:
    try:
        return page_start(token, *issued_for)
    except InvalidTokenError as error:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_TOKEN, str(error)) from None


def _no_event() -> MeshError:
    return MeshError(
        ErrorReason.ERROR_REASON_NOT_FOUND, "no such event is stored (an event is stored once it is scored)"
    )
