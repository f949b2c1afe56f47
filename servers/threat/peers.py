"""The broker: events out, alerts in, dead letters. Everything of librdkafka that blocks runs outside the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from behaviorguard.api.v1.errors_pb2 import ErrorReason
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from servers.mesh.errors import MeshError
from servers.threat.records import Origin

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message

    from servers.threat.records import BrokerRecord

T = TypeVar("T")

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.002
_CLOSE_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.25
_IDLE_SECONDS: Final = 0.5
_JOIN_SECONDS: Final = 0.05
_QUEUE_KBYTES: Final = 65_536


class BrokerProducer:
    """Sends records and tells when the broker has them.

    librdkafka reports deliveries to whoever polls it. The loop itself does, without waiting, every 2 ms while
    something is on its way: a thread that waits would fight the loop for the interpreter at every report.
    """

    def __init__(self, bootstrap: str, *, queue: int, within_seconds: float, linger_ms: float, client_id: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "client.id": client_id,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",  # the Java client's hash of the key: "computed_by_user_hash"
                "compression.type": "lz4",
                "linger.ms": linger_ms,
                "message.timeout.ms": int(within_seconds * 1000),
                "message.max.bytes": 1_048_576,
                "queue.buffering.max.messages": queue,
                "queue.buffering.max.kbytes": _QUEUE_KBYTES,
                "log_level": 3,
                "error_cb": _log_error,
            },
            logger=_log,
        )
        self._busy = False
        self._next_poll = self._loop.call_later(_IDLE_SECONDS, self._poll)

    @property
    def waiting(self) -> int:
        """Records that the broker has not acknowledged yet."""
        return len(self._producer)

    def send(self, topic: str, record: BrokerRecord, settle: Callable[[MeshError | None], None]) -> None:
        """Queue a record; `settle` hears when all of the broker's replicas have it, or why they do not.

        Raises:
            MeshError: OVERLOADED, the queue is full.
        """

        def report(error: KafkaError | None, _: Message) -> None:
            settle(None if error is None else _failure(error))

        try:
            self._producer.produce(topic, record.value, record.key, on_delivery=report, headers=record.headers)
        except BufferError:
            raise MeshError(
                ErrorReason.ERROR_REASON_OVERLOADED, "too many events wait for the broker", retry_after_s=_RETRY_SECONDS
            ) from None
        except KafkaException as error:
            raise _failure(error.args[0]) from None
        if not self._busy:
            self._busy = True
            self._next_poll.cancel()
            self._next_poll = self._loop.call_later(_POLL_SECONDS, self._poll)

    async def probe(self) -> dict[str, str | float]:
        """Ask the broker for its topics; returns how many brokers there are."""
        metadata = await asyncio.to_thread(self._producer.list_topics, timeout=1.5)
        return {"brokers": float(len(metadata.brokers)), "queued": float(self.waiting)}

    async def close(self) -> None:
        """Wait for what is queued, then stop."""
        end = self._loop.time() + _CLOSE_SECONDS
        while self.waiting and self._loop.time() < end:  # noqa: ASYNC110 - librdkafka has no event to wait for
            await asyncio.sleep(_POLL_SECONDS)
        self._next_poll.cancel()
        if self.waiting:
            _log.warning("records were not delivered before the end", extra={"count": self.waiting})

    def _poll(self) -> None:
        # Never waits; a report costs microseconds, and a poll that finds none less than one.
        self._producer.poll(0)
        self._busy = len(self._producer) > 0
        self._next_poll = self._loop.call_later(_POLL_SECONDS if self._busy else _IDLE_SECONDS, self._poll)


@dataclass(frozen=True, slots=True)
class AlertBatch:
    """Messages of the alerts topic, oldest first within each partition."""

    origins: tuple[Origin, ...]


class AlertConsumer:
    """Reads the alerts topic in batches; one thread of its own does all that blocks.

    The document says `autoOffsetReset: latest`. That holds for a group without a committed position and would skip
    every alert that was published before its first commit: results of accepted events would be missing after a first
    start or a crash. The position is therefore committed after each stored batch, and where there is none, reading
    begins with the earliest alert. Results that are stored already are recognised by their event id.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        *,
        batch: int,
        window_s: float,
        session_s: float,
        client_id: str,
    ) -> None:
        self._batch = batch
        self._window_s = window_s
        self._session_s = session_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="broker-consumer")
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "client.id": client_id,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "fetch.wait.max.ms": 20,
                "max.poll.interval.ms": 300_000,
                "session.timeout.ms": int(session_s * 1000),
                "heartbeat.interval.ms": int(session_s * 1000 / 6),
                "partition.assignment.strategy": "cooperative-sticky",
                "queued.max.messages.kbytes": 16_384,
                "allow.auto.create.topics": False,
                "log_level": 3,
                "error_cb": _log_error,
            },
            logger=_log,
        )
        self._consumer.subscribe([topic])

    async def fetch(self) -> AlertBatch:
        """The next messages: as soon as one is there, and what else comes within the window; may be empty.

        Raises:
            KafkaException: the broker reports something that does not pass by itself.
        """
        return await self._run(self._fetch)

    async def commit(self, batch: AlertBatch) -> None:
        """Remember that everything up to this batch is stored. A position that is lost costs only a second look at
        stored results.
        """
        await self._run(self._commit, batch)

    async def keep_alive(self) -> None:
        """While a batch cannot be stored: stay in the group without taking more."""
        await self._run(self._keep_alive)

    async def close(self) -> None:
        """Leave the group."""
        await self._run(self._leave)
        self._executor.shutdown(wait=False)

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def _fetch(self) -> AlertBatch:
        first = self._consumer.poll(_IDLE_SECONDS)
        if first is None:
            return AlertBatch(())
        messages = [first]
        if self._batch > 1:
            messages += self._consumer.consume(self._batch - 1, self._window_s)
        return AlertBatch(tuple(_origin(message) for message in messages if _is_data(message)))

    def _leave(self) -> None:
        # The embedded broker (tansu 0.6) never lets anybody into a group again that a member left while joining: join
        # first.
        end = time.monotonic() + self._session_s
        self._consumer.pause(self._consumer.assignment())
        while not self._consumer.assignment() and time.monotonic() < end:
            self._consumer.poll(_JOIN_SECONDS)
        self._consumer.close()

    def _commit(self, batch: AlertBatch) -> None:
        following: dict[tuple[str, int], int] = {}
        for origin in batch.origins:
            place = (origin.topic, origin.partition)
            following[place] = max(following.get(place, 0), origin.offset + 1)
        try:
            self._consumer.commit(
                offsets=[TopicPartition(topic, partition, offset) for (topic, partition), offset in following.items()],
                asynchronous=True,
            )
        except KafkaException as error:
            _log.warning("the consumer's position was not committed", extra={"cause": str(error.args[0].name())})

    def _keep_alive(self) -> None:
        assigned = self._consumer.assignment()
        self._consumer.pause(assigned)
        try:
            self._consumer.poll(0)
        finally:
            self._consumer.resume(self._consumer.assignment())


def _origin(message: Message) -> Origin:
    key, value = message.key(), message.value()
    return Origin(
        message.topic() or "",
        _whole(message.partition()),
        _whole(message.offset()),
        key.encode() if isinstance(key, str) else key,
        value.encode() if isinstance(value, str) else value,
    )


def _whole(value: int | None) -> int:
    return -1 if value is None else value


def _is_data(message: Message) -> bool:
    error = message.error()
    if error is None:
        return True
    if error.fatal():
        raise KafkaException(error)
    # The rest (a broker that went away, a topic that does not exist yet) librdkafka retries by itself.
    _log.warning("the broker reports an error", extra={"cause": error.name()})
    return False


def _log_error(error: KafkaError) -> None:
    _log.warning("the broker reports an error", extra={"cause": error.name()})


def _failure(error: KafkaError) -> MeshError:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return MeshError(ErrorReason.ERROR_REASON_TOO_LARGE, "the event is too large for the broker")
    return MeshError(
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the broker did not acknowledge the event", retry_after_s=1.0
    )
