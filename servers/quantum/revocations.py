"""Ended sessions in memory: a token is checked without asking the database, and never against an old picture.

Every revocation is announced by the database in its own transaction. A process answers from memory only while it has
heard from the database within the last moments and holds all revocations; otherwise each check asks the database, and
is refused when that is away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

import psycopg
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.client.tokens import MAX_LIFETIME_S
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from servers.mesh.errors import MeshError
from servers.quantum.database import CONNECT_SECONDS
from servers.quantum.revocation_store import CHANNEL, catch_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers.quantum.revocation_store import RevokedSession

_log = logging.getLogger(__name__)

HOLDS: Final = timedelta(seconds=MAX_LIFETIME_S + 600)
"""How long a revocation matters: the longest life of a token, and ten minutes for clocks and for a token that was
issued elsewhere while the revocation was on its way.
"""

_HEARTBEAT_SECONDS: Final = 1.0
_SILENCE_SECONDS: Final = 3.0  # the database was not heard for so long: memory counts no more
_ANSWER_SECONDS: Final = 2.0
_PAUSES: Final = (0.1, 5.0)
_PAGE: Final = 250  # rows of a catch-up that are taken in at once: about 2 ms of the loop's time
_ROOM: Final = 0.9  # when memory was full: try again to hold all once so much of it is taken at most
_FORGET_SECONDS: Final = 600.0
_FORGET_ROWS: Final = 10_000


class Truth(Protocol):
    """Where the revocations lie."""

    async def ended(self, organization_id: str, session_id: str) -> bool:
        """Whether the session's tokens were ended."""

    async def forget(self, limit: int) -> int:
        """Delete what matters no more."""


class Revocations:
    """One process's view of the ended sessions of all organisations."""

    def __init__(
        self, store: Truth, dsn: str, *, capacity: int = 200_000, clock: Callable[[], float] = time.time
    ) -> None:
        """`run` must run beside it.

        Args:
            store: the database.
            dsn: for the connection that hears notifications.
            capacity: revocations held at most, about 150 B each; while there are more, each check asks the database.
            clock: seconds since the Unix epoch.
        """
        self._store = store
        self._dsn = dsn
        self._capacity = capacity
        self._clock = clock
        self._ends: dict[bytes, float] = {}
        self._complete = False
        self._heard_at = -_SILENCE_SECONDS

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def in_memory(self) -> bool:
        """Whether checks are answered from memory now."""
        return self._complete and time.monotonic() - self._heard_at < _SILENCE_SECONDS

    async def ended(self, organization_id: str, session_id: str) -> bool:
        """Whether the session's tokens were ended.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, it cannot be found out.
        """
        if self._ends.get(_name(organization_id, session_id), 0.0) > self._clock():
            return True
        if self.in_memory:
            return False
        try:
            return await self._store.ended(organization_id, session_id)
        except (psycopg.Error, PoolTimeout) as error:
            raise MeshError(
                ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "whether the session was ended cannot be found out now",
                retry_after_s=1.0,
            ) from error

    def learn(self, revoked: RevokedSession) -> None:
        """Take in a revocation that this process has just made durable."""
        self._learn(revoked.organization_id, revoked.session_id, revoked.expires_at.timestamp())

    async def run(self) -> None:
        """Listen to the database, for as long as the service runs."""
        pause, longest = _PAUSES
        while True:
            begun = time.monotonic()
            try:
                await self._follow()
            except (psycopg.Error, OSError, TimeoutError) as error:
                _log.warning("revocations are not heard", extra={"cause": type(error).__name__})
            finally:
                self._complete = False
            if time.monotonic() - begun > longest:
                pause = _PAUSES[0]
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    async def forget(self) -> None:
        """Delete what matters no more, here and in the database, for as long as the service runs."""
        while True:
            await asyncio.sleep(_FORGET_SECONDS)
            self._prune()
            try:
                while True:
                    if await self._store.forget(_FORGET_ROWS) < _FORGET_ROWS:
                        break
            except (psycopg.Error, PoolTimeout) as error:
                _log.warning("old revocations are not forgotten yet", extra={"cause": type(error).__name__})

    async def _follow(self) -> None:
        connection = await AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name="behaviorguard-quantum-revocations",
        )
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            # Only now: what is committed from here on is announced.
            await self._catch_up(connection)
            while True:
                async for notice in connection.notifies(timeout=_HEARTBEAT_SECONDS):
                    organization_id, session_id, end = notice.payload.split(" ")
                    self._learn(organization_id, session_id, float(end))
                await self._hear(connection)
                if not self._complete and len(self._ends) < self._capacity * _ROOM:
                    await self._catch_up(connection)

    async def _catch_up(self, connection: AsyncConnection) -> None:
        self._prune()
        after: tuple[str, str] | None = None
        complete = True
        while complete:
            async with asyncio.timeout(_ANSWER_SECONDS):
                page = await catch_up(connection, after, _PAGE)
            complete = all(self._learn(*row) for row in page)
            if len(page) < _PAGE:
                break
            after = page[-1][0], page[-1][1]
            await asyncio.sleep(0)
        if not complete:
            _log.warning("more revocations than memory may hold: each check asks the database")
        await self._hear(connection)
        self._complete = complete

    async def _hear(self, connection: AsyncConnection) -> None:
        """A sign of life; notifications that were sent before it have arrived with it."""
        asked = time.monotonic()
        async with asyncio.timeout(_ANSWER_SECONDS):
            await connection.execute("SELECT 1")
        self._heard_at = asked

    def _learn(self, organization_id: str, session_id: str, end: float) -> bool:
        """Take a revocation in; False where there is no room."""
        name = _name(organization_id, session_id)
        if name not in self._ends and len(self._ends) >= self._capacity:
            self._prune()
            if len(self._ends) >= self._capacity:
                self._complete = False
                return False
        self._ends[name] = end
        return True

    def _prune(self) -> None:
        now = self._clock()
        self._ends = {name: end for name, end in self._ends.items() if end > now}


def _name(organization_id: str, session_id: str) -> bytes:
    return UUID(organization_id).bytes + UUID(session_id).bytes
