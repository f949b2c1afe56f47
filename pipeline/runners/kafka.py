"""Moves batches from `threat-events` through the chain to `threat-alerts`.

Three threads overlap successive batches: this one reads and deserializes, the second scores and produces, the third
(`Outbox`) waits for deliveries and commits. Queues between them hold a few batches, so that a slow broker slows the
reading instead of filling memory.

The windows of users are rebuilt from the topic itself: an assigned partition is read from somewhat before its committed
offset, and what lies before that offset only fills windows. A failure ends the session; the next one starts from the
committed offsets with empty windows, so that nothing in memory outlives what the broker knows.
"""

from __future__ import annotations

import binascii
import logging
import queue
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from pipeline.runners.outbox import DeliveryFailed, Outbox, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Message
    from numpy.typing import NDArray

    from pipeline.runners.chain import Chain
    from pipeline.runners.health import Health
    from pipeline.settings import PipelineSettings
    from pipeline.stages.deserialize import EventBatch, Refusal
    from pipeline.stages.monitor import Monitor

_IDLE_SECONDS = 0.2
_READ_AHEAD = 1
"""Batches that are deserialized and not scored yet: one keeps the scoring thread busy, more would only make events
wait."""
COMMIT_SECONDS = 0.1
"""Between two commits, whose answers the reading waits for: what a killed process scored since the last one is scored
again, under the same ids."""
_ANSWER_SECONDS = 10.0
_ORIGINAL_BYTES = 65_536
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Work:
    """A batch that was read: `positions` [N] are partition and offset of each message, `wanted` [N] whether it is to be
    scored."""

    messages: Sequence[Message]
    partitions: NDArray[np.int32]
    wanted: NDArray[np.bool_]
    events: EventBatch
    refusals: Sequence[Refusal]
    offsets: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Forget:
    """Partitions whose windows are to be dropped."""

    partitions: Sequence[int]


class SessionEnded(RuntimeError):  # noqa: N818 - it is a state, and named as operators speak of it
    """A session cannot go on; its cause is attached, and the next one starts from the committed offsets."""


class Session:
    """One membership in the consumer group, from subscription to leaving."""

    def __init__(
        self, settings: PipelineSettings, chain: Chain, health: Health, monitor: Monitor, stopping: threading.Event
    ) -> None:
        self._settings = settings
        self._chain = chain
        self._health = health
        self._monitor = monitor
        self._stopping = stopping
        self._consumer = Consumer(consumer_options(settings, health), logger=_log)
        self._producer = Producer(producer_options(settings), logger=_log)
        self._outbox = Outbox(self._producer, self._consumer, settings.events_topic, settings.pipeline_delivery_seconds)
        self._queue: queue.Queue[_Work | _Forget | None] = queue.Queue(_READ_AHEAD)
        self._resume: dict[int, int] = {}
        self._commit_at = 0.0
        self._failure: BaseException | None = None
        self._failed = threading.Event()

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            SessionEnded: something failed; nothing is lost.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("score", self._score_all), ("deliver", self._outbox.run))
        ]
        for thread in threads:
            thread.start()
        try:
            self._consumer.subscribe(
                [self._settings.events_topic],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            while not (self._stopping.is_set() or self._failed.is_set()):
                self._read()
        except Exception as error:
            self._fail(error)
        finally:
            self._close(threads)
        if self._failure is not None:
            raise SessionEnded(str(self._failure)) from self._failure

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._failed.is_set():
            self._failure = error
            self._failed.set()

    def _close(self, threads: Sequence[threading.Thread]) -> None:
        """Finish what was read (unless something failed), leave the group, stop the threads."""
        if not self._failed.is_set():
            self._drain()
        # Leaves the group, which lets go of the partitions, which waits for nothing any more.
        self._consumer.close()
        self._failed.set()
        self._outbox.stop()
        for thread in threads:
            thread.join(self._settings.pipeline_drain_seconds)
            if thread.is_alive():
                _log.error("thread %s did not end", thread.name)
        self._producer.purge()
        self._producer.flush(1.0)

    def _drain(self) -> bool:
        """Wait until everything read is scored, delivered and committed; whether it was in time."""
        deadline = time.monotonic() + self._settings.pipeline_drain_seconds
        while self._queue.unfinished_tasks and not self._failed.is_set() and time.monotonic() < deadline:
            self._health.beat()
            time.sleep(0.001)
        try:
            committed = self._outbox.wait_idle(max(0.0, deadline - time.monotonic()))
        except DeliveryFailed as error:
            self._fail(error)
            return False
        return committed and not self._queue.unfinished_tasks

    # Reading: the session's own thread.

    def _read(self) -> None:
        """Read one batch: as many events as come within the window that the first one opens."""
        self._health.beat()
        if time.monotonic() >= self._commit_at:
            self._outbox.commit()
            self._commit_at = time.monotonic() + COMMIT_SECONDS
        messages = self._consumer.consume(1, _IDLE_SECONDS)
        if not messages:
            return
        most = self._settings.pipeline_batch_events - 1
        if most:
            messages += self._consumer.consume(most, self._window_left(messages[0]))
        work = self._understand([message for message in messages if self._is_ours(message)])
        if work is not None:
            self._put(work)

    def _window_left(self, first: Message) -> float:
        """Seconds until the window closes that the first event opened when it was written, not when it was read.

        An event that waited while the batch before it was scored waits no longer. Clocks that disagree only make the
        window shorter or full.
        """
        window = self._settings.pipeline_window_seconds
        waited = time.time() - first.timestamp()[1] / 1000
        return min(window, max(0.0, window - waited))

    def _is_ours(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return message.partition() in self._resume
        if error.fatal():
            raise KafkaException(error)
        if error.code() != KafkaError._PARTITION_EOF:
            self._health.trouble(f"reading {self._settings.events_topic}: {error.name()}")
            _log.warning("reading %s: %s", self._settings.events_topic, error.str())
        return False

    def _understand(self, messages: list[Message]) -> _Work | None:
        if not messages:
            return None
        total = len(messages)
        partitions = np.fromiter((message.partition() for message in messages), np.int32, total)
        offsets = np.fromiter((message.offset() for message in messages), np.int64, total)
        resume = np.fromiter((self._resume[partition] for partition in partitions.tolist()), np.int64, total)
        wanted = offsets >= resume
        # Ascending within a partition: the last one stays.
        commit = {p: o + 1 for p, o, w in zip(partitions.tolist(), offsets.tolist(), wanted.tolist(), strict=True) if w}
        events, refusals = self._chain.read([(message.key(), message.value()) for message in messages])
        return _Work(messages, partitions, wanted, events, [r for r in refusals if wanted[r.row]], commit)

    def _put(self, item: _Work | _Forget) -> None:
        while not self._failed.is_set():
            self._health.beat()
            try:
                self._queue.put(item, timeout=_IDLE_SECONDS)
            except queue.Full:
                continue
            return

    # Assignment: called by the client inside `consume`, on the session's own thread.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        self._outbox.gain(numbers)
        self._put(_Forget(numbers))
        if partitions:
            starts = []
            for committed, earliest in zip(
                consumer.committed(partitions, timeout=_ANSWER_SECONDS), self._earliest(partitions), strict=True
            ):
                self._resume[committed.partition] = max(committed.offset, 0)
                start = max(
                    0, committed.offset - self._settings.pipeline_rebuild_events, min(earliest, committed.offset)
                )
                starts.append(
                    TopicPartition(
                        committed.topic, committed.partition, start if committed.offset >= 0 else OFFSET_BEGINNING
                    )
                )
            consumer.incremental_assign(starts)
        self._health.assigned(self._resume)
        _log.info("partitions assigned: %s", sorted(self._resume))

    def _earliest(self, partitions: Sequence[TopicPartition]) -> list[int]:
        """For each partition the first offset that is young enough to rebuild windows from; 0 when the broker cannot
        say."""
        since = int((time.time() - self._settings.pipeline_rebuild_seconds) * 1000)
        asked = [TopicPartition(p.topic, p.partition, since) for p in partitions]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=_ANSWER_SECONDS)
        except KafkaException as error:
            _log.warning(
                "the broker does not find offsets by time (%s): windows are rebuilt by count alone",
                error.args[0].name(),
            )
            return [0] * len(partitions)
        # Negative: no event is that young, so none is worth reading again.
        return [p.offset if p.error is None and p.offset >= 0 else 2**62 for p in found]

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if not self._failed.is_set() and not self._drain():
            _log.warning("partitions go before their events were delivered: their next owner scores them again")
        self._let_go(partitions)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        _log.warning("the group gave our partitions away: this process was not heard of in time")
        self._let_go(partitions)

    def _let_go(self, partitions: Sequence[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        self._outbox.lose(numbers)
        for number in numbers:
            self._resume.pop(number, None)
        self._put(_Forget(numbers))
        self._health.assigned(self._resume)

    # Scoring: a thread of its own.

    def _score_all(self) -> None:
        while not self._failed.is_set():
            try:
                item = self._queue.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, _Forget):
                self._chain.forget(item.partitions)
            elif item is not None:
                self._score(item)
            self._queue.task_done()

    def _score(self, work: _Work) -> None:
        rows = work.events.rows
        scored = self._chain.score(work.events, work.partitions[rows], work.wanted[rows], _now)
        letters = [*work.refusals, *scored.refusals]
        outgoing = [Outgoing(self._settings.alerts_topic, *alert) for alert in scored.alerts]
        outgoing += [self._dead_letter(work.messages[refusal.row], refusal) for refusal in letters]
        with self._monitor.stage("produce"):
            self._outbox.send(outgoing, work.offsets)
        if scored.alerts:
            self._health.scored()
            self._monitor.age(max(0.0, time.time() - float(work.events.accepted_at_ms.min()) / 1000))

    def _dead_letter(self, message: Message, refusal: Refusal) -> Outgoing:
        self._monitor.refused(refusal.reason)
        record = {
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
            "reason": refusal.reason,
            "detail": refusal.detail,
            "original": _base64((message.value() or b"")[:_ORIGINAL_BYTES]),
            "timestamp": _now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        headers: list[tuple[str, str | bytes | None]] = [("processing-node", self._settings.pipeline_node)]
        return Outgoing(self._settings.dead_letters_topic, message.key(), orjson.dumps(record), headers)


def run(
    settings: PipelineSettings,
    chain_of: Callable[[], Chain],
    health: Health,
    monitor: Monitor,
    stopping: threading.Event,
) -> None:
    """Run sessions until told to stop, with growing pauses after failures.

    Raises:
        SessionEnded: too many failures in a row without one event scored between them.
    """
    failures = 0
    while not stopping.is_set():
        before = health.batches
        try:
            Session(settings, chain_of(), health, monitor, stopping).run()
        except SessionEnded as ended:
            failures = 1 if health.batches > before else failures + 1
            health.trouble(str(ended))
            _log.error("session ended (%d in a row): %s", failures, ended)
            if failures >= settings.pipeline_failures:
                raise
            stopping.wait(min(30.0, 0.5 * 2 ** (failures - 1)))


def consumer_options(settings: PipelineSettings, health: Health) -> dict[str, object]:
    """Settings of the consumer: nothing is committed by itself, and an assignment may change a few partitions without
    stopping the others."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": f"behaviorguard-pipeline-{settings.pipeline_node}",
        "group.id": settings.pipeline_group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "cooperative-sticky",
        # A killed pipeline's partitions wait this long for their next owner.
        "session.timeout.ms": 6_000,
        "heartbeat.interval.ms": 1_000,
        # An idle fetch is answered after this; the broker answers at once when there is an event.
        "fetch.wait.max.ms": 50,
        "fetch.min.bytes": 1,
        "queued.min.messages": 8_192,
        "queued.max.messages.kbytes": 65_536,
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 2_000,
        "statistics.interval.ms": 1_000,
        "stats_cb": health.statistics,
        "error_cb": health.client_error,
        **settings.kafka_options,
    }


def producer_options(settings: PipelineSettings) -> dict[str, object]:
    """Settings of the producer: every replica acknowledges, a retry makes no duplicate, partitions as Java's client
    chooses them."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": f"behaviorguard-pipeline-{settings.pipeline_node}",
        "acks": "all",
        "enable.idempotence": True,
        "compression.type": "lz4",
        "partitioner": "murmur2_random",
        "linger.ms": 2,
        "batch.size": 1_000_000,
        "queue.buffering.max.messages": 50_000,
        "message.timeout.ms": int(settings.pipeline_delivery_seconds * 1000),
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 2_000,
        **settings.kafka_options,
    }


def _now() -> datetime:
    return datetime.now(UTC)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()
