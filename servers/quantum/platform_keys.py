"""Keys of the platform itself: what signs tokens and checkpoints, and what templates are encrypted under by default.

They belong to the default organisation, stand under a master key of the platform's own, are made when they are first
needed and rotated by schedule like any other. However many processes start at once, there is one of each kind: the
database refuses a second.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from psycopg import errors

from servers.crypto.algorithms import Algorithm
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from servers.quantum.key_ring import database
from servers.quantum.keys import KeyStatus, KeyType, NewKey, purpose_of

if TYPE_CHECKING:
    from datetime import datetime

    from servers.quantum.key_keeper import KeyKeeper
    from servers.quantum.key_ring import KeyRing
    from servers.quantum.key_store import KeyStore
    from servers.quantum.keys import Key

_MASTER: Final = Algorithm.ML_DSA_65
_LIFETIME_DAYS: Final = 3650
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class PlatformKey:
    """One version of a key of the platform."""

    key_id: str
    """UUID of the key."""
    version: int
    """Number of the version, from 1."""
    algorithm: Algorithm
    key_handle: str
    """The HSM's name for the version."""
    public_key: bytes = field(repr=False)
    """Encoded as the standard says."""
    organization_id: str
    """UUID that the HSM wants with the handle."""
    created_at: datetime
    """When the version was made."""
    decrypts: bool
    """False below the key's `min_decrypt_version`: signatures of such a version count no more."""


class PlatformKeys:
    """Finds the platform's keys, and makes those that are missing."""

    def __init__(self, keeper: KeyKeeper, store: KeyStore, ring: KeyRing, *, rotation_days: int) -> None:
        """`keeper` records in the service's own name; `rotation_days` is the schedule of new keys, 0 for none."""
        self._keeper = keeper
        self._store = store
        self._ring = ring
        self._rotation_days = rotation_days
        self._known: dict[tuple[str, Algorithm], str] = {}
        self._lock = asyncio.Lock()

    async def ensure(self, service_id: str, algorithm: Algorithm) -> PlatformKey:
        """The newest version of the platform's key for a use; made when there is none. Cheap when called often.

        Args:
            service_id: what it is for: 1 to 100 of `[a-z0-9-]`.
            algorithm: any, also Ed25519.

        Raises:
            MeshError: HSM_SEALED, DEPENDENCY_UNAVAILABLE, AUDIT_UNAVAILABLE and what else keeps it from being made.
        """
        key = await self._current(service_id, algorithm)
        return _version(key, 0)

    async def versions(self, service_id: str, algorithm: Algorithm) -> list[PlatformKey]:
        """All versions of the key that `ensure` names, newest first. Cheap when called often.

        Raises:
            MeshError: as `ensure`.
        """
        key = await self._current(service_id, algorithm)
        return [_version(key, place) for place in range(len(key.versions))]

    async def _current(self, service_id: str, algorithm: Algorithm) -> Key:
        place = (service_id, algorithm)
        key = await self._remembered(place)
        if key is not None:
            return key
        async with self._lock:
            key = await self._remembered(place) or await self._found_or_made(service_id, algorithm)
            self._known[place] = key.key_id
            return key

    async def _remembered(self, place: tuple[str, Algorithm]) -> Key | None:
        key_id = self._known.get(place)
        if key_id is None:
            return None
        held = await self._ring.find(DEFAULT_ORGANIZATION_ID, key_id)
        return held.key if held is not None and held.key.status is not KeyStatus.REVOKED else None

    async def _found_or_made(self, service_id: str, algorithm: Algorithm) -> Key:
        master = await self._one(KeyType.MASTER, "", _MASTER, "")
        return await self._one(KeyType.SERVICE, service_id, algorithm, master.key_id)

    async def _one(self, key_type: KeyType, service_id: str, algorithm: Algorithm, parent_key_id: str) -> Key:
        for _ in range(_TRIES):
            with database():
                found = await self._store.platform(DEFAULT_ORGANIZATION_ID, key_type, service_id, algorithm)
            if found:
                return found[0]
            order = NewKey(
                organization_id=DEFAULT_ORGANIZATION_ID,
                key_type=key_type,
                algorithm=algorithm,
                purpose=purpose_of(algorithm),
                service_id=service_id,
                parent_key_id=parent_key_id,
                lifetime_days=_LIFETIME_DAYS,
                rotation_days=self._rotation_days,
                platform=True,
            )
            try:
                await self._keeper.generate(order)
            except errors.UniqueViolation:
                continue  # another process was first: its key is the platform's
        raise RuntimeError(f"the platform's {key_type} key for {service_id!r} is made and revoked all the time")


def _version(key: Key, place: int) -> PlatformKey:
    version = key.versions[place]
    return PlatformKey(
        key.key_id,
        version.number,
        key.algorithm,
        version.key_handle,
        version.public_key,
        key.organization_id,
        version.created_at,
        version.number >= key.min_decrypt_version,
    )
