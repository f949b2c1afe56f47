"""Input and output rates, the time of every stage, and what was refused: for `/metrics` and `/health`."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.metrics import Meter

STAGES = ("deserialize", "describe", "window", "score", "explain", "serialize", "produce")
"""Parts of a batch's way that are timed; models are timed one by one beside them."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_SIZES = (1, 4, 16, 64, 128, 256, 512, 1023, 1024)
_RATE_SECONDS = 10.0


class Monitor:
    """The pipeline's instruments. Every series exists at zero from the start, so that the first increase is seen."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        name = "behaviorguard.pipeline"
        self._events = meter.create_counter(f"{name}.events", "{event}", "Events by what became of them")
        self._refused = meter.create_counter(
            f"{name}.dead_letters", "{event}", "Messages that could not be scored, by reason"
        )
        self._levels = meter.create_counter(f"{name}.alerts", "{alert}", "Alerts by threat level")
        self._stages = meter.create_histogram(
            f"{name}.stage.duration",
            "s",
            "Time of one stage for one batch",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._batches = meter.create_histogram(
            f"{name}.batch.size", "{event}", "Events in a batch", explicit_bucket_boundaries_advisory=_SIZES
        )
        self._ages = meter.create_histogram(
            f"{name}.batch.age",
            "s",
            "From acceptance to alert, of a batch's oldest event",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._model_rows = meter.create_counter(f"{name}.model.events", "{event}", "Events that a model scored")
        self._model_seconds = meter.create_counter(f"{name}.model.duration", "s", "Time inside a model")
        self._model_cpu = meter.create_counter(
            f"{name}.model.cpu", "s", "Processor time inside a model, of the calling thread"
        )
        for kind in ("received", "scored", "duplicate", "rebuilt"):
            self._events.add(0, {"kind": kind})
        self._rate = RateMeter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of a batch's way."""
        start = self._clock()
        yield
        self._stages.record(self._clock() - start, {"stage": name})

    def count(self, kind: str, events: int) -> None:
        """Count events as "received", "scored", "duplicate" or "rebuilt"."""
        if events:
            self._events.add(events, {"kind": kind})
        if kind == "scored":
            self._rate.add(events, self._clock())
            self._batches.record(events)

    def refused(self, reason: str) -> None:
        """Count one dead letter."""
        self._refused.add(1, {"reason": reason})

    def alerts(self, level: str, number: int) -> None:
        """Count alerts of a level."""
        self._levels.add(number, {"level": level})

    def age(self, seconds: float) -> None:
        """Take note of the age of a batch's oldest event when its alerts were handed to the producer."""
        self._ages.record(seconds)

    def model(self, model: str, rows: int, seconds: float, cpu_seconds: float) -> None:
        """Take note of one model run."""
        attributes = {"model": model}
        self._model_rows.add(rows, attributes)
        self._model_seconds.add(seconds, attributes)
        self._model_cpu.add(cpu_seconds, attributes)

    def events_per_second(self) -> float:
        """Events scored a second, over the last ten seconds."""
        return self._rate.read(self._clock())


class RateMeter:
    """Events a second over the last ten seconds. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, events: int, now: float) -> None:
        """Count `events` at `now`, seconds on any clock that never runs back."""
        with self._lock:
            self._seen.append((now, events))
            self._forget(now)

    def read(self, now: float) -> float:
        """The rate as of `now`."""
        with self._lock:
            self._forget(now)
            return sum(events for _, events in self._seen) / _RATE_SECONDS

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0][0] < now - _RATE_SECONDS:
            self._seen.popleft()
