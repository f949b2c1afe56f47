"""Keys at hand: what this process read of the database lately, so that an encryption costs no query.

An entry is believed for a few seconds, and only while this process hears the database's notifications: a change by
another process drops it within milliseconds, and at the latest (a connection that died without a word) when its time
is over. While nothing is heard, every look-up asks the database. A change by this process is dropped before it is
answered. Redis is never asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from servers.crypto.algorithms import Kind
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.health import HitRate
from servers.quantum.key_changes import CHANNEL
from servers.quantum.keys import KeyStatus, KeyType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from datetime import datetime

    from servers.crypto.algorithms import Algorithm
    from servers.crypto.provider import CryptoProvider, KemPublicKey
    from servers.quantum.keys import Key

_log = logging.getLogger(__name__)

_LOCKS: Final = 64
_LISTEN_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5
_CONNECT_SECONDS: Final = 5


class KeySource(Protocol):
    """Where the truth lies."""

    async def get(self, organization_id: str, key_id: str) -> Key | None:
        """A key with all its versions."""

    async def newest(self, organization_id: str, key_type: KeyType, algorithm: Algorithm | None) -> Key | None:
        """The newest active key of a kind."""


class HeldKey:
    """A key with its newest version's public half parsed, once."""

    __slots__ = ("_provider", "_public", "key")

    def __init__(self, key: Key, provider: CryptoProvider) -> None:
        self.key = key
        self._provider = provider
        self._public: KemPublicKey | None = None

    @property
    def public_key(self) -> KemPublicKey:
        """The newest version's, of a key for encryption."""
        if self._public is None:
            self._public = self._provider.kem_public_key(self.key.algorithm, self.key.newest.public_key)
        return self._public


@dataclass(slots=True)
class _Entry:
    held: HeldKey
    until: float


class KeyRing:
    """Finds keys; every look-up names the organisation."""

    def __init__(
        self,
        source: KeySource,
        provider: CryptoProvider,
        dsn: str,
        *,
        capacity: int = 4096,
        believed_s: float = 5.0,
        on_missing: Callable[[str, str], None] = lambda _organization, _key: None,
    ) -> None:
        """Set the ring up; `run` must run beside it.

        Args:
            source: the database.
            provider: parses public keys.
            dsn: for the connection that hears notifications.
            capacity: keys held at most.
            believed_s: how long an entry is believed, seconds.
            on_missing: told (organisation, key id) when somebody asks for a key that the organisation does not have.
        """
        self._source = source
        self._provider = provider
        self._dsn = dsn
        self._capacity = capacity
        self._believed_s = believed_s
        self._on_missing = on_missing
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._locks = [asyncio.Lock() for _ in range(_LOCKS)]
        self._changes = 0
        self._listening = False
        self.hits = HitRate()
        """How often memory answers."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def listening(self) -> bool:
        """Whether changes by other processes are heard."""
        return self._listening

    async def get(self, organization_id: str, key_id: str) -> HeldKey:
        """A key of the organisation, whatever its status.

        Raises:
            MeshError: NOT_FOUND, also for another organisation's key; DEPENDENCY_UNAVAILABLE.
        """
        key_id = key_id.lower()
        held = await self.find(organization_id, key_id)
        if held is None:
            raise no_such_key()
        return held

    async def find(self, organization_id: str, key_id: str) -> HeldKey | None:
        """As `get`; None when the organisation has no such key."""
        held = await self._find((organization_id, key_id), lambda: self._source.get(organization_id, key_id))
        if held is None:
            self._on_missing(organization_id, key_id)
        return held

    async def newest_service_key(self, organization_id: str, algorithm: Algorithm) -> HeldKey:
        """The newest active service key for an algorithm.

        Raises:
            MeshError: NOT_FOUND without one, DEPENDENCY_UNAVAILABLE.
        """
        held = await self._find(
            (organization_id, f"newest {algorithm}"),
            lambda: self._source.newest(organization_id, KeyType.SERVICE, algorithm),
        )
        if held is None:
            raise MeshError(
                ErrorReason.ERROR_REASON_NOT_FOUND,
                f"the organisation has no active service key for {algorithm}: generate one, or name a key",
            )
        return held

    async def signing_key(self, organization_id: str, key_id: str, now: datetime) -> HeldKey:
        """A key that may sign what a caller hands in.

        Raises:
            MeshError: NOT_FOUND, also for the platform's own keys; UNSUPPORTED_ALGORITHM, KEY_REVOKED, KEY_EXPIRED.
        """
        held = await self.get(organization_id, key_id)
        if held.key.platform:
            raise no_such_key()
        if held.key.algorithm.kind is not Kind.SIGNATURE:
            raise MeshError(ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM, f"{held.key.algorithm} does not sign")
        require_usable(held.key, now)
        return held

    def drop(self, organization_id: str, key_id: str) -> None:
        """Forget a key, and what was found to be the organisation's newest."""
        self._changes += 1
        self._entries.pop((organization_id, key_id), None)
        for place in [
            place for place in self._entries if place[0] == organization_id and place[1].startswith("newest")
        ]:
            del self._entries[place]

    async def run(self) -> None:
        """Hear the database's notifications, for as long as the service runs."""
        while True:
            try:
                await self._listen()
            except (psycopg.Error, TimeoutError) as error:
                _log.warning("changes of keys are not heard", extra={"cause": type(error).__name__})
            finally:
                self._listening = False
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self) -> None:
        connection = await AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name="behaviorguard-quantum-keys",
        )
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            # What changed before is not in anything read from now on.
            self._changes += 1
            self._entries.clear()
            self._listening = True
            while True:
                async for notice in connection.notifies(timeout=_LISTEN_SECONDS):
                    organization_id, _, key_id = notice.payload.partition(" ")
                    self.drop(organization_id, key_id)
                # Without a notification there is only this to notice a connection that died.
                async with asyncio.timeout(_LISTEN_SECONDS):
                    await connection.execute("SELECT 1")

    async def _find(self, place: tuple[str, str], load: Callable[[], Awaitable[Key | None]]) -> HeldKey | None:
        entry = self._entries.get(place)
        if entry is not None and self._listening and time.monotonic() < entry.until:
            self._entries.move_to_end(place)
            self.hits.hit()
            return entry.held
        self.hits.miss()
        async with self._locks[hash(place) % _LOCKS]:
            entry = self._entries.get(place)
            if entry is not None and self._listening and time.monotonic() < entry.until:
                return entry.held
            return await self._load(place, load)

    async def _load(self, place: tuple[str, str], load: Callable[[], Awaitable[Key | None]]) -> HeldKey | None:
        changes = self._changes
        with database():
            key = await load()
        if key is None:
            return None
        held = HeldKey(key, self._provider)
        # Something changed while the database was asked: the answer may be from before.
        if changes == self._changes and self._listening:
            self._entries[place] = _Entry(held, time.monotonic() + self._believed_s)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
        return held


@contextmanager
def database() -> Iterator[None]:
    """What the database's faults become for a caller."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        raise MeshError(
            ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the database cannot be reached", retry_after_s=1.0
        ) from error


def no_such_key() -> MeshError:
    """The same for a key that does not exist and one of another organisation."""
    return MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "the organisation has no such key")


def require_usable(key: Key, now: datetime) -> None:
    """Refuse a key that may not encrypt or sign any more.

    Raises:
        MeshError: KEY_REVOKED, KEY_EXPIRED, WRONG_STATE.
    """
    status = key.status_at(now)
    if status is KeyStatus.REVOKED:
        raise key_revoked()
    if status is KeyStatus.EXPIRED:
        raise MeshError(ErrorReason.ERROR_REASON_KEY_EXPIRED, "the key is past its end")
    if status is not KeyStatus.ACTIVE:
        raise MeshError(ErrorReason.ERROR_REASON_WRONG_STATE, "a newer key has taken this one's place")


def key_revoked() -> MeshError:
    """The key was ended."""
    return MeshError(ErrorReason.ERROR_REASON_KEY_REVOKED, "the key was revoked")
