"""Commit after delivery, in order, and only what was delivered."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.runners.outbox import DeliveryFailed, Outbox, Outgoing

MESSAGE = Outgoing("alerts", "key", b"value", [])


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

    def poll(self, _seconds: float) -> None:
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


def _until_committed(outbox: Outbox) -> None:
    while not outbox.commit():
        pass


class Fixture:
    def __init__(self, delivery_seconds: float = 5.0) -> None:
        self.producer, self.consumer = Producer(), Consumer()
        self.stopping = False
        self.outbox = Outbox(
            self.producer,  # type: ignore[arg-type] # a double of the client
            self.consumer,
            "events",
            delivery_seconds,
            lambda: self.stopping,
        )

    def send(self, messages: int, offsets: dict[int, int]) -> None:
        self.outbox.send([MESSAGE] * messages, offsets)


def test_offsets_follow_the_last_delivery_of_their_batch() -> None:
    box = Fixture()
    box.send(3, {0: 10, 1: 20})
    box.producer.deliver(2)
    assert box.outbox.commit()
    assert not box.outbox.idle
    assert box.consumer.committed == []
    box.producer.deliver(1)
    assert box.outbox.commit()
    assert box.outbox.idle
    assert box.consumer.committed == [{0: 10, 1: 20}]


def test_a_later_batch_waits_for_an_earlier_one() -> None:
    box = Fixture()
    box.send(1, {0: 10})
    first = box.producer.under_way.popleft()
    box.send(1, {0: 11, 1: 5})
    box.producer.deliver(1)
    box.outbox.commit()
    assert box.consumer.committed == []
    box.producer.reports.append((first, None))
    assert box.outbox.wait_idle(1.0)
    assert box.consumer.committed == [{0: 11, 1: 5}]


def test_nothing_is_committed_after_a_failed_delivery() -> None:
    box = Fixture()
    box.send(2, {0: 10})
    box.send(1, {0: 11})
    box.producer.deliver(1)
    box.producer.deliver(2, KafkaError(KafkaError._MSG_TIMED_OUT))
    with pytest.raises(DeliveryFailed, match="_MSG_TIMED_OUT"):
        box.outbox.commit()
    assert box.consumer.committed == []


def test_a_batch_without_messages_is_committed_too() -> None:
    box = Fixture()
    box.send(0, {3: 7})
    assert box.outbox.wait_idle(1.0)
    assert box.consumer.committed == [{3: 7}]


def test_a_failed_commit_is_carried_by_the_next() -> None:
    box = Fixture()
    box.consumer.errors.append(KafkaError._TRANSPORT)
    box.send(1, {0: 10})
    box.producer.deliver(1)
    assert not box.outbox.commit()
    assert not box.outbox.idle
    box.send(1, {1: 5})
    box.producer.deliver(1)
    assert box.outbox.wait_idle(1.0)
    assert box.consumer.committed == [{0: 10, 1: 5}]


def test_commits_that_keep_failing_end_the_session() -> None:
    box = Fixture(delivery_seconds=0.0)
    box.consumer.errors.extend([KafkaError._TRANSPORT] * 100)
    box.send(0, {0: 10})
    assert not box.outbox.commit()
    with pytest.raises(DeliveryFailed, match="commit"):
        _until_committed(box.outbox)


def test_partitions_of_others_are_left_alone() -> None:
    box = Fixture()
    box.outbox.lose([1])
    box.send(0, {0: 10, 1: 5})
    assert box.outbox.commit()
    assert box.consumer.committed == [{0: 10}]
    box.outbox.gain([1])
    box.consumer.errors.append(KafkaError.ILLEGAL_GENERATION)
    box.send(0, {0: 11, 1: 6})
    assert box.outbox.commit()
    assert box.outbox.idle


def test_a_full_queue_is_waited_for_with_a_bound() -> None:
    box = Fixture(delivery_seconds=0.05)
    box.producer.full = 3
    box.send(1, {0: 1})
    assert len(box.producer.under_way) == 1
    box.producer.full = 10**9
    with pytest.raises(DeliveryFailed, match="left the queue full"):
        box.send(1, {0: 2})


def test_only_a_few_batches_are_under_way() -> None:
    box = Fixture(delivery_seconds=0.05)
    for number in range(8):
        box.send(1, {0: number})
    with pytest.raises(DeliveryFailed, match="took nothing"):
        box.send(1, {0: 9})
    assert not box.outbox.wait_idle(0.01)


def test_told_to_stop_it_waits_less_but_does_not_give_up_at_once() -> None:
    box = Fixture(delivery_seconds=0.05)
    box.stopping = True
    box.producer.full = 2
    box.send(1, {0: 1})
    assert len(box.producer.under_way) == 1
