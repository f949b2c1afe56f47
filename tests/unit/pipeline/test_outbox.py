"""Commit after delivery, in order, and only what was delivered."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.runners.outbox import DeliveryFailed, Outbox, Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = Outgoing("alerts", "key", b"value", [])
WAIT = 5.0


class Producer:
    """Takes messages, and reports them when the test says so."""

    def __init__(self) -> None:
        self.under_way: deque[Any] = deque()
        self.reports: deque[tuple[Any, KafkaError | None]] = deque()
        self.full = 0

    def produce(self, topic: str, value: bytes, key: str, *, on_delivery: Any, headers: Any) -> None:
        if self.full:
            self.full -= 1
            raise BufferError
        self.under_way.append(on_delivery)

    def deliver(self, number: int, error: KafkaError | None = None) -> None:
        for _ in range(number):
            self.reports.append((self.under_way.popleft(), error))

    def poll(self, seconds: float) -> None:
        threading.Event().wait(seconds / 10)
        while self.reports:
            report, error = self.reports.popleft()
            report(error, None)


class Consumer:
    def __init__(self) -> None:
        self.committed: list[dict[int, int]] = []
        self.errors: deque[int] = deque()

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert not asynchronous
        if self.errors:
            raise KafkaException(KafkaError(self.errors.popleft()))
        self.committed.append({offset.partition: offset.offset for offset in offsets})


@contextmanager
def running(delivery_seconds: float = WAIT) -> Iterator[tuple[Outbox, Producer, Consumer, list[DeliveryFailed]]]:
    producer, consumer = Producer(), Consumer()
    failures: list[DeliveryFailed] = []
    outbox = Outbox(producer, consumer, "events", delivery_seconds)  # type: ignore[arg-type] # doubles of the client

    def run() -> None:
        try:
            outbox.run()
        except DeliveryFailed as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outbox, producer, consumer, failures
    finally:
        outbox.stop()
        thread.join(WAIT)
    assert not thread.is_alive()


def test_offsets_follow_the_last_delivery_of_their_batch() -> None:
    with running() as (outbox, producer, consumer, _):
        outbox.send([MESSAGE] * 3, {0: 10, 1: 20})
        producer.deliver(2)
        assert not outbox.wait_idle(0.1)
        assert consumer.committed == []
        producer.deliver(1)
        assert outbox.wait_idle(WAIT)
        assert consumer.committed == [{0: 10, 1: 20}]


def test_a_later_batch_waits_for_an_earlier_one() -> None:
    with running() as (outbox, producer, consumer, _):
        outbox.send([MESSAGE], {0: 10})
        first = producer.under_way.popleft()
        outbox.send([MESSAGE], {0: 11, 1: 5})
        producer.deliver(1)
        assert not outbox.wait_idle(0.1)
        assert consumer.committed == []
        producer.reports.append((first, None))
        assert outbox.wait_idle(WAIT)
        assert consumer.committed[-1] == {0: 11, 1: 5}


def test_nothing_is_committed_after_a_failed_delivery() -> None:
    with running() as (outbox, producer, consumer, failures):
        outbox.send([MESSAGE] * 2, {0: 10})
        outbox.send([MESSAGE], {0: 11})
        producer.deliver(1)
        producer.deliver(2, KafkaError(KafkaError._MSG_TIMED_OUT))
        assert not outbox.wait_idle(0.2)
        assert consumer.committed == []
        assert len(failures) == 1


def test_a_batch_without_messages_is_committed_too() -> None:
    with running() as (outbox, _, consumer, _failures):
        outbox.send([], {3: 7})
        assert outbox.wait_idle(WAIT)
        assert consumer.committed == [{3: 7}]


def test_a_failed_commit_is_carried_by_the_next() -> None:
    with running() as (outbox, producer, consumer, _):
        consumer.errors.append(KafkaError._TRANSPORT)
        outbox.send([MESSAGE], {0: 10})
        producer.deliver(1)
        assert not outbox.wait_idle(WAIT)
        outbox.send([MESSAGE], {1: 5})
        producer.deliver(1)
        assert outbox.wait_idle(WAIT)
        assert {key: value for commit in consumer.committed for key, value in commit.items()} == {0: 10, 1: 5}


def test_partitions_of_others_are_left_alone() -> None:
    with running() as (outbox, producer, consumer, _):
        outbox.lose([1])
        outbox.send([MESSAGE], {0: 10, 1: 5})
        producer.deliver(1)
        assert outbox.wait_idle(WAIT)
        assert consumer.committed == [{0: 10}]
        consumer.errors.append(KafkaError.ILLEGAL_GENERATION)
        outbox.send([], {0: 11})
        assert outbox.wait_idle(WAIT)


def test_a_full_queue_is_waited_for_with_a_bound() -> None:
    with running(delivery_seconds=0.2) as (outbox, producer, _, _failures):
        producer.full = 3
        outbox.send([MESSAGE], {0: 1})
        assert len(producer.under_way) == 1
        producer.full = 10**9
        with pytest.raises(DeliveryFailed, match="stayed full"):
            outbox.send([MESSAGE], {0: 2})


def test_only_a_few_batches_are_under_way() -> None:
    with running(delivery_seconds=0.2) as (outbox, _, _, _failures):
        for number in range(8):
            outbox.send([MESSAGE], {0: number})
        with pytest.raises(DeliveryFailed, match="took nothing"):
            outbox.send([MESSAGE], {0: 9})
