"""Alerts out, offsets after: a batch's offsets are committed once the broker has taken every one of its messages."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from confluent_kafka import Message, Producer

_LIMIT = 8
"""Batches under way to the broker; a ninth waits, and with it the reading."""
_POLL_SECONDS = 0.02
_QUEUE_FULL_SECONDS = 0.005

_NO_LONGER_OURS = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._NO_OFFSET,
    }
)

_log = logging.getLogger(__name__)


class Outgoing(NamedTuple):
    """A message to produce."""

    topic: str
    key: str | bytes | None
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class Committer(Protocol):
    """What the outbox needs of a consumer."""

    def commit(self, *, offsets: list[TopicPartition], asynchronous: Literal[False]) -> object:
        """Commit and wait for the answer."""


class DeliveryFailed(RuntimeError):  # noqa: N818 - it is a state, and named as operators speak of it
    """The broker did not take a message in time: nothing of its batch is committed, and it will be read again."""


@dataclass(slots=True)
class _Batch:
    """Messages of one batch under way. Counted by the delivery thread alone; `expected` is set last, by the sender."""

    offsets: Mapping[int, int]
    expected: int = -1
    delivered: int = 0
    error: KafkaError | None = field(default=None)

    def report(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.error = error
        self.delivered += 1


class Outbox:
    """Sends on the caller's thread, waits for deliveries on its own (`run`), commits on the reader's (`commit`).

    The client lets one thread at a time into a consumer, and a thread that waits for messages leaves no gap for another
    to commit in: whoever reads must commit.
    """

    def __init__(self, producer: Producer, consumer: Committer, topic: str, delivery_seconds: float) -> None:
        self._producer = producer
        self._consumer = consumer
        self._topic = topic
        self._delivery_seconds = delivery_seconds
        self._room = threading.Semaphore(_LIMIT)
        self._under_way: deque[_Batch] = deque()
        self._idle = threading.Condition()
        self._open = 0
        self._stopping = threading.Event()
        self._delivered: deque[Mapping[int, int]] = deque()
        self._uncommitted: dict[int, int] = {}
        self._commit_since = 0.0
        self._lost: set[int] = set()

    def send(self, messages: Sequence[Outgoing], offsets: Mapping[int, int]) -> None:
        """Produce `messages`; after their delivery commit `offsets` (partition to the next offset to read).

        Raises:
            DeliveryFailed: there was no room within the delivery time.
        """
        deadline = time.monotonic() + self._delivery_seconds
        if not self._room.acquire(timeout=self._delivery_seconds):
            raise DeliveryFailed(f"the broker took nothing for {self._delivery_seconds:g} s")
        batch = _Batch(offsets)
        with self._idle:
            self._open += 1
        self._under_way.append(batch)
        for message in messages:
            self._produce(message, batch, deadline)
        batch.expected = len(messages)

    def _produce(self, message: Outgoing, batch: _Batch, deadline: float) -> None:
        while True:
            try:
                self._producer.produce(
                    message.topic, message.value, message.key, on_delivery=batch.report, headers=message.headers
                )
            except BufferError:
                if time.monotonic() > deadline or self._stopping.wait(_QUEUE_FULL_SECONDS):
                    raise DeliveryFailed(f"the producer's queue stayed full for {self._delivery_seconds:g} s") from None
            else:
                return

    def run(self) -> None:
        """Wait for deliveries, until `stop`.

        Raises:
            DeliveryFailed: a message was not delivered in time.
        """
        while not self._stopping.is_set():
            self._producer.poll(_POLL_SECONDS)
            self._settle()

    def stop(self) -> None:
        """End `run`; what is under way stays uncommitted."""
        self._stopping.set()

    def wait_idle(self, seconds: float) -> bool:
        """On the reader's thread: wait until everything sent is delivered, and commit it; whether both happened within
        `seconds`.

        Raises:
            DeliveryFailed: commits have not been answered for too long.
        """
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0 or self._stopping.is_set(), seconds)
            idle = self._open == 0
        return self.commit() and idle

    def lose(self, partitions: Iterable[int]) -> None:
        """These partitions are somebody else's now: what is still under way for them is not committed."""
        self._lost.update(partitions)

    def gain(self, partitions: Iterable[int]) -> None:
        """These partitions are ours (again)."""
        self._lost.difference_update(partitions)

    def _settle(self) -> None:
        """Hand over the offsets of the batches at the head that are complete."""
        settled = 0
        while self._under_way and self._under_way[0].delivered == self._under_way[0].expected:
            batch = self._under_way.popleft()
            if batch.error is not None:
                raise DeliveryFailed(f"the broker did not take a message: {batch.error.name()}")
            self._delivered.append(batch.offsets)
            settled += 1
        if settled:
            self._room.release(settled)
            with self._idle:
                self._open -= settled
                self._idle.notify_all()

    def commit(self) -> bool:
        """On the reader's thread: commit what was delivered; whether nothing is left to commit.

        Raises:
            DeliveryFailed: commits have not been answered for too long.
        """
        while self._delivered:
            self._uncommitted.update(self._delivered.popleft())
        if not self._uncommitted:
            return True
        offsets = [TopicPartition(self._topic, p, o) for p, o in self._uncommitted.items() if p not in self._lost]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            code: KafkaError = error.args[0]
            if code.code() not in _NO_LONGER_OURS:
                self._retry_later(code)
                return False
            _log.info("offsets belong to another member now: %s", code.name())
        self._uncommitted.clear()
        self._commit_since = 0.0
        return True

    def _retry_later(self, error: KafkaError) -> None:
        """Offsets only grow, so the next commit carries this one's."""
        now = time.monotonic()
        self._commit_since = self._commit_since or now
        _log.warning("offsets were not committed, trying again: %s", error.name())
        if now - self._commit_since > self._delivery_seconds:
            raise DeliveryFailed(f"the broker did not take a commit for {self._delivery_seconds:g} s: {error.name()}")
