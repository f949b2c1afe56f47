"""A result's way in: alerts from the broker, once each, into PostgreSQL and from there to everybody.

A batch's order of steps makes "exactly one stored result" of at-least-once delivery: store in one transaction (what is
stored already is skipped by its event id), hand on, dead-letter what cannot be used, and only then commit the
consumer's position. A crash anywhere repeats the batch; repeating it changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import psycopg

from servers.mesh.errors import MeshError
from servers.threat.alerts import Alert, UnusableAlertError, parse_alert
from servers.threat.recent import Accepted
from servers.threat.records import BrokerRecord, Origin, dead_letter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servers.threat.mirror import RedisMirror
    from servers.threat.peers import AlertBatch
    from servers.threat.people import People
    from servers.threat.rows import StoredAlert
    from servers.threat.watch import AlertHub

_log = logging.getLogger(__name__)

_PARSE_CHUNK: Final = 64  # about a millisecond of the loop's time
_FIRST_PAUSE: Final = 0.05
_LAST_PAUSE: Final = 2.0


class AlertSource(Protocol):
    """Where alerts come from."""

    async def fetch(self) -> AlertBatch:
        """The next messages."""

    async def commit(self, batch: AlertBatch) -> None:
        """Everything up to this batch is stored."""

    async def keep_alive(self) -> None:
        """Stay in the group without taking more."""


class ResultSink(Protocol):
    """Where results are stored."""

    async def insert(self, alerts: Sequence[Alert]) -> list[StoredAlert]:
        """Store results; returns the new ones by position."""


class DeadLetters(Protocol):
    """Where messages go that cannot be used."""

    def send(self, topic: str, record: BrokerRecord, settle: Callable[[MeshError | None], None]) -> None:
        """Queue a record."""


@dataclass(slots=True)
class ResultCounts:
    """What became of the messages so far."""

    stored: int = 0
    repeated: int = 0
    """Stored before, or of somebody who does not exist any more."""
    erased: int = 0
    """Of events that were accepted before their person's behaviour was erased."""
    dead: int = 0
    retries: int = 0
    """Times that a batch had to wait for a dependency."""


class ResultConsumer:
    """Brings alerts in; one per process."""

    def __init__(
        self,
        source: AlertSource,
        sink: ResultSink,
        people: People,
        hub: AlertHub,
        mirror: RedisMirror,
        dead_letters: DeadLetters,
        *,
        dead_letters_topic: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._sink = sink
        self._people = people
        self._hub = hub
        self._mirror = mirror
        self._dead_letters = dead_letters
        self._topic = dead_letters_topic
        self._clock = clock
        self.counts = ResultCounts()
        self.waiting_for_store = False
        """True while a batch waits for the database."""

    async def run(self) -> None:
        """Consume for as long as the service runs."""
        while True:
            batch = await self._source.fetch()
            if batch.origins:
                await self._take_in(batch)
                await self._source.commit(batch)

    async def _take_in(self, batch: AlertBatch) -> None:
        alerts: list[tuple[Origin, Alert]] = []
        for index, origin in enumerate(batch.origins):
            try:
                alerts.append((origin, parse_alert(origin.value)))
            except UnusableAlertError as error:
                await self._bury(origin, error.reason, error.detail)
            if index % _PARSE_CHUNK == _PARSE_CHUNK - 1:
                await asyncio.sleep(0)
        if alerts:
            await self._until_stored(alerts)

    async def _until_stored(self, alerts: list[tuple[Origin, Alert]]) -> None:
        """Try until the batch is stored: it must not be lost, and what follows must not overtake it. Health reports
        the database meanwhile.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._store(alerts)
            except psycopg.errors.ForeignKeyViolation:
                continue  # somebody was erased in this moment; the next look does not see them
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                await self._one_by_one(alerts, error)
            except (psycopg.Error, MeshError) as error:
                self.waiting_for_store = True
                self.counts.retries += 1
                _log.warning("a batch of alerts waits for the database", extra={"cause": type(error).__name__})
                await self._source.keep_alive()
                await asyncio.sleep(pause)
                pause = min(_LAST_PAUSE, pause * 2)
                continue
            self.waiting_for_store = False
            return

    async def _one_by_one(self, alerts: list[tuple[Origin, Alert]], error: psycopg.Error) -> None:
        """Something in the batch cannot be stored: find it, so that its neighbours are not lost."""
        if len(alerts) == 1:
            origin, _ = alerts[0]
            await self._bury(origin, "out_of_range", f"the database refuses the alert ({type(error).__name__})")
            return
        middle = len(alerts) // 2
        await self._until_stored(alerts[:middle])
        await self._until_stored(alerts[middle:])

    async def _store(self, alerts: list[tuple[Origin, Alert]]) -> None:
        people = await self._people.load_all(alert.user_id for _, alert in alerts)
        wanted: list[Alert] = []
        for origin, alert in alerts:
            person = people.get(alert.user_id)
            if person is None:
                self.counts.repeated += 1
            elif person.organization_id != alert.organization_id:
                await self._bury(origin, "out_of_range", "the person does not belong to the organisation")
            elif alert.accepted_at_s <= person.state.erased_at_s:
                self.counts.erased += 1
            else:
                wanted.append(self._people.completed(alert))
        stored = await self._sink.insert(wanted)
        self.counts.stored += len(stored)
        self.counts.repeated += len(wanted) - len(stored)
        self._hub.publish(stored)
        self._mirror.offer(stored)

    async def _bury(self, origin: Origin, reason: str, detail: str) -> None:
        """Put a message on the dead-letter topic and wait until it is there."""
        self.counts.dead += 1
        _log.warning(
            "an alert cannot be used", extra={"reason": reason, "partition": origin.partition, "offset": origin.offset}
        )
        record = dead_letter(origin, reason, detail, self._clock())
        pause = _FIRST_PAUSE
        while True:
            buried = Accepted(b"")
            try:
                self._dead_letters.send(self._topic, record, buried.settle)
                await buried.wait()
            except MeshError:
                await self._source.keep_alive()
                await asyncio.sleep(pause)
                pause = min(_LAST_PAUSE, pause * 2)
            else:
                return
