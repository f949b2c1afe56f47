"""Use limits: uses are taken from the database in small blocks, before they are used.

A limit is therefore never passed, a crash never gives uses back, and processes side by side leave at most a block each
unused.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.key_ring import database
from servers.quantum.key_rows import OwnedKey

if TYPE_CHECKING:
    from servers.quantum.keys import Key

_BLOCK: Final = 64
_SHARE: Final = 200
_CAPACITY: Final = 4096
_LOCKS: Final = 64


class UseSource(Protocol):
    """Where uses are counted."""

    async def claim_uses(self, key: OwnedKey, version: int, need: int, want: int) -> int:
        """Take `need` to `want` uses; 0 when fewer are left."""


class UseLimits:
    """Counts the uses of keys that have a limit."""

    def __init__(self, source: UseSource) -> None:
        self._source = source
        self._left: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._locks = [asyncio.Lock() for _ in range(_LOCKS)]

    async def take(self, key: Key, count: int = 1) -> None:
        """Take uses of a key's newest version; free for a key without a limit.

        Args:
            key: as it was read; when its limit or version changed since, the database's count as of now decides.
            count: 1 to 64.

        Raises:
            MeshError: KEY_USES_EXHAUSTED, DEPENDENCY_UNAVAILABLE.
        """
        if not key.use_limit:
            return
        place = (key.key_id, key.newest.number)
        async with self._locks[hash(place) % _LOCKS]:
            left = self._left.get(place, 0)
            if left < count:
                left += await self._claim(key, count - left)
            if left < count:
                raise MeshError(
                    ErrorReason.ERROR_REASON_KEY_USES_EXHAUSTED, "the key's version has reached its use limit"
                )
            self._left[place] = left - count
            self._left.move_to_end(place)
            while len(self._left) > _CAPACITY:
                self._left.popitem(last=False)

    async def _claim(self, key: Key, need: int) -> int:
        # A block is half a percent of the limit at most, so that little is left over.
        want = max(need, min(_BLOCK, key.use_limit // _SHARE))
        with database():
            return await self._source.claim_uses(
                OwnedKey(key.organization_id, key.key_id), key.newest.number, need, want
            )
