"""Alerts out, offsets after: a batch's offsets are committed once the broker has taken every one of its messages."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from confluent_kafka import Message, Producer

_LIMIT = 8
"""Batches under way to the broker; a ninth waits, and with it the reading."""
_POLL_SECONDS = 0.005
_STOP_SECONDS = 5.0
"""Patience with the broker once the process was told to stop."""

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
    """Messages of one batch under way."""

    offsets: Mapping[int, int]
    expected: int
    delivered: int = 0
    error: KafkaError | None = field(default=None)

    def report(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.error = error
        self.delivered += 1


class Outbox:
    """Sends, and commits what was delivered.

    Belongs to one thread, the one that reads: the client lets one thread at a time into a consumer, and a second Python
    thread would only fight for the interpreter. Delivery itself goes on in the client's own threads.
    """

    def __init__(
        self,
        producer: Producer,
        consumer: Committer,
        topic: str,
        delivery_seconds: float,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._producer = producer
        self._consumer = consumer
        self._topic = topic
        self._delivery_seconds = delivery_seconds
        self._interrupted = interrupted
        self._under_way: deque[_Batch] = deque()
        self._uncommitted: dict[int, int] = {}
        self._commit_since = 0.0
        self._lost: set[int] = set()
        self.commits = 0

    def send(self, messages: Sequence[Outgoing], offsets: Mapping[int, int]) -> None:
        """Produce `messages`; after their delivery `commit` commits `offsets` (partition to the next offset to read).

        Raises:
            DeliveryFailed: there was no room within the delivery time, or an earlier message was not delivered.
        """
        self._wait(lambda: len(self._under_way) < _LIMIT, "took nothing")
        batch = _Batch(offsets, expected=len(messages))
        for message in messages:
            self._produce(message, batch)
        self._under_way.append(batch)
        self._settle(0.0)

    def _produce(self, message: Outgoing, batch: _Batch) -> None:
        def produced() -> bool:
            try:
                self._producer.produce(
                    message.topic, message.value, message.key, on_delivery=batch.report, headers=message.headers
                )
            except BufferError:
                return False
            return True

        if not produced():
            self._wait(produced, "left the queue full")

    def _wait(self, done: Callable[[], bool], complaint: str) -> None:
        """Wait for deliveries until `done`. Raises DeliveryFailed when that takes too long."""
        start = time.monotonic()
        while not done():
            patience = min(_STOP_SECONDS, self._delivery_seconds) if self._interrupted() else self._delivery_seconds
            if time.monotonic() - start > patience:
                raise DeliveryFailed(f"the broker {complaint} for {patience:g} s")
            self._settle(_POLL_SECONDS)

    def wait_idle(self, seconds: float) -> bool:
        """Wait until everything sent is delivered, and commit it; whether both happened within `seconds`.

        Raises:
            DeliveryFailed: a message was not delivered, or commits have not been answered for too long.
        """
        deadline = time.monotonic() + seconds
        self._settle(0.0)
        while self._under_way and time.monotonic() < deadline:
            self._settle(_POLL_SECONDS)
        return self.commit() and not self._under_way

    @property
    def idle(self) -> bool:
        """Whether everything sent is delivered and committed."""
        return not (self._under_way or self._uncommitted)

    def lose(self, partitions: Iterable[int]) -> None:
        """These partitions are somebody else's now: what is still under way for them is not committed."""
        self._lost.update(partitions)

    def gain(self, partitions: Iterable[int]) -> None:
        """These partitions are ours (again)."""
        self._lost.difference_update(partitions)

    def _settle(self, seconds: float) -> None:
        """Hear of deliveries for up to `seconds`; note the offsets of the batches at the head that are complete."""
        self._producer.poll(seconds)
        while self._under_way and self._under_way[0].delivered == self._under_way[0].expected:
            batch = self._under_way.popleft()
            if batch.error is not None:
                raise DeliveryFailed(f"the broker did not take a message: {batch.error.name()}")
            self._uncommitted.update(batch.offsets)

    def commit(self) -> bool:
        """Commit what was delivered; whether nothing delivered is left to commit.

        Raises:
            DeliveryFailed: commits have not been answered for too long.
        """
        self._settle(0.0)
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
        self.commits += 1
        return True

    def _retry_later(self, error: KafkaError) -> None:
        """Offsets only grow, so the next commit carries this one's."""
        now = time.monotonic()
        self._commit_since = self._commit_since or now
        _log.warning("offsets were not committed, trying again: %s", error.name())
        if now - self._commit_since > self._delivery_seconds:
            raise DeliveryFailed(f"the broker did not take a commit for {self._delivery_seconds:g} s: {error.name()}")
