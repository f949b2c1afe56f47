"""How a draining server ends streams: where nothing is in progress, so that no message is half handled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")


class DrainingError(Exception):
    """The server is stopping, and the stream should end here."""


class StreamGate:
    """Where streams wait for their next message, and where a draining server ends them."""

    def __init__(self) -> None:
        self._draining = False
        self._waiting: set[asyncio.Task[Any]] = set()
        self._interrupted: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """End every stream at its next wait, and those that wait now at once."""
        self._draining = True
        for task in self._waiting:
            self._interrupted.add(task)
            task.cancel()

    async def next(self, messages: AsyncIterator[T]) -> T:
        """The next message.

        Raises:
            StopAsyncIteration: there is none.
            DrainingError: the server is stopping.
        """
        if self._draining:
            raise DrainingError
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("streams are read in tasks")
        self._waiting.add(task)
        try:
            return await anext(messages)
        except asyncio.CancelledError:
            # The call itself may have been cancelled as well: then it is over, drained or not.
            if task in self._interrupted and task.uncancel() == 0:
                raise DrainingError from None
            raise
        finally:
            self._waiting.discard(task)
            self._interrupted.discard(task)
