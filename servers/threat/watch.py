"""The alert stream inside one process: every stored result in the stream's order, to everybody who follows it here.

Results that this process stored arrive by `publish`, right after their transaction; those of other instances by the
database's notifications. Whatever is not the very next position is read from the database, so that the order never
breaks and nothing is missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import psycopg
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from psycopg import AsyncConnection

from servers.mesh.errors import MeshError
from servers.threat.store import CHANNEL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from servers.threat.rows import StoredAlert, StreamFilter

_log = logging.getLogger(__name__)

_PAGE: Final = 200  # results read at once for a reader: about 2 ms of the loop's time
_GAP_PAGE: Final = 48  # the same for everybody, learning included: about 5 ms
_QUIET_SECONDS: Final = 1.0
_CONNECT_SECONDS: Final = 5
_FIND_SECONDS: Final = 3.0


class StreamStore(Protocol):
    """Where the stream lies."""

    async def head(self) -> int:
        """The last position."""

    async def alerts_after(
        self, position: int, upto: int, wanted: StreamFilter | None, limit: int
    ) -> list[StoredAlert]:
        """A piece of the stream."""


class _Reader:
    """One follower's bounded queue."""

    def __init__(self, wanted: StreamFilter, after: int, capacity: int) -> None:
        self.wanted = wanted
        self._after = after
        self._capacity = capacity
        self._waiting: deque[StoredAlert] = deque()
        self._ready = asyncio.Event()
        self._too_slow = False

    def offer(self, result: StoredAlert) -> None:
        if self._too_slow or result.position <= self._after or not self.wanted.admits(result.alert):
            return
        if len(self._waiting) >= self._capacity:
            # What waits is still delivered, in order; after it the reader is told to resume.
            self._too_slow = True
        else:
            self._waiting.append(result)
        self._ready.set()

    async def next(self) -> StoredAlert:
        while not self._waiting:
            if self._too_slow:
                raise MeshError(
                    ErrorReason.ERROR_REASON_OVERLOADED,
                    "alerts come faster than this reader takes them: resume from the last token",
                    retry_after_s=0.1,
                )
            self._ready.clear()
            await self._ready.wait()
        return self._waiting.popleft()


class AlertHub:
    """One process's view of the alert stream."""

    def __init__(
        self,
        store: StreamStore,
        dsn: str,
        *,
        instance: str,
        queue: int,
        readers: int,
        on_results: Callable[[Sequence[StoredAlert]], None],
        on_erased: Callable[[str], None],
    ) -> None:
        """`on_results` gets every result in the stream's order; `on_erased` every person that another instance
        erased.
        """
        self._store = store
        self._dsn = dsn
        self._instance = instance
        self._queue = queue
        self._most_readers = readers
        self._on_results = on_results
        self._on_erased = on_erased
        self._readers: set[_Reader] = set()
        self._position: int | None = None
        self._found = asyncio.Event()
        self._announced = 0
        self._behind = asyncio.Event()

    @property
    def readers(self) -> int:
        """Followers at the moment."""
        return len(self._readers)

    @property
    def position(self) -> int | None:
        """The last position that was handed out; None until the stream's end was found."""
        return self._position

    def publish(self, stored: Sequence[StoredAlert]) -> None:
        """Hand out results that this process has just stored."""
        if not stored:
            return
        self._announced = max(self._announced, stored[-1].position)
        if self._position is not None and stored[0].position == self._position + 1:
            self._advance(stored)
        else:
            self._behind.set()

    async def start(self, after: int | None) -> int:
        """The position after which a new reader begins: what it asks for, else the stream's end.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, the database is away; OVERLOADED, too many readers.
        """
        if self._position is None:
            try:
                async with asyncio.timeout(_FIND_SECONDS):
                    await self._found.wait()
            except TimeoutError:
                raise _away() from None
        if len(self._readers) >= self._most_readers:
            raise MeshError(ErrorReason.ERROR_REASON_OVERLOADED, "too many readers follow alerts", retry_after_s=5.0)
        return (self._position or 0) if after is None else after

    async def follow(self, wanted: StreamFilter, position: int) -> AsyncGenerator[StoredAlert]:
        """Results that a reader wants: those after `position`, then each as it is stored.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, the database is away; OVERLOADED, this reader is too slow.
        """
        # No await between the last look at the stream's end and joining it: nothing falls in between.
        while position < (end := self._position or 0):
            page = await self._read(position, end, wanted)
            for result in page:
                yield result
            position = page[-1].position if len(page) == _PAGE else end
        reader = _Reader(wanted, position, self._queue)
        self._readers.add(reader)
        try:
            while True:
                yield await reader.next()
        finally:
            self._readers.discard(reader)

    async def run(self) -> None:
        """Listen to the other instances and close gaps, for as long as the service runs."""
        closing = asyncio.create_task(self.close_gaps(), name="alert-gaps")
        listening = asyncio.create_task(self._listen(), name="alert-listener")
        try:
            done, _ = await asyncio.wait({closing, listening}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (closing, listening):
                task.cancel()
            await asyncio.gather(closing, listening, return_exceptions=True)

    async def _listen(self) -> None:
        pause = 0.1
        while True:
            try:
                async with await AsyncConnection.connect(
                    self._dsn,
                    autocommit=True,
                    connect_timeout=_CONNECT_SECONDS,
                    application_name="behaviorguard-threat-listener",
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}".encode())
                    # Only now: what is stored from here on is announced.
                    head = await self._store.head()
                    self.begin_at(head)
                    self._announce(head)
                    pause = 0.1
                    await self._take(connection)
            except (psycopg.Error, OSError) as error:
                _log.warning("the alert stream's notifications are interrupted", extra={"cause": type(error).__name__})
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    async def _take(self, connection: AsyncConnection) -> None:
        async for notice in connection.notifies():
            kind, _, rest = notice.payload.partition(" ")
            instance, _, value = rest.partition(" ")
            if kind == "erased":
                if instance != self._instance:
                    self._on_erased(value)
            elif instance != self._instance:
                self._announce(int(value))
            else:
                self._announced = max(self._announced, int(value))

    def _announce(self, position: int) -> None:
        self._announced = max(self._announced, position)
        self._behind.set()

    def begin_at(self, position: int) -> None:
        """The stream's end was found: what comes after it is new."""
        if self._position is None:
            self._position = position
            self._found.set()

    async def close_gaps(self) -> None:
        """Read what `publish` could not hand out itself, for as long as the service runs."""
        while True:
            # Look also when nothing was said: a result of ours may have been stored without being published.
            with suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_SECONDS):
                    await self._behind.wait()
            self._behind.clear()
            try:
                while self._position is not None and self._position < self._announced:
                    upto = self._announced
                    page = await self._store.alerts_after(self._position, upto, None, _GAP_PAGE)
                    self._advance(page)
                    if len(page) < _GAP_PAGE:
                        self._position = max(self._position, upto)
            except psycopg.Error as error:
                _log.warning("the alert stream cannot be read", extra={"cause": type(error).__name__})
                self._behind.set()
                await asyncio.sleep(_QUIET_SECONDS)

    def _advance(self, results: Sequence[StoredAlert]) -> None:
        position = self._position or 0
        new = [result for result in results if result.position > position]
        if not new:
            return
        self._position = new[-1].position
        for reader in self._readers:
            for result in new:
                reader.offer(result)
        self._on_results(new)

    async def _read(self, after: int, upto: int, wanted: StreamFilter) -> list[StoredAlert]:
        try:
            return await self._store.alerts_after(after, upto, wanted, _PAGE)
        except psycopg.Error as error:
            raise _away() from error


def _away() -> MeshError:
    return MeshError(
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "alerts cannot be read at the moment", retry_after_s=1.0
    )
