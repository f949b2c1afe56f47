"""An event's way in: known person, new event, features, broker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import psycopg
from behaviorguard.api.v1.errors_pb2 import ErrorReason

from servers.mesh.errors import FieldProblem, MeshError
from servers.threat.baseline import Profile, deviations
from servers.threat.behavior import KeystrokeRun, MousePath, sample_of
from servers.threat.features import features_of, preliminary_risk
from servers.threat.observations import clock_skew, keystroke_problem, stroke_problem
from servers.threat.person import Evidence
from servers.threat.recent import Accepted, EventIdReusedError, RecentEvents
from servers.threat.records import event_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers.threat.members import Members
    from servers.threat.observations import Observation
    from servers.threat.people import People, Person
    from servers.threat.places import Addresses
    from servers.threat.records import BrokerRecord


class Broker(Protocol):
    """Where accepted events go."""

    def send(self, topic: str, record: BrokerRecord, settle: Callable[[MeshError | None], None]) -> None:
        """Queue a record; `settle` hears when the broker has it, or why it does not."""


class Receipt(NamedTuple):
    """An accepted event."""

    event_id: str
    preliminary_risk: float
    repeated: bool
    """True when the same event was accepted before."""


class Ticket:
    """An event that is on its way to the broker."""

    def __init__(self, event_id: str, accepted: Accepted, recent: RecentEvents, *, repeated: bool) -> None:
        self._event_id = event_id
        self._accepted = accepted
        self._recent = recent
        self._repeated = repeated

    async def receipt(self) -> Receipt:
        """Wait until the event is durable.

        Raises:
            MeshError: the broker did not take it; the event may be sent again.
        """
        try:
            await self._accepted.wait()
        except MeshError:
            self._recent.forget(self._event_id, self._accepted)
            raise
        return Receipt(self._event_id, self._accepted.risk, self._repeated)


class Intake:
    """Accepts events."""

    def __init__(
        self,
        broker: Broker,
        topic: str,
        members: Members,
        people: People,
        addresses: Addresses,
        recent: RecentEvents,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._members = members
        self._people = people
        self._addresses = addresses
        self._recent = recent
        self._clock = clock

    async def submit(self, seen: Observation, organization_id: str, content: bytes | None) -> Ticket:
        """Take an event to the broker's queue. Waits for nothing but the first look at a person.

        Args:
            seen: the event, fields checked.
            organization_id: whose data the caller may touch.
            content: digest of what was sent; None where the id is ours, which nobody else can have used.

        Raises:
            MeshError: CLOCK_SKEW, DUPLICATE_EVENT, UNKNOWN_USER, OVERLOADED, DEPENDENCY_UNAVAILABLE.
        """
        now_s = self._clock()
        _check_clock(seen.occurred_at_s, now_s)
        accepted = Accepted(content or b"")
        if content is not None:
            known = self._known(seen.event_id, content)
            if known is not None:
                return Ticket(seen.event_id, known, self._recent, repeated=True)
            self._recent.add(seen.event_id, accepted)
        try:
            # Who is in memory costs no other coroutine.
            person = self._known_person(seen.user_id, organization_id) or await self._person(
                seen.user_id, organization_id
            )
            self._send(seen, person, accepted, now_s)
        except BaseException as error:
            self._recent.forget(seen.event_id, accepted)
            # A copy of the event may wait for this one's fate.
            accepted.settle(error if isinstance(error, MeshError) else _unavailable())
            raise
        return Ticket(seen.event_id, accepted, self._recent, repeated=False)

    def _known(self, event_id: str, content: bytes) -> Accepted | None:
        try:
            return self._recent.find(event_id, content)
        except EventIdReusedError:
            raise MeshError(
                ErrorReason.ERROR_REASON_DUPLICATE_EVENT, "the event id was used before with other content"
            ) from None

    def _known_person(self, user_id: str, organization_id: str) -> Person | None:
        known = self._members.admit_known(user_id, organization_id) is not None
        return self._people.cached(user_id) if known else None

    async def _person(self, user_id: str, organization_id: str) -> Person:
        try:
            if self._members.admit_known(user_id, organization_id) is None:
                await self._members.admit(user_id, organization_id)
            person = self._people.cached(user_id) or await self._people.load(user_id)
        except psycopg.Error as error:
            raise _unavailable() from error
        if person is None:
            self._members.forget(user_id)
            raise MeshError(ErrorReason.ERROR_REASON_UNKNOWN_USER, "the user is not known to this organisation")
        return person

    def _send(self, seen: Observation, person: Person, accepted: Accepted, now_s: float) -> None:
        state = person.state
        sample = sample_of(seen.runs, seen.paths)
        features = features_of(
            seen, deviations(state.behavior, sample), state.context.score(seen, self._addresses, now_s)
        )
        accepted.risk = preliminary_risk(features, behavior_known=state.known_share)
        evidence = (sample, state.behavior.vector(sample))
        record = event_record(seen, person.organization_id, features, evidence, now_s)
        self._broker.send(self._topic, record, accepted.settle)
        seen.runs, seen.paths = (), ()  # no recording is kept
        self._people.remember(seen.event_id, Evidence(seen, now_s, sample))


def warm_up() -> None:
    """Load the compiled kernels, or compile them (some ten seconds, once on a machine): the first event waits for
    nothing.
    """
    one = np.ones(2, np.int64)
    reading = np.ones(2, np.float32)
    run = KeystrokeRun("text", one, reading, reading, reading, reading)
    path = MousePath(np.zeros(2), np.zeros(2), np.zeros(2), one)
    keystroke_problem(run)
    stroke_problem(path)
    deviations(Profile(), sample_of([run], [path]))


def _check_clock(occurred_at_s: float, now_s: float) -> None:
    if clock_skew(occurred_at_s, now_s):
        raise MeshError(
            ErrorReason.ERROR_REASON_CLOCK_SKEW,
            "the timestamp is more than 5 minutes from the server's clock",
            fields=[FieldProblem("timestamp", "must be within 5 minutes of the server's clock", "CLOCK_SKEW")],
        )


def _unavailable() -> MeshError:
    return MeshError(
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the database cannot be reached", retry_after_s=1.0
    )
