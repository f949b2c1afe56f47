"""Finds code that blocks the event loop."""

from __future__ import annotations

import asyncio
import gc
import time
from asyncio import events
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class LoopWatch:
    """What the slowest steps of the loop took."""

    blocked: list[str] = field(default_factory=list)
    """One line for each step over the limit."""


@contextmanager
def loop_never_blocked(cpu_seconds: float = 0.005, wall_seconds: float = 0.25) -> Iterator[LoopWatch]:
    """Fail when one step of the event loop takes over `cpu_seconds` of processor time or over `wall_seconds` in all.

    Processor time is what the step itself used, so a busy machine does not fail the test; the longer bound on the
    clock finds steps that
    sleep or wait. Works on asyncio's own loop, whose steps are Python (uvloop's are not).
    """
    watch = LoopWatch()
    run = events.Handle._run
    # What earlier tests left behind is not the server's: a full collection of it would count as the step it falls into.
    gc.collect()
    gc.freeze()

    def measured(handle: Any) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        run(handle)
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        if cpu > cpu_seconds or wall > wall_seconds:
            watch.blocked.append(f"{cpu * 1000:.1f} ms of processor, {wall * 1000:.1f} ms in all: {handle!r}")

    events.Handle._run = measured  # type: ignore[assignment, method-assign]  # the one place that every step passes
    try:
        yield watch
    finally:
        events.Handle._run = run  # type: ignore[method-assign]
        gc.unfreeze()
    if watch.blocked:
        raise AssertionError("the event loop was blocked:\n" + "\n".join(watch.blocked))


async def settle(steps: int = 5) -> None:
    """Let everything that is ready run, without waiting for time to pass."""
    for _ in range(steps):
        await asyncio.sleep(0)
