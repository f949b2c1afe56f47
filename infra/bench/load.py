"""`python -m infra.bench.load`: a process that writes events at a steady rate, or as fast as it can.

Each event is accepted, by its own record, when its turn was due: a generator that falls behind makes latencies worse,
never better.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from confluent_kafka import KafkaError, Message, Producer

from infra.bench.events import event_id, templates, user_id

TEMPLATES = 500
_TICK_SECONDS = 0.001


class Load:
    """Sends numbered events of one series."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._templates = templates(TEMPLATES)
        self._users = [user_id(number).encode() for number in range(arguments.users)]
        self._failed = 0
        self._producer = Producer(
            {
                "bootstrap.servers": arguments.bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "partitioner": "murmur2_random",
                "linger.ms": 2,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 100_000,
                "socket.nagle.disable": True,
            }
        )

    def run(self) -> dict[str, float]:
        """Send everything and wait until the broker has it; what was sent, how fast, and how late the latest was."""
        wanted, rate, start = self._arguments.events, self._arguments.rate, self._arguments.start
        sent, late = 0, 0.0
        while sent < wanted:
            now = time.time()
            due = min(wanted, int((now - start) * rate)) if rate else min(wanted, sent + 1000)
            while sent < due:
                accepted = start + sent / rate if rate else now
                late = max(late, now - accepted)
                self._send(sent, accepted)
                sent += 1
            self._producer.poll(0)
            if rate:
                time.sleep(_TICK_SECONDS)
        left = self._producer.flush(60)
        took = time.time() - start
        return {"sent": sent, "unsent": left + self._failed, "per_second": sent / took, "late_ms": late * 1000}

    def _send(self, number: int, accepted: float) -> None:
        # A stride that shares no factor with the number of users spreads them, and each comes equally often.
        user = self._users[number * 7919 % len(self._users)]
        after_ms = int((accepted - self._arguments.start) * 1000)
        event = event_id(self._arguments.series, after_ms, number).encode()
        value = self._templates[number % TEMPLATES].fill(user, event, int(accepted * 1000))
        while True:
            try:
                self._producer.produce(self._arguments.topic, value, user, on_delivery=self._report)
            except BufferError:
                self._producer.poll(0.01)
            else:
                return

    def _report(self, error: KafkaError | None, _message: Message) -> None:
        self._failed += error is not None


def main() -> None:
    """Send as the arguments say and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--series", type=int, required=True)
    parser.add_argument("--start", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="events a second; 0: as fast as possible")
    parser.add_argument("--users", type=int, default=100_000)
    arguments = parser.parse_args()
    load = Load(arguments)
    time.sleep(max(0.0, arguments.start - time.time()))
    sys.stdout.write(json.dumps(load.run()) + "\n")


if __name__ == "__main__":
    main()
