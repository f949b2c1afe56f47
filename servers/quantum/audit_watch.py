"""Following a stream of an organisation: the audit trail, or its security events.

Readers read the database in pages after their own place, so that nothing is kept for them in memory, whatever their
speed. Where the streams of the organisations that somebody follows end is asked once for all readers, four times a
second, and at once when this process has written.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import psycopg
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from psycopg_pool import PoolTimeout

from servers.mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.25
_AWAY_POLLS: Final = 2


class Read(Protocol[T_co]):
    """Reads a page of a stream."""

    def __call__(self, organization_id: str, after: int, upto: int, limit: int) -> Awaitable[Sequence[T_co]]:
        """Items after one place up to another, in order, at most `limit`."""


@dataclass(slots=True)
class _Stream:
    """The stream of an organisation that somebody follows."""

    head: int = 0
    readers: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class Streams:
    """One kind of stream in this process; `run` must run as one of the service's tasks.

    Args:
        heads: says where streams end; those without items are missing.
        readers: followers at once; more are refused.
        lag: items that a follower may fall behind after it has caught up once; then it is cut off.
        page: items that are read at once.
    """

    def __init__(
        self,
        heads: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]],
        *,
        readers: int = 200,
        lag: int = 10_000,
        page: int = 100,
    ) -> None:
        self._heads = heads
        self._most_readers = readers
        self._lag = lag
        self._page = page
        self._streams: dict[str, _Stream] = {}
        self._wake = asyncio.Event()
        self._failures = 0

    @property
    def readers(self) -> int:
        """Followers at the moment."""
        return sum(stream.readers for stream in self._streams.values())

    def poke(self, organizations: Mapping[str, int] | None = None) -> None:
        """Something was written here: look at once where somebody follows it."""
        if organizations is None or not self._streams.keys().isdisjoint(organizations):
            self._wake.set()

    async def head(self, organization_id: str) -> int:
        """Where a stream ends.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE.
        """
        try:
            return (await self._heads([organization_id])).get(organization_id, 0)
        except (psycopg.Error, PoolTimeout) as error:
            raise _away() from error

    async def follow(
        self, organization_id: str, after: int, read: Read[T], place: Callable[[T], int]
    ) -> AsyncGenerator[T]:
        """Items after a place, then each as it comes.

        Args:
            organization_id: whose stream.
            after: the place after which to begin.
            read: reads a page; may leave items out.
            place: the place of an item.

        Raises:
            MeshError: OVERLOADED, there are too many readers or this one is too slow; DEPENDENCY_UNAVAILABLE.
        """
        if self.readers >= self._most_readers:
            raise MeshError(ErrorReason.ERROR_REASON_OVERLOADED, "too many readers follow", retry_after_s=5.0)
        stream = self._streams.setdefault(organization_id, _Stream())
        stream.readers += 1
        try:
            caught_up = False
            while True:
                head = await self._beyond(stream, after)
                if caught_up and head - after > self._lag:
                    raise _too_slow()
                page = await self._read(read, organization_id, after, head)
                for item in page:
                    yield item
                    after = place(item)
                if len(page) < self._page:
                    after = max(after, head)
                caught_up = caught_up or after >= head
        finally:
            stream.readers -= 1
            if stream.readers == 0:
                self._streams.pop(organization_id, None)

    async def run(self) -> None:
        """Look where the followed streams end, until cancelled."""
        while True:
            if not self._streams:
                await self._wake.wait()
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._wake.wait()
            self._wake.clear()
            await self._look()

    async def _look(self) -> None:
        try:
            heads = await self._heads(list(self._streams))
        except (psycopg.Error, PoolTimeout) as error:
            self._failures += 1
            if self._failures == _AWAY_POLLS:
                _log.warning("streams cannot be followed", extra={"cause": type(error).__name__})
            if self._failures >= _AWAY_POLLS:
                for followed in self._streams.values():
                    followed.moved.set()
            return
        self._failures = 0
        for organization_id, head in heads.items():
            stream = self._streams.get(organization_id)
            if stream is not None and head > stream.head:
                stream.head = head
                stream.moved.set()

    async def _beyond(self, stream: _Stream, after: int) -> int:
        """Wait until the stream goes on after a place; returns where it ends."""
        self._wake.set()
        while stream.head <= after:
            stream.moved.clear()
            await stream.moved.wait()
            if self._failures >= _AWAY_POLLS:
                raise _away()
        return stream.head

    async def _read(self, read: Read[T], organization_id: str, after: int, upto: int) -> Sequence[T]:
        try:
            return await read(organization_id, after, upto, self._page)
        except (psycopg.Error, PoolTimeout) as error:
            raise _away() from error


def _too_slow() -> MeshError:
    return MeshError(
        ErrorReason.ERROR_REASON_OVERLOADED,
        "the stream goes on faster than this reader takes it: resume from the last token",
        retry_after_s=0.1,
    )


def _away() -> MeshError:
    return MeshError(
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the audit trail cannot be read now", retry_after_s=1.0
    )
