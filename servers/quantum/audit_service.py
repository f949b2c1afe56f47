"""`behaviorguard.quantum.v1.AuditService`: messages in, domain calls, messages out."""
# ruff: noqa: N802 -- gRPC's names are the contract's

from __future__ import annotations

import logging
from contextlib import aclosing, contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from behaviorguard.quantum.v1.audit_service_pb2_grpc import AuditServiceServicer
from psycopg_pool import PoolTimeout

from servers.mesh.context import call_context
from servers.mesh.errors import MeshError
from servers.quantum import audit_messages as messages
from servers.quantum.audit_tokens import InvalidTokenError, place_of, place_token
from servers.quantum.checkpoints import MOST_APART

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from grpc import aio

    from servers.quantum.audit_chain import AuditRecord
    from servers.quantum.audit_reader import AuditReader
    from servers.quantum.audit_trail import AuditTrail
    from servers.quantum.audit_watch import Streams
    from servers.quantum.checkpoints import Checkpointer
    from servers.quantum.security_events import SecurityEvent, SecurityEvents

    Context = aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)

RESUME_KEY: Final = "x-bg-resume-token"
"""Initial metadata of the streams: where they begin, so that a reader who has had nothing yet can resume as well."""

_DEFAULT_PAGE: Final = 50
_EXPORT_PAGE: Final = 100
_END: Final = 2**63 - 1
_RECORDS, _EVENTS = "audit records", "security events"


@dataclass(frozen=True, slots=True)
class AuditParts:
    """What the service is made of."""

    trail: AuditTrail
    reader: AuditReader
    events: SecurityEvents
    checkpoints: Checkpointer
    record_streams: Streams
    event_streams: Streams


class AuditService(AuditServiceServicer):
    """One short method per RPC; who may call what stands in the contract."""

    def __init__(self, parts: AuditParts) -> None:
        self._trail = parts.trail
        self._reader = parts.reader
        self._events = parts.events
        self._checkpoints = parts.checkpoints
        self._record_streams = parts.record_streams
        self._event_streams = parts.event_streams

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: Context
    ) -> pb.ListAuditRecordsResponse:
        """A page of records, newest first."""
        del context
        wanted = messages.filter_of(request, _organization(request))
        size = request.page_size or _DEFAULT_PAGE
        issued_for = ("list " + _RECORDS, *map(str, astuple(wanted)))
        before = _place(request.page_token, *issued_for) if request.page_token else _END
        with _database():
            found = await self._reader.newest(wanted, before, size + 1)
        more = place_token(found[size - 1].sequence, *issued_for) if len(found) > size else ""
        return pb.ListAuditRecordsResponse(
            records=[messages.record_message(record) for record in found[:size]], next_page_token=more
        )

    async def WatchAuditRecords(
        self, request: pb.WatchAuditRecordsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAuditRecordsResponse]:
        """Follows the organisation's records: first what was missed, then live."""
        organization_id = call_context().organization_id
        issued_for = ("follow " + _RECORDS, organization_id)
        begin = await _begin(self._record_streams, request.resume_token, *issued_for)
        await context.send_initial_metadata(((RESUME_KEY, place_token(begin, *issued_for)),))
        follow = self._record_streams.follow(organization_id, begin, self._reader.after, lambda record: record.sequence)
        async with aclosing(follow) as records:
            async for record in records:
                yield pb.WatchAuditRecordsResponse(
                    record=messages.record_message(record), resume_token=place_token(record.sequence, *issued_for)
                )

    async def GetAuditProof(self, request: pb.GetAuditProofRequest, context: Context) -> pb.GetAuditProofResponse:
        """A record with what ties it to the next checkpoint."""
        del context
        organization_id = call_context().organization_id
        with _database():
            record = await self._reader.record(organization_id, request.audit_id.lower())
            if record is None:
                raise MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "the organisation has no such audit record")
            upto = record.sequence + MOST_APART
            found = await self._reader.checkpoints_from(organization_id, record.sequence, upto, 1)
            if not found:
                raise MeshError(
                    ErrorReason.ERROR_REASON_WRONG_STATE, "no checkpoint covers the record yet", retry_after_s=60.0
                )
            following = await self._between(organization_id, record.sequence, found[0].sequence)
        return pb.GetAuditProofResponse(
            record=messages.record_message(record),
            following=[messages.record_message(each) for each in following],
            checkpoint=messages.checkpoint_message(found[0]),
        )

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        """A page of checkpoints, newest first."""
        del context
        organization_id = _organization(request)
        size = request.page_size or _DEFAULT_PAGE
        issued_for = ("list checkpoints", organization_id)
        before = _place(request.page_token, *issued_for) if request.page_token else _END
        with _database():
            found = await self._reader.checkpoints_before(organization_id, before, size + 1)
        more = place_token(found[size - 1].sequence, *issued_for) if len(found) > size else ""
        return pb.ListCheckpointsResponse(
            checkpoints=[messages.checkpoint_message(each) for each in found[:size]], next_page_token=more
        )

    async def ExportAudit(
        self, request: pb.ExportAuditRequest, context: Context
    ) -> AsyncIterator[pb.ExportAuditResponse]:
        """The chain from a place to where it ends now, under a checkpoint of now where the HSM can sign."""
        del context
        organization_id = call_context().audit.organization_id = _organization(request)
        place = max(1, request.first_sequence) - 1
        with _database():
            head = await self._checkpoint_now(organization_id)
            head = head or (await self._reader.heads([organization_id])).get(organization_id, 0)
        while place < head:
            with _database():
                page = await self._reader.after(organization_id, place, head, _EXPORT_PAGE)
                if not page:
                    return
                last = page[-1].sequence
                checkpoints = await self._reader.checkpoints_from(organization_id, place + 1, last, _EXPORT_PAGE)
            signed = {checkpoint.sequence: checkpoint for checkpoint in checkpoints}
            for record in page:
                yield pb.ExportAuditResponse(record=messages.record_message(record))
                if record.sequence in signed:
                    yield pb.ExportAuditResponse(checkpoint=messages.checkpoint_message(signed[record.sequence]))
            place = last

    async def AppendAuditRecord(
        self, request: pb.AppendAuditRecordRequest, context: Context
    ) -> pb.AppendAuditRecordResponse:
        """Writes another service's record; durable on return."""
        del context
        entry = messages.entry_of(request, call_context().caller)
        await self._trail.commit(entry)
        return pb.AppendAuditRecordResponse(audit_id=entry.audit_id)

    async def ListSecurityEvents(
        self, request: pb.ListSecurityEventsRequest, context: Context
    ) -> pb.ListSecurityEventsResponse:
        """A page of security events, newest first."""
        del context
        organization_id = call_context().organization_id
        kind, minimum = messages.kind_label(request.event_type), messages.severity_label(request.minimum_severity)
        size = request.page_size or _DEFAULT_PAGE
        issued_for = ("list " + _EVENTS, organization_id, kind, minimum, str(request.open_only))
        before = _place(request.page_token, *issued_for) if request.page_token else _END
        with _database():
            found = await self._events.newest(
                organization_id,
                before=before,
                kind=kind,
                minimum=minimum,
                open_only=request.open_only,
                limit=size + 1,
            )
        more = place_token(found[size - 1].position, *issued_for) if len(found) > size else ""
        return pb.ListSecurityEventsResponse(
            events=[messages.event_message(event) for event in found[:size]], next_page_token=more
        )

    async def WatchSecurityEvents(
        self, request: pb.WatchSecurityEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchSecurityEventsResponse]:
        """Follows the organisation's security events: first what was missed, then live."""
        organization_id = call_context().organization_id
        minimum = messages.severity_label(request.minimum_severity)
        issued_for = ("follow " + _EVENTS, organization_id)
        begin = await _begin(self._event_streams, request.resume_token, *issued_for)
        await context.send_initial_metadata(((RESUME_KEY, place_token(begin, *issued_for)),))

        async def read(organization_id: str, after: int, upto: int, limit: int) -> Sequence[SecurityEvent]:
            return await self._events.after(organization_id, after, upto, minimum, limit)

        follow = self._event_streams.follow(organization_id, begin, read, lambda event: event.position)
        async with aclosing(follow) as events:
            async for event in events:
                yield pb.WatchSecurityEventsResponse(
                    event=messages.event_message(event), resume_token=place_token(event.position, *issued_for)
                )

    async def ResolveSecurityEvent(
        self, request: pb.ResolveSecurityEventRequest, context: Context
    ) -> pb.ResolveSecurityEventResponse:
        """Closes a security event."""
        del context
        call = call_context()
        event_id = request.event_id.lower()
        call.audit.data["event_id"] = event_id
        with _database():
            event = await self._events.resolve(call.organization_id, event_id, request.response_action)
        if event is None:
            raise MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "the organisation has no such security event")
        return pb.ResolveSecurityEventResponse(event=messages.event_message(event))

    async def _between(self, organization_id: str, place: int, upto: int) -> list[AuditRecord]:
        """The records after one place up to another, read a page at a time."""
        found: list[AuditRecord] = []
        while place < upto:
            page = await self._reader.after(organization_id, place, upto, _EXPORT_PAGE)
            if not page:
                break
            found += page
            place = page[-1].sequence
        return found

    async def _checkpoint_now(self, organization_id: str) -> int:
        try:
            return await self._checkpoints.make(organization_id)
        except MeshError as error:  # a sealed HSM must not stand in the way of reading the trail
            _log.warning("an export ends without a checkpoint of now", extra={"cause": error.reason_name})
            return 0


def _organization(
    request: pb.ListAuditRecordsRequest | pb.ListCheckpointsRequest | pb.ExportAuditRequest,
) -> str:
    """Whose trail: the caller's own. Another one named here was refused already where a person is behind the call."""
    return request.organization_id.lower() or call_context().organization_id


@contextmanager
def _database() -> Iterator[None]:
    """Turns the database's absence into an answer.

    Raises:
        MeshError: DEPENDENCY_UNAVAILABLE.
    """
    try:
        yield
    except (psycopg.OperationalError, PoolTimeout) as error:
        raise MeshError(
            ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the audit trail cannot be read now", retry_after_s=1.0
        ) from error


async def _begin(streams: Streams, token: str, *issued_for: str) -> int:
    """The place after which a follower begins.

    Raises:
        MeshError: INVALID_TOKEN, DEPENDENCY_UNAVAILABLE.
    """
    head = await streams.head(issued_for[1])
    if not token:
        return head
    place = _place(token, *issued_for)
    if place > head:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_TOKEN, "the token names a place that is not there")
    return place


def _place(token: str, *issued_for: str) -> int:
    try:
        return place_of(token, *issued_for)
    except InvalidTokenError as error:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_TOKEN, str(error)) from None
