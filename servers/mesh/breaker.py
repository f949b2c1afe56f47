"""A circuit breaker: stops calling a dependency that mostly fails, and tries it again now and then."""

from __future__ import annotations

import time
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_SECONDS: Final = 60.0
_BUCKET_SECONDS: Final = 5.0


class BreakerState(StrEnum):
    """What a breaker does with calls."""

    CLOSED = "closed"
    """Lets them through."""
    OPEN = "open"
    """Refuses them."""
    HALF_OPEN = "half_open"
    """Lets one through to see whether the dependency is back."""


class CircuitBreaker:
    """Opens when over half of the calls of the last minute failed; lets one trial through every 60 s until one
    succeeds.

    Not safe for several threads: it belongs to one event loop. Call `before_call`, then exactly one of `succeeded`,
    `failed`, `abandoned`.
    """

    def __init__(
        self,
        name: str,
        *,
        minimum_calls: int = 20,
        failure_ratio: float = 0.5,
        retry_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, BreakerState], None] | None = None,
    ) -> None:
        self.name = name
        self._minimum_calls = minimum_calls
        self._failure_ratio = failure_ratio
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        self._retry_at = 0.0
        self._buckets: deque[list[float]] = deque()  # [start, successes, failures], oldest first, at most 13

    @property
    def state(self) -> BreakerState:
        """What the breaker does with the next call."""
        return self._state

    def before_call(self) -> None:
        """Admit a call.

        Raises:
            MeshError: CIRCUIT_OPEN, with the time after which to try again.
        """
        if self._state is BreakerState.CLOSED:
            return
        now = self._clock()
        if now < self._retry_at:
            raise MeshError(
                ErrorReason.ERROR_REASON_CIRCUIT_OPEN,
                f"{self.name} is failing and is not called for now",
                retry_after_s=self._retry_at - now,
            )
        # This call is the trial. The next is due later, so that a trial whose outcome is never reported cannot lock
        # the breaker.
        self._retry_at = now + self._retry_seconds
        self._change(BreakerState.HALF_OPEN)

    def succeeded(self) -> None:
        """The dependency answered."""
        if self._state is BreakerState.CLOSED:
            self._bucket()[1] += 1
        elif self._state is BreakerState.HALF_OPEN:
            self._buckets.clear()
            self._change(BreakerState.CLOSED)

    def failed(self) -> None:
        """The dependency did not answer, or answered with a fault of its own."""
        if self._state is BreakerState.HALF_OPEN:
            self._open()
        elif self._state is BreakerState.CLOSED:
            self._bucket()[2] += 1
            successes = sum(bucket[1] for bucket in self._buckets)
            failures = sum(bucket[2] for bucket in self._buckets)
            calls = successes + failures
            if calls >= self._minimum_calls and failures > self._failure_ratio * calls:
                self._open()

    def abandoned(self) -> None:
        """The call ended without saying anything about the dependency (the caller gave up): a trial may follow at
        once."""
        if self._state is BreakerState.HALF_OPEN:
            self._retry_at = self._clock()
            self._change(BreakerState.OPEN)

    def _open(self) -> None:
        self._buckets.clear()
        self._retry_at = self._clock() + self._retry_seconds
        self._change(BreakerState.OPEN)

    def _change(self, state: BreakerState) -> None:
        if state is not self._state:
            self._state = state
            if self._on_change is not None:
                self._on_change(self.name, state)

    def _bucket(self) -> list[float]:
        """The counts of the current five seconds; those older than a minute are dropped."""
        now = self._clock()
        while self._buckets and self._buckets[0][0] <= now - WINDOW_SECONDS:
            self._buckets.popleft()
        if not self._buckets or now - self._buckets[-1][0] >= _BUCKET_SECONDS:
            self._buckets.append([now, 0, 0])
        return self._buckets[-1]
