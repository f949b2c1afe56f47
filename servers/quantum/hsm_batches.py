"""Many callers' items in few calls of the HSM."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

_log = logging.getLogger(__name__)

BATCH_ITEMS: Final = 64
"""Items of one RPC at most, as the contract says."""

_BATCH_BYTES: Final = 3 * 1024 * 1024
_RETRY_AFTER_SECONDS: Final = 1.0
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    """One caller's item."""

    item: Item
    size: int
    done: asyncio.Future[Result] = field(repr=False)


class Batches(Generic[Item, Result]):
    """Puts concurrent callers' items into one RPC: the first goes at once, what comes while the RPCs in flight are at
    their limit goes together in the next.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Coroutine[Any, Any, list[Result | MeshError]]],
        size: Callable[[Item], int],
        in_flight: int,
        waiting: int,
    ) -> None:
        self._send = send
        self._size = size
        self._in_flight = in_flight
        self._most_waiting = waiting
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """The item's result, or its error."""
        return await self._enqueue(item)

    async def submit_all(self, items: Sequence[Item]) -> list[Result | MeshError]:
        """Result or error of each item."""
        results = await asyncio.gather(*(self._enqueue_or_fail(item) for item in items), return_exceptions=True)
        found: list[Result | MeshError] = []
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MeshError):
                raise result
            found.append(result)
        return found

    async def close(self) -> None:
        """Take no more, and end what is in flight."""
        self._closed = True
        for task in tuple(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        while self._waiting:
            _fail(self._waiting.popleft(), hsm_away())

    def _enqueue_or_fail(self, item: Item) -> asyncio.Future[Result]:
        try:
            return self._enqueue(item)
        except MeshError as error:
            failed: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    def _enqueue(self, item: Item) -> asyncio.Future[Result]:
        if self._closed:
            raise hsm_away()
        if len(self._waiting) >= self._most_waiting:
            raise MeshError(
                ErrorReason.ERROR_REASON_OVERLOADED,
                "too many calls wait for the HSM",
                retry_after_s=_RETRY_AFTER_SECONDS,
            )
        waiting = _Waiting(item, self._size(item), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if not self._scheduled:
            self._scheduled = True
            # Whoever else is ready in this step of the loop comes along.
            asyncio.get_running_loop().call_soon(self._flush)
        return waiting.done

    def _flush(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._sending) < self._in_flight:
            batch = self._take()
            if not batch:
                continue
            # In a context of its own: one caller's deadline and correlation id are not the others'.
            work = self._run(batch)
            task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not self._closed:
            self._flush()

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        room = _BATCH_BYTES
        while self._waiting and len(batch) < BATCH_ITEMS:
            first = self._waiting[0]
            if first.done.done():  # whoever asked has given up
                self._waiting.popleft()
                continue
            if batch and first.size > room:
                break
            room -= first.size
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        try:
            results = await self._send([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise hsm_away()  # noqa: TRY301 -- as any other failure of the HSM
        except MeshError as error:
            results = [error] * len(batch)
        except asyncio.CancelledError:
            results = [hsm_away()] * len(batch)
        except Exception:
            _log.exception("a call of the HSM failed")
            results = [MeshError(ErrorReason.ERROR_REASON_INTERNAL, "the HSM could not be called")] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, MeshError):
                _fail(waiting, result)
            elif not waiting.done.done():
                waiting.done.set_result(result)


def hsm_away() -> MeshError:
    """What a call fails with that the HSM did not answer."""
    return MeshError(
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the HSM is away", retry_after_s=_RETRY_AFTER_SECONDS
    )


def _fail(waiting: _Waiting[Any, Any], error: MeshError) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
        waiting.done.exception()  # whoever waits gets it; with nobody left to wait there is nobody to tell
