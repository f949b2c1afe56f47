"""Request budgets: so many calls of one RPC for one person in 60 seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_SECONDS: Final = 60.0


class RateLimiter(Protocol):
    """Counts calls against budgets."""

    async def admit(self, subject: str, method: str, budget: int) -> float | None:
        """Count one call; returns None when it is within the budget, else the seconds after which to try again.

        Args:
            subject: whose budget: a person's id, or a workload's name.
            method: full name of the RPC.
            budget: calls in one window.
        """


class WindowLimiter:
    """Counts in this process, in fixed windows, in bounded memory.

    Past `capacity` subjects in one window, newcomers share one budget, so that made-up subjects cannot fill the memory.
    """

    def __init__(self, *, capacity: int = 200_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._clock = clock
        self._counts: dict[tuple[str, str], int] = {}
        self._window_ends = 0.0

    async def admit(self, subject: str, method: str, budget: int) -> float | None:
        """See `RateLimiter`."""
        now = self._clock()
        if now >= self._window_ends:
            self._counts.clear()
            self._window_ends = now + WINDOW_SECONDS
        key = (subject, method)
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= self._capacity:
                key = ("", method)
            count = self._counts.get(key, 0)
        if count >= budget:
            return self._window_ends - now
        self._counts[key] = count + 1
        return None


class Unlimited:
    """Admits everything: for benchmarks and for tests of something else."""

    async def admit(self, subject: str, method: str, budget: int) -> float | None:
        """See `RateLimiter`."""
        del subject, method, budget
        return None
