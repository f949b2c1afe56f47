"""What must happen to keys without anybody asking: rotation by schedule, expiry, and cleaning up in the HSM.

Safe with any number of processes: each step is claimed in the database, or changes nothing the second time.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg_pool import PoolTimeout

from servers.mesh.errors import MeshError
from servers.quantum import key_changes
from servers.quantum.recording import Action

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from psycopg import AsyncConnection

    from servers.crypto.algorithms import Algorithm
    from servers.quantum.key_cache import KeyCache
    from servers.quantum.key_keeper import KeyKeeper
    from servers.quantum.key_ring import KeyRing
    from servers.quantum.key_rows import OwnedKey
    from servers.quantum.key_store import KeyStore
    from servers.quantum.platform_keys import PlatformKeys
    from servers.quantum.ports import Hsm
    from servers.quantum.recording import Recorder

_log = logging.getLogger(__name__)

_CLAIM: Final = timedelta(seconds=60)
_BATCH: Final = 32
_FAULTS: Final = (MeshError, psycopg.Error, PoolTimeout)


@dataclass(frozen=True, slots=True)
class UpkeepParts:
    """What upkeep works with."""

    store: KeyStore
    hsm: Hsm
    ring: KeyRing
    keeper: KeyKeeper
    """Records in the service's own name."""
    recorder: Recorder
    """Likewise."""
    platform: PlatformKeys


class KeyUpkeep:
    """Looks after keys every few seconds."""

    def __init__(
        self, parts: UpkeepParts, *, needed: Sequence[tuple[str, Algorithm]], every_s: float, given_up_s: float
    ) -> None:
        """Set it up; `run` does the work.

        Args:
            parts: what it works with.
            needed: service id and algorithm of the platform's keys that must be there.
            every_s: pause between two rounds, seconds.
            given_up_s: age after which a key that was begun and not stored is given up: longer than any call may take.
        """
        self._store = parts.store
        self._keeper = parts.keeper
        self._hsm = parts.hsm
        self._recorder = parts.recorder
        self._ring = parts.ring
        self._platform = parts.platform
        self._needed = tuple(needed)
        self._every_s = every_s
        self._given_up = timedelta(seconds=given_up_s)

    async def run(self) -> None:
        """Work until cancelled; what fails is tried again in the next round."""
        while True:
            await self.round()
            await asyncio.sleep(self._every_s)

    async def round(self) -> None:
        """Do everything that is due once."""
        for name, work in (
            ("platform keys", self._make_needed),
            ("expiry", self._expire),
            ("rotation", self._rotate),
            ("destruction", self._destroy_revoked),
            ("orphans", self._destroy_orphans),
        ):
            try:
                await work()
            except _FAULTS as error:
                _log.warning("upkeep of keys has to wait", extra={"step": name, "cause": _cause(error)})

    async def _make_needed(self) -> None:
        for service_id, algorithm in self._needed:
            await self._platform.ensure(service_id, algorithm)

    async def _expire(self) -> None:
        for owned in await self._store.past_their_end(_BATCH):

            async def change(connection: AsyncConnection[Any], owned: OwnedKey = owned) -> None:
                if not await key_changes.expire(connection, owned):
                    raise _AlreadyDoneError

            await self._record(Action("expire", owned.organization_id, owned.key_id), change)
            self._ring.drop(owned.organization_id, owned.key_id)

    async def _rotate(self) -> None:
        for owned in await self._store.claim_rotations(_CLAIM, _BATCH):
            key = await self._store.get(owned.organization_id, owned.key_id)
            if key is None:
                continue
            try:
                await self._keeper.rotate(key, scheduled=True)
            except MeshError as error:  # others may fare better; this one is tried again when its claim ends
                _log.warning("a key that is due was not rotated", extra={"key_id": key.key_id, "cause": _cause(error)})

    async def _destroy_revoked(self) -> None:
        for owned in await self._store.undestroyed(_BATCH):
            gone = await self._hsm.destroy(owned.key_id, owned.organization_id)

            async def change(connection: AsyncConnection[Any], owned: OwnedKey = owned) -> None:
                if not await key_changes.mark_destroyed(connection, owned):
                    raise _AlreadyDoneError

            data = {"destroyed_versions": gone.versions}
            await self._record(Action("revoke", owned.organization_id, owned.key_id, data, gone.operation_id), change)

    async def _destroy_orphans(self) -> None:
        for owned in await self._store.abandon_old_intents(self._given_up, _BATCH):
            await self._hsm.destroy(owned.key_id, owned.organization_id)
            await self._store.close_intent(owned)

    async def _record(self, action: Action, change: Callable[[AsyncConnection[Any]], Awaitable[None]]) -> None:
        try:
            await self._recorder.commit(action, change)
        except _AlreadyDoneError:
            return


class HsmWatch:
    """Tells Redis how the HSM is."""

    def __init__(self, hsm: Hsm, cache: KeyCache, connection_id: str, *, every_s: float) -> None:
        self._hsm = hsm
        self._cache = cache
        self._connection_id = connection_id
        self._every_s = every_s

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                self._cache.hsm_seen(self._connection_id, await self._hsm.status())
            except MeshError:
                _log.debug("the HSM does not answer")
            await asyncio.sleep(self._every_s)


class _AlreadyDoneError(Exception):
    """Another process was first: there is nothing to record."""


def _cause(error: Exception) -> str:
    return error.reason_name if isinstance(error, MeshError) else type(error).__name__
