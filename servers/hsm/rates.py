"""How many operations there were, and how many of the last minute failed."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_SECONDS: Final = 60
_BUCKET_SECONDS: Final = 1


class OperationRates:
    """Counts operations in buckets of a second. Belongs to one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: deque[list[int]] = deque(maxlen=WINDOW_SECONDS // _BUCKET_SECONDS)  # [second, done, failed]
        self.total = 0
        """Operations since the start."""

    def count(self, done: int, failed: int) -> None:
        """Count operations: `done` in all, `failed` of them without success."""
        second = int(self._clock())
        if not self._buckets or self._buckets[-1][0] != second:
            self._buckets.append([second, 0, 0])
        self._buckets[-1][1] += done
        self._buckets[-1][2] += failed
        self.total += done

    @property
    def error_rate(self) -> float:
        """Share of the last minute's operations that failed, 0 to 1."""
        since = self._clock() - WINDOW_SECONDS
        recent = [bucket for bucket in self._buckets if bucket[0] >= since]
        done = sum(bucket[1] for bucket in recent)
        return sum(bucket[2] for bucket in recent) / done if done else 0.0
