"""People's states in memory: loaded once, changed by each result in the stream's order, written behind.

A state is the fold of a person's stored results. It names the position up to which results are in it, so that nothing
is lost when it was not written before the process died, or when another instance wrote it: whoever loads it folds in
what is stored since. What an instance alone knows of an event (its context) is learnt by that instance, and folded in
again when another one wrote first.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from behaviorguard.api.v1.errors_pb2 import ErrorReason

from servers.mesh.errors import MeshError
from servers.threat.behavior import EVIDENCE_VERSION
from servers.threat.person import Evidence, Outcome, PersonState
from servers.threat.rows import ProfileWrite, StoredAlert, StoredProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from servers.threat.alerts import Alert
    from servers.threat.places import Addresses

_log = logging.getLogger(__name__)

_CHUNK: Final = 16  # profiles read or written at once: a few milliseconds of the loop's time
_EVICT_LOOK: Final = 64
_REMEMBERED: Final = 1000
_MARGIN: Final = timedelta(minutes=10)  # between a result's scoring and its storing, with clocks that differ
_LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)


class ProfileStore(Protocol):
    """Where profiles lie."""

    async def profiles(self, user_ids: Sequence[str]) -> list[StoredProfile]:
        """The profiles of people who exist."""

    async def results_since(self, places: Sequence[tuple[str, int, datetime]]) -> dict[str, list[StoredAlert]]:
        """What is stored of people after a position and time each."""

    async def save(self, writes: Sequence[ProfileWrite]) -> dict[str, int]:
        """Write profiles; returns the new revisions of those that nobody else wrote."""


@dataclass(slots=True)
class Person:
    """A person in memory."""

    user_id: str
    organization_id: str
    state: PersonState
    revision: int
    unsaved: deque[tuple[Outcome, Evidence | None]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """What was folded in since the state was written."""


@dataclass(slots=True)
class _Loading:
    done: asyncio.Future[Person | None]
    results: list[StoredAlert] = field(default_factory=list)
    """Stored while the state was on its way."""
    stale: bool = False


class People:
    """The states of the people who were seen last."""

    def __init__(self, store: ProfileStore, addresses: Addresses, *, capacity: int, evidence: int) -> None:
        self._store = store
        self._addresses = addresses
        self._capacity = capacity
        self._evidence_capacity = evidence
        self._people: OrderedDict[str, Person] = OrderedDict()
        self._loading: dict[str, _Loading] = {}
        self._evidence: OrderedDict[str, Evidence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._people)

    @property
    def unsaved(self) -> int:
        """People whose state is not written yet."""
        return sum(1 for person in self._people.values() if person.unsaved)

    def cached(self, user_id: str) -> Person | None:
        """A person whose state is in memory."""
        person = self._people.get(user_id)
        if person is not None:
            self._people.move_to_end(user_id)
        return person

    async def load(self, user_id: str) -> Person | None:
        """A person's state, read when it is not in memory; None when there is no such person.

        Raises:
            MeshError: OVERLOADED, no room for another person until changed ones are written.
            psycopg.Error: the store is away.
        """
        return (await self.load_all([user_id])).get(user_id)

    async def load_all(self, user_ids: Iterable[str]) -> dict[str, Person]:
        """The states of people who exist; see `load`."""
        found: dict[str, Person] = {}
        missing: list[str] = []
        for user_id in user_ids:
            person = self.cached(user_id)
            if person is not None:
                found[user_id] = person
            elif user_id not in missing:
                missing.append(user_id)
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            fresh = [user_id for user_id in chunk if user_id not in self._loading]
            if fresh:
                await self._load_chunk(fresh)
            for user_id in chunk:
                loading = self._loading.get(user_id)
                loaded = await asyncio.shield(loading.done) if loading else self._people.get(user_id)
                if loaded is not None:
                    found[user_id] = loaded
        return found

    def remember(self, event_id: str, evidence: Evidence) -> None:
        """Keep what only this process knows of an event until its result comes back; the oldest is forgotten when
        there is too much.
        """
        self._evidence[event_id] = evidence
        if len(self._evidence) > self._evidence_capacity:
            self._evidence.popitem(last=False)

    def completed(self, alert: Alert) -> Alert:
        """The alert with its event's sample, where the pipeline did not hand it back and this process still has it.

        An analyst may find later that an event above normal was the person: then the sample is needed.
        """
        evidence = None if alert.sample else self._evidence.get(alert.event_id)
        if evidence is None:
            return alert
        packed = b64encode(evidence.sample.astype("<f4", copy=False).tobytes()).decode()
        return replace(alert, sample=packed, evidence_version=EVIDENCE_VERSION)

    def apply(self, results: Sequence[StoredAlert]) -> None:
        """Fold in results, in the stream's order. People who are not in memory get theirs when they are loaded."""
        for result in results:
            user_id = result.alert.user_id
            person = self._people.get(user_id)
            if person is not None:
                self._fold(person, _outcome(result), self._evidence.pop(result.alert.event_id, None))
            elif user_id in self._loading:
                self._loading[user_id].results.append(result)

    def verify(self, person: Person, result: StoredAlert) -> bool:
        """An analyst found that an event above normal was the person: learn from it. False when its sample is gone."""
        outcome = _outcome(result, verified=True)
        evidence = self._evidence.pop(result.alert.event_id, None)
        return self._fold(person, outcome, evidence)

    def forget(self, user_id: str) -> None:
        """The stored state was replaced: what is in memory is void."""
        self._people.pop(user_id, None)
        loading = self._loading.get(user_id)
        if loading is not None:
            loading.stale = True

    def forget_evidence(self, user_id: str) -> None:
        """Forget the events of a person that are on their way."""
        for event_id in [name for name, held in self._evidence.items() if held.seen.user_id == user_id]:
            del self._evidence[event_id]

    async def save(self, admits: Callable[[Person], bool] = lambda _: True) -> int:
        """Write the states that changed; returns how many people were written by somebody else first and were read
        again.

        Raises:
            psycopg.Error: the store is away; what was not written stays to be written.
        """
        changed = [person for person in self._people.values() if person.unsaved and admits(person)]
        conflicts = 0
        for start in range(0, len(changed), _CHUNK):
            conflicts += await self._save_chunk(changed[start : start + _CHUNK])
        return conflicts

    async def _save_chunk(self, people: list[Person]) -> int:
        written = []
        for person in people:
            written.append((person, list(person.unsaved)))
            person.unsaved.clear()
        try:
            revisions = await self._store.save(
                [ProfileWrite(p.user_id, p.organization_id, p.state, p.revision) for p, _ in written]
            )
        except BaseException:
            for person, updates in written:
                person.unsaved.extendleft(reversed(updates))
            raise
        conflicts = [item for item in written if item[0].user_id not in revisions]
        for person, _ in written:
            person.revision = revisions.get(person.user_id, person.revision)
        for person, updates in conflicts:
            await self._rebase(person, updates)
        return len(conflicts)

    async def _rebase(self, person: Person, updates: list[tuple[Outcome, Evidence | None]]) -> None:
        """Somebody else wrote first: begin with theirs and fold in again what only we know."""
        person.unsaved.extendleft(reversed(updates))
        fresh = (await self._read([person.user_id])).get(person.user_id)
        if self._people.get(person.user_id) is not person:
            return
        if fresh is None:
            del self._people[person.user_id]
            return
        again = list(person.unsaved)
        person.unsaved.clear()
        person.state, person.revision = fresh.state, fresh.revision
        for outcome, evidence in again:
            self._fold(person, outcome, evidence)

    async def _load_chunk(self, user_ids: list[str]) -> None:
        loop = asyncio.get_running_loop()
        for user_id in user_ids:
            self._loading[user_id] = _Loading(loop.create_future())
        people: dict[str, Person] = {}
        error: BaseException | None = None
        try:
            self._make_room(len(user_ids))
            people = await self._read(user_ids)
            stale = [user_id for user_id in user_ids if self._loading[user_id].stale]
            if stale:
                people |= await self._read(stale)
        except BaseException as raised:
            error = raised
            raise
        finally:
            for user_id in user_ids:
                self._finish(user_id, people.get(user_id), error)

    def _finish(self, user_id: str, person: Person | None, error: BaseException | None) -> None:
        loading = self._loading.pop(user_id)
        if error is not None:
            loading.done.set_exception(error if isinstance(error, Exception) else TimeoutError())
            loading.done.exception()  # nobody else may be waiting
            return
        if person is not None:
            self._people[user_id] = person
            self.apply(loading.results)
        loading.done.set_result(person)

    async def _read(self, user_ids: Sequence[str]) -> dict[str, Person]:
        people: dict[str, Person] = {}
        for row in await self._store.profiles(user_ids):
            state = _state(row)
            people[row.user_id] = Person(row.user_id, row.organization_id, state, row.revision)
            await asyncio.sleep(0)
        places = [(p.user_id, p.state.learnt_position, _search_from(p.state)) for p in people.values()]
        for user_id, results in (await self._store.results_since(places)).items() if places else ():
            for result in results:
                self._fold(people[user_id], _outcome(result), self._evidence.pop(result.alert.event_id, None))
        return people

    def _fold(self, person: Person, outcome: Outcome, evidence: Evidence | None) -> bool:
        if not outcome.verified and evidence is None and outcome.position <= person.state.learnt_position:
            return False
        person.unsaved.append((outcome, evidence))
        return person.state.apply(outcome, evidence, self._addresses)

    def _make_room(self, wanted: int) -> None:
        excess = len(self._people) + wanted - self._capacity
        if excess <= 0:
            return
        oldest = [user_id for user_id, _ in zip(self._people, range(excess + _EVICT_LOOK), strict=False)]
        for user_id in oldest:
            if excess > 0 and not self._people[user_id].unsaved:
                del self._people[user_id]
                excess -= 1
        if len(self._people) > 2 * self._capacity:
            raise MeshError(
                ErrorReason.ERROR_REASON_OVERLOADED,
                "too many changed profiles wait for the database",
                retry_after_s=1.0,
            )


def _state(row: StoredProfile) -> PersonState:
    if row.baseline is None:
        return PersonState(anomaly_threshold=row.anomaly_threshold)
    try:
        return PersonState.from_json(row.baseline, row.anomaly_threshold)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        # A person whose state cannot be read must not be locked out of being watched: enrol them anew.
        _log.error("a stored profile is damaged and is learnt anew", extra={"cause": type(error).__name__})
        return PersonState(anomaly_threshold=row.anomaly_threshold)


def _search_from(state: PersonState) -> datetime:
    if state.last_analysis_s is None:
        return _LONG_AGO
    return datetime.fromtimestamp(state.last_analysis_s, UTC) - _MARGIN


def _outcome(result: StoredAlert, *, verified: bool = False) -> Outcome:
    alert = result.alert
    return Outcome(
        position=0 if verified else result.position,
        session_id=alert.session_id,
        score=alert.threat_score,
        level=alert.level,
        confidence=alert.ml_confidence,
        scored_at_s=alert.scored_at.timestamp(),
        features=alert.features,
        simulated=alert.simulated_features,
        sample=alert.sample,
        evidence_version=alert.evidence_version,
        verified=verified,
    )
