"""`python -m infra.bench.relay`: reads a topic and writes every message unchanged to another, and nothing else.

The yardstick of the pipeline: same client, same settings, same promise (offsets are committed after delivery), no work
on the content.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, Message, Producer

from pipeline.runners.health import Health
from pipeline.runners.kafka import COMMIT_SECONDS, consumer_options, producer_options
from pipeline.runners.outbox import Outbox, Outgoing
from pipeline.settings import PipelineSettings

if TYPE_CHECKING:
    from collections.abc import Iterable


def relay(settings: PipelineSettings, events: int) -> None:
    """Move `events` messages from the events topic to the alerts topic; the output's key is the event's id, for the
    probe to count."""
    consumer = Consumer(consumer_options(settings, Health(lambda: 0.0)))
    outbox = Outbox(
        Producer(producer_options(settings)), consumer, settings.events_topic, settings.pipeline_delivery_seconds
    )
    consumer.subscribe([settings.events_topic])
    moved, commit_at = 0, 0.0
    while moved < events:
        if time.monotonic() >= commit_at:
            outbox.commit()
            commit_at = time.monotonic() + COMMIT_SECONDS
        messages = consumer.consume(1, 0.2)
        messages += (
            consumer.consume(settings.pipeline_batch_events - 1, settings.pipeline_window_seconds) if messages else []
        )
        sound = [message for message in messages if message.error() is None]
        moved += len(sound)
        offsets = {message.partition() or 0: (message.offset() or 0) + 1 for message in sound}
        outbox.send(list(_unchanged(settings.alerts_topic, sound)), offsets)
    outbox.wait_idle(30)
    consumer.close()


def _unchanged(topic: str, messages: Iterable[Message]) -> Iterable[Outgoing]:
    for message in messages:
        value = message.value() or b""
        start = value.index(b'"event_id":"') + 12
        yield Outgoing(topic, value[start : start + 36], value, [])


def main() -> None:
    """Relay with the pipeline's settings from the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, required=True)
    relay(PipelineSettings(), parser.parse_args().events)


if __name__ == "__main__":
    main()
