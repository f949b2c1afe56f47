"""Moves batches from `threat-events` through the chain to `threat-alerts`.

One thread reads, scores, produces and commits. The client and the models work outside the interpreter: fetching,
compressing, sending and acknowledging overlap with it anyway, and a second Python thread was measured to be slower,
because the two fight for the interpreter at every array operation. More throughput comes from more processes in the
group.

The windows of users are rebuilt from the topic itself: an assigned partition is read from somewhat before its committed
offset, and what lies before that offset only fills windows. A failure ends the session; the next one starts from the
committed offsets with empty windows, so that nothing in memory outlives what the broker knows.
"""

from __future__ import annotations

import binascii
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from pipeline.runners.outbox import Outbox, Outgoing

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from confluent_kafka import Message

    from pipeline.runners.chain import Chain
    from pipeline.runners.health import Health
    from pipeline.settings import PipelineSettings
    from pipeline.stages.deserialize import Refusal
    from pipeline.stages.monitor import Monitor

_IDLE_SECONDS = 0.2
_BUSY_SECONDS = 0.02
"""Longest waits for an event: without and with deliveries to hear of."""
COMMIT_SECONDS = 0.1
"""Between two commits, whose answers the reading waits for: what a killed process scored since the last one is scored
again, under the same ids."""
_ANSWER_SECONDS = 10.0
_ORIGINAL_BYTES = 65_536
_log = logging.getLogger(__name__)


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
        self._outbox = Outbox(
            self._producer,
            self._consumer,
            settings.events_topic,
            settings.pipeline_delivery_seconds,
            stopping.is_set,
        )
        self._resume: dict[int, int] = {}
        self._commit_at = 0.0
        self._commits = 0
        self._failure: Exception | None = None

    def run(self) -> None:
        """Work until told to stop.

        Raises:
            SessionEnded: something failed; nothing is lost.
        """
        try:
            self._consumer.subscribe(
                [self._settings.events_topic],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            while not self._stopping.is_set():
                self._read()
            self._drain()
        except Exception as error:
            self._failure = error
            raise SessionEnded(str(error)) from error
        finally:
            # Leaves the group, which lets go of the partitions, which waits for nothing any more.
            self._consumer.close()
            self._producer.purge()
            self._producer.flush(1.0)

    def _drain(self) -> bool:
        """Wait until everything scored is delivered and committed; whether it was in time."""
        drained = self._outbox.wait_idle(self._settings.pipeline_drain_seconds)
        if not drained:
            _log.warning("not everything was delivered in time: the partitions' next owner scores it again")
        return drained

    def _read(self) -> None:
        """Read and score one batch: as many events as come within the window that the first one opens."""
        self._health.beat()
        if time.monotonic() >= self._commit_at:
            self._commit()
        messages = self._consumer.consume(1, _IDLE_SECONDS if self._outbox.idle else _BUSY_SECONDS)
        if not messages:
            return
        most = self._settings.pipeline_batch_events - 1
        if most:
            messages += self._consumer.consume(most, self._window_left(messages[0]))
        messages = [message for message in messages if self._is_ours(message)]
        if messages:
            self._score(messages)

    def _commit(self) -> None:
        self._outbox.commit()
        self._commit_at = time.monotonic() + COMMIT_SECONDS
        if self._outbox.commits > self._commits:
            self._commits = self._outbox.commits
            self._health.progressed()

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

    def _score(self, messages: list[Message]) -> None:
        total = len(messages)
        partitions = np.fromiter((message.partition() for message in messages), np.int32, total)
        offsets = np.fromiter((message.offset() for message in messages), np.int64, total)
        resume = np.fromiter((self._resume[partition] for partition in partitions.tolist()), np.int64, total)
        wanted = offsets >= resume
        # Ascending within a partition: the last one stays.
        commit = {p: o + 1 for p, o, w in zip(partitions.tolist(), offsets.tolist(), wanted.tolist(), strict=True) if w}
        events, refusals = self._chain.read([(message.key(), message.value()) for message in messages])
        scored = self._chain.score(events, partitions[events.rows], wanted[events.rows], _now)
        outgoing = [Outgoing(self._settings.alerts_topic, *alert) for alert in scored.alerts]
        letters = [refusal for refusal in refusals if wanted[refusal.row]] + scored.refusals
        outgoing += [self._dead_letter(messages[refusal.row], refusal) for refusal in letters]
        with self._monitor.stage("produce"):
            self._outbox.send(outgoing, commit)
        if scored.alerts:
            self._monitor.age(max(0.0, time.time() - float(events.accepted_at_ms.min()) / 1000))

    # Assignment: called by the client inside `consume` and `close`.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        self._outbox.gain(numbers)
        self._chain.forget(numbers)
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
        if self._failure is None:
            self._drain()
        self._let_go(partitions)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        _log.warning("the group gave our partitions away: this process was not heard of in time")
        self._let_go(partitions)

    def _let_go(self, partitions: Sequence[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        self._outbox.lose(numbers)
        for number in numbers:
            self._resume.pop(number, None)
        self._chain.forget(numbers)
        self._health.assigned(self._resume)

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
        SessionEnded: too many failures in a row without progress between them.
    """
    failures = 0
    while not stopping.is_set():
        before = health.progress
        try:
            Session(settings, chain_of(), health, monitor, stopping).run()
        except SessionEnded as ended:
            failures = 1 if health.progress > before else failures + 1
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
        # A broker may answer an idle fetch no earlier than this, so it bounds the wait of the first event.
        "fetch.wait.max.ms": 5,
        "fetch.min.bytes": 1,
        "queued.min.messages": 20_000,
        "queued.max.messages.kbytes": 65_536,
        # By default a full queue stops fetching for a whole second.
        "fetch.queue.backoff.ms": 5,
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
