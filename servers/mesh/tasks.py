"""An owner for background work: no task dies unnoticed."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestartBudget:
    """How often a task may be started again before its death counts as the service's."""

    restarts: int = 0
    """Restarts within `seconds`; 0 never restarts."""
    seconds: float = 300.0
    """Length of the window, seconds."""
    pause_seconds: float = 0.2
    """Pause before the first restart; doubles with each further one in the window, up to 10 s."""


class TaskFailedError(RuntimeError):
    """A background task ended though it should run as long as the service."""


class TaskOwner:
    """Starts named tasks that run as long as the service, and notices when one ends.

    When a task dies beyond its budget, `failure` resolves with `TaskFailedError`: `run` then drains the server and
    exits with status 1,
    and health reports the service as not serving meanwhile.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed = asyncio.Event()
        self._failure: TaskFailedError | None = None

    @property
    def failure(self) -> TaskFailedError | None:
        """The first task's death that was not recovered, or None."""
        return self._failure

    async def failed(self) -> TaskFailedError:
        """Wait until a task has died beyond its budget."""
        await self._failed.wait()
        if self._failure is None:
            raise RuntimeError("a task failure was signalled without a failure")
        return self._failure

    def start(self, name: str, work: Callable[[], Awaitable[None]], *, budget: RestartBudget | None = None) -> None:
        """Start a task.

        Args:
            name: what it does, for logs; unique within the owner.
            work: called for each (re)start; must run until it is cancelled.
            budget: how often it may be started again; None: never.

        Raises:
            ValueError: a task of this name runs already.
        """
        if name in self._tasks:
            raise ValueError(f"a task named {name!r} runs already")
        self._tasks[name] = asyncio.create_task(self._supervise(name, work, budget or RestartBudget()), name=name)

    async def stop(self, within_seconds: float = 5.0) -> None:
        """Cancel all tasks, newest first, and wait for them."""
        tasks = list(reversed(self._tasks.values()))
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=within_seconds)
            for task in pending:
                _log.error("background task did not stop", extra={"task": task.get_name()})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _supervise(self, name: str, work: Callable[[], Awaitable[None]], budget: RestartBudget) -> None:
        starts: list[float] = []
        while True:
            cause: Exception | None = None
            try:
                await work()
            except Exception as error:
                cause = error
            now = time.monotonic()
            starts = [*(start for start in starts if now - start < budget.seconds), now]
            if len(starts) > budget.restarts:
                self._give_up(name, cause)
                return
            _log.warning("background task ended and is restarted", extra={"task": name}, exc_info=cause)
            await asyncio.sleep(min(10.0, budget.pause_seconds * 2 ** (len(starts) - 1)))

    def _give_up(self, name: str, cause: Exception | None) -> None:
        _log.error("background task ended for good", extra={"task": name}, exc_info=cause)
        if self._failure is None:
            self._failure = TaskFailedError(f"background task {name!r} ended")
            self._failure.__cause__ = cause
        self._failed.set()
