"""Keys in PostgreSQL: reads, and the small writes that need no audit record. Changes are in `key_changes`.

Every statement that touches a key names its organisation; only background work looks at all of them, and then changes
each under its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from servers.quantum.key_rows import SELECT, SELECT_WHOLE, OwnedKey, listed_key, named, rows_of, whole_key
from servers.quantum.keys import Key, KeyStatus, KeyType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from servers.crypto.algorithms import Algorithm
    from servers.quantum.database import Pool

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys of an organisation to list."""

    organization_id: str
    key_type: KeyType | None
    status: KeyStatus | None


@dataclass(frozen=True, slots=True)
class PageStart:
    """The last key of the page before."""

    created_at_us: int
    """Microseconds since the Unix epoch."""
    key_id: str

    @classmethod
    def after(cls, key: Key) -> PageStart:
        """The place behind a key."""
        return cls((key.created_at - _EPOCH) // timedelta(microseconds=1), key.key_id)

    @property
    def created_at(self) -> datetime:
        """As the database keeps it."""
        return _EPOCH + timedelta(microseconds=self.created_at_us)


class KeyStore:
    """Every method may raise `psycopg.Error` or `psycopg_pool.PoolTimeout`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, organization_id: str, key_id: str) -> Key | None:
        """A key with all its versions."""
        return await self._whole(
            "k.organization_id = %(organization)s AND k.key_id = %(key)s",
            {"organization": organization_id, "key": key_id},
        )

    async def newest(self, organization_id: str, key_type: KeyType, algorithm: Algorithm | None) -> Key | None:
        """The newest active key of a kind; of any algorithm when None."""
        return await self._whole(
            """k.organization_id = %(organization)s AND k.key_type = %(type)s::quantum_key_type_enum
            AND k.status = 'active' AND k.expires_at > now() AND (%(algorithm)s::text IS NULL
            OR k.algorithm = %(algorithm)s) ORDER BY k.created_at DESC, k.key_id DESC LIMIT 1""",
            {"organization": organization_id, "type": key_type.value, "algorithm": algorithm and algorithm.value},
        )

    async def platform(
        self, organization_id: str, key_type: KeyType, service_id: str, algorithm: Algorithm
    ) -> list[Key]:
        """The platform's keys of one use, not revoked, newest first: at most one."""
        rows = await self._rows(
            f"""{SELECT_WHOLE} WHERE k.organization_id = %(organization)s AND k.platform AND k.status <> 'revoked'
            AND k.key_type = %(type)s::quantum_key_type_enum AND k.service_id = %(service)s
            AND k.algorithm = %(algorithm)s ORDER BY k.created_at DESC""",
            {
                "organization": organization_id,
                "type": key_type.value,
                "service": service_id,
                "algorithm": algorithm.value,
            },
        )
        return [whole_key(row) for row in rows]

    async def list_keys(self, wanted: KeyFilter, start: PageStart | None, limit: int) -> list[Key]:
        """A page of keys, newest first, each with its newest version alone."""
        where, values = ["k.organization_id = %(organization)s"], _values(wanted, limit)
        if wanted.key_type is not None:
            where.append("k.key_type = %(type)s::quantum_key_type_enum")
        if wanted.status is KeyStatus.ACTIVE:
            where.append("k.status = 'active' AND k.expires_at > now()")
        elif wanted.status is KeyStatus.EXPIRED:
            where.append("(k.status = 'expired' OR k.status = 'active' AND k.expires_at <= now())")
        elif wanted.status is not None:
            where.append("k.status = %(status)s::key_status_enum")
        if start is not None:
            where.append("(k.created_at, k.key_id) < (%(created)s, %(after)s::uuid)")
            values |= {"created": start.created_at, "after": start.key_id}
        rows = await self._rows(
            f"{SELECT} WHERE {' AND '.join(where)} ORDER BY k.created_at DESC, k.key_id DESC LIMIT %(limit)s",
            values,
        )
        return [listed_key(row) for row in rows]

    async def owner(self, key_id: str, organization_id: str) -> str | None:
        """The organisation that has the key, when it is another one. For the guards, never for the caller."""
        rows = await self._rows(
            "SELECT organization_id::text AS owner FROM quantum_keys.quantum_key_store WHERE key_id = %(key)s"
            " AND organization_id <> %(organization)s",
            {"organization": organization_id, "key": key_id},
        )
        return str(rows[0]["owner"]) if rows else None

    async def claim_uses(self, key: OwnedKey, version: int, need: int, want: int) -> int:
        """Take uses of a key's newest version for this process, for good.

        Returns:
            How many: `need` to `want`; 0 when fewer than `need` are left or the version is not the newest any more.
        """
        rows = await self._rows(
            """
            WITH before AS (
                SELECT key_id, organization_id, uses FROM quantum_keys.quantum_key_store
                WHERE organization_id = %(organization)s AND key_id = %(key)s AND version = %(version)s
                AND use_limit - uses >= %(need)s FOR NO KEY UPDATE)
            UPDATE quantum_keys.quantum_key_store k SET uses = least(k.uses + %(want)s, k.use_limit)
            FROM before b WHERE k.organization_id = b.organization_id AND k.key_id = b.key_id
            RETURNING k.uses - b.uses AS taken
            """,
            {**named(key), "version": version, "need": need, "want": want},
        )
        return int(rows[0]["taken"]) if rows else 0

    async def open_intents(self, keys: Sequence[OwnedKey]) -> None:
        """Note that the HSM is about to be asked for these keys."""
        await self._rows(
            """INSERT INTO quantum_keys.key_intents (key_id, organization_id)
            SELECT unnest(%(keys)s::uuid[]), %(organization)s RETURNING key_id""",
            {"keys": [key.key_id for key in keys], "organization": keys[0].organization_id},
        )

    async def withdraw_intent(self, key: OwnedKey) -> None:
        """The HSM was not asked, or made nothing."""
        await self._rows(
            """DELETE FROM quantum_keys.key_intents WHERE organization_id = %(organization)s AND key_id = %(key)s
            RETURNING key_id""",
            named(key),
        )

    async def abandon_intent(self, key: OwnedKey) -> bool:
        """From now on the key cannot be stored; False when it was stored, or nothing of it is known."""
        rows = await self._rows(
            """UPDATE quantum_keys.key_intents SET abandoned = true
            WHERE organization_id = %(organization)s AND key_id = %(key)s RETURNING key_id""",
            named(key),
        )
        return bool(rows)

    async def abandon_old_intents(self, older_than: timedelta, limit: int) -> list[OwnedKey]:
        """Give up what was begun so long ago that nobody waits for it any more, and everything given up before."""
        rows = await self._rows(
            """UPDATE quantum_keys.key_intents SET abandoned = true WHERE key_id IN (
                SELECT key_id FROM quantum_keys.key_intents WHERE abandoned OR created_at < now() - %(age)s
                ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
            RETURNING organization_id::text, key_id::text""",
            {"age": older_than, "limit": limit},
        )
        return [OwnedKey(**row) for row in rows]

    async def close_intent(self, key: OwnedKey) -> None:
        """Nothing is left of the key in the HSM."""
        await self._rows(
            """DELETE FROM quantum_keys.key_intents WHERE organization_id = %(organization)s AND key_id = %(key)s
            AND abandoned RETURNING key_id""",
            named(key),
        )

    async def claim_rotations(self, lease: timedelta, limit: int) -> list[OwnedKey]:
        """Keys that are due, for this process alone until the lease ends."""
        rows = await self._rows(
            """UPDATE quantum_keys.quantum_key_store SET rotation_claimed_until = now() + %(lease)s WHERE key_id IN (
                SELECT key_id FROM quantum_keys.quantum_key_store
                WHERE status = 'active' AND next_rotation_at <= now()
                AND (rotation_claimed_until IS NULL OR rotation_claimed_until <= now())
                ORDER BY next_rotation_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
            RETURNING organization_id::text, key_id::text""",
            {"lease": lease, "limit": limit},
        )
        return [OwnedKey(**row) for row in rows]

    async def past_their_end(self, limit: int) -> list[OwnedKey]:
        """Keys that have expired and are not marked so yet."""
        rows = await self._rows(
            """SELECT organization_id::text, key_id::text FROM quantum_keys.quantum_key_store
            WHERE status = 'active' AND expires_at <= now() ORDER BY expires_at LIMIT %(limit)s""",
            {"limit": limit},
        )
        return [OwnedKey(**row) for row in rows]

    async def undestroyed(self, limit: int) -> list[OwnedKey]:
        """Revoked keys whose private halves the HSM still has."""
        rows = await self._rows(
            """SELECT organization_id::text, key_id::text FROM quantum_keys.quantum_key_store
            WHERE status = 'revoked' AND destroyed_at IS NULL ORDER BY revoked_at LIMIT %(limit)s""",
            {"limit": limit},
        )
        return [OwnedKey(**row) for row in rows]

    async def _whole(self, where: str, values: Mapping[str, Any]) -> Key | None:
        rows = await self._rows(f"{SELECT_WHOLE} WHERE {where}", values)
        return whole_key(rows[0]) if rows else None

    async def _rows(self, query: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of a statement. `query` is a text of this module; every value is a parameter."""
        async with self._pool.connection() as connection:
            return await rows_of(connection, query, values)


def _values(wanted: KeyFilter, limit: int) -> dict[str, Any]:
    return {
        "organization": wanted.organization_id,
        "type": wanted.key_type and wanted.key_type.value,
        "status": wanted.status and wanted.status.value,
        "limit": limit,
    }
