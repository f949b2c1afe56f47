"""`python -m infra.bench.probe`: a process that reads a topic to the last expected message, and says when each arrived.

It reads keys alone: an event's id says when the event was accepted. Prints "ready" once it follows the topic, then
progress on stderr, at the end JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from infra.bench.events import read_event_id

_MOST = 1000
_MS_BOUND = 2**20


class Probe:
    """Counts distinct events of one series and notes how long each was under way."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._seen = np.zeros(arguments.events, np.bool_)
        self._latency = np.zeros(arguments.events, np.float32)
        self._arrivals: list[tuple[float, int]] = []
        self._duplicates = 0
        self._consumer = Consumer(
            {
                "bootstrap.servers": arguments.bootstrap,
                "group.id": "behaviorguard-bench-probe",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 5,
                "fetch.queue.backoff.ms": 5,
                "fetch.min.bytes": 1,
                "socket.nagle.disable": True,
            }
        )
        topic = self._consumer.list_topics(arguments.topic, timeout=10).topics[arguments.topic]
        self._consumer.assign([TopicPartition(topic.topic, p, OFFSET_BEGINNING) for p in topic.partitions])

    def run(self) -> dict[str, Any]:
        """Read until everything came or nothing came for the patience; latencies in milliseconds, rate in events a
        second."""
        wanted, patience = self._arguments.events, self._arguments.patience
        count, last, said = 0, time.time(), time.time()
        while count < wanted and time.time() - last < (patience if count else self._arguments.first):
            # One message ends the wait, and all that came with it are taken without waiting for more.
            messages = self._consumer.consume(1, 0.2)
            if not messages:
                continue
            messages += self._consumer.consume(_MOST, 0)
            last = time.time()
            count += self._take([message.key() for message in messages if message.error() is None], last)
            if last - said > 1:
                said = last
                sys.stderr.write(f"{count}\n")
                sys.stderr.flush()
        self._consumer.close()
        return self._summary(count)

    def _take(self, keys: list[bytes | None], now: float) -> int:
        fresh = 0
        for key in keys:
            series, after_ms, number = read_event_id(key or b"")
            if series != self._arguments.series:
                continue
            if self._seen[number]:
                self._duplicates += 1
                continue
            self._seen[number] = True
            self._latency[number] = (now - self._arguments.start) * 1000 - after_ms
            fresh += 1
        self._arrivals.append((now, fresh))
        return fresh

    def _summary(self, count: int) -> dict[str, Any]:
        latency = self._latency[self._seen]
        p50, p99, p999 = np.percentile(latency, (50, 99, 99.9)).tolist() if count else (0.0, 0.0, 0.0)
        times = np.array([t for t, _ in self._arrivals])
        cumulated = np.cumsum([n for _, n in self._arrivals])
        # Without the first tenth, in which both sides still start.
        begin = int(np.searchsorted(cumulated, count / 10)) if count else 0
        span = float(times[-1] - times[begin]) if count else 0.0
        rate = float(cumulated[-1] - cumulated[begin]) / span if span else 0.0
        return {
            "received": count,
            "lost": self._arguments.events - count,
            "duplicates": self._duplicates,
            "p50_ms": p50,
            "p99_ms": p99,
            "p999_ms": p999,
            "max_ms": float(latency.max()) if count else 0.0,
            "per_second": rate,
        }


def main() -> None:
    """Read as the arguments say and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--series", type=int, required=True)
    parser.add_argument("--start", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--first", type=float, default=60.0, help="seconds to wait for the first event")
    parser.add_argument(
        "--patience", type=float, default=10.0, help="seconds without an event after which the rest is lost"
    )
    probe = Probe(parser.parse_args())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdout.write(json.dumps(probe.run()) + "\n")


if __name__ == "__main__":
    main()
