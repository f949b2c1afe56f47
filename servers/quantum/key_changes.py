"""Changes of keys in PostgreSQL, each in the transaction that also writes its audit record. Every statement names the
organisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from psycopg.types.json import Jsonb

from servers.quantum.key_rows import SELECT_WHOLE, OwnedKey, named, rows_of, whole_key
from servers.quantum.keys import Key, NewKey, ends_at, next_rotation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import AsyncConnection

    from servers.quantum.ports import GeneratedKey

CHANNEL: Final = "quantum_keys"
"""PostgreSQL's notifications of changed keys: "<organisation> <key id>"."""

_REVOKE_KEY: Final = """
    UPDATE quantum_keys.quantum_key_store SET status = 'revoked', revoked_at = now(), revoke_reason = %(reason)s,
        next_rotation_at = NULL
    WHERE organization_id = %(organization)s AND key_id = ANY(%(level)s::uuid[]) AND status <> 'revoked'
    RETURNING key_id::text
"""
_REVOKE_CHILDREN: Final = _REVOKE_KEY.replace("key_id = ANY", "parent_key_id = ANY")


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """What to change of a key; None leaves it."""

    min_decrypt_version: int | None = None
    expires_at: datetime | None = None
    rotation_days: int | None = None
    use_limit: int | None = None
    metadata: Mapping[str, str] | None = None


async def insert_key(
    connection: AsyncConnection[Any], order: NewKey, key_id: str, made: GeneratedKey, companion_key_id: str
) -> bool:
    """Store a key that the HSM made, if its intent still stands.

    Returns:
        False when the intent was abandoned meanwhile: the HSM's key is being destroyed.

    Raises:
        psycopg.errors.UniqueViolation: the platform has such a key already.
    """
    owned = OwnedKey(order.organization_id, key_id)
    intent = await rows_of(
        connection,
        """DELETE FROM quantum_keys.key_intents WHERE organization_id = %(organization)s AND key_id = %(key)s
        AND NOT abandoned RETURNING key_id""",
        named(owned),
    )
    if not intent:
        return False
    await rows_of(
        connection,
        """
        INSERT INTO quantum_keys.quantum_key_store (key_id, organization_id, key_type, algorithm, public_key,
            key_handle, security_level, purpose, parent_key_id, created_at, expires_at, metadata, service_id, device_id,
            lifetime_days, rotation_days, next_rotation_at, use_limit, companion_key_id, platform)
        VALUES (%(key)s, %(organization)s, %(type)s::quantum_key_type_enum, %(algorithm)s, %(public)s, %(handle)s,
            %(level)s, %(purpose)s::key_purpose_enum, %(parent)s, %(created)s, %(expires)s, %(metadata)s, %(service)s,
            %(device)s, %(lifetime)s, %(rotation)s, %(next)s, %(limit)s, %(companion)s, %(platform)s)
        RETURNING key_id
        """,
        {
            **named(owned),
            "type": order.key_type.value,
            "algorithm": order.algorithm.value,
            "public": made.public_key,
            "handle": made.key_handle,
            "level": order.algorithm.security_level,
            "purpose": order.purpose.value,
            "parent": order.parent_key_id or None,
            "created": made.generated_at,
            "expires": ends_at(made.generated_at, order.lifetime_days),
            "metadata": Jsonb(dict(order.metadata)),
            "service": order.service_id,
            "device": order.device_id,
            "lifetime": order.lifetime_days,
            "rotation": order.rotation_days,
            "next": next_rotation(made.generated_at, order.rotation_days),
            "limit": order.use_limit,
            "companion": companion_key_id or None,
            "platform": order.platform,
        },
    )
    await _insert_version(connection, owned, 1, made)
    await _notify(connection, owned)
    return True


async def hold_parent(connection: AsyncConnection[Any], parent: OwnedKey) -> bool:
    """Keep the parent as it is until the transaction ends; False when it is not active (any more)."""
    return bool(
        await rows_of(
            connection,
            """SELECT key_id FROM quantum_keys.quantum_key_store WHERE organization_id = %(organization)s
            AND key_id = %(key)s AND status = 'active' AND expires_at > now() FOR SHARE""",
            named(parent),
        )
    )


async def add_version(
    connection: AsyncConnection[Any], key: Key, made: GeneratedKey, min_decrypt_version: int
) -> Key | None:
    """Give a key its next version; the key's life and its uses begin again.

    Args:
        connection: of the transaction.
        key: as it was read.
        made: what the HSM made for the version after its newest.
        min_decrypt_version: 0 leaves it.

    Returns:
        The key after it; None when it was rotated by somebody else or revoked since it was read.
    """
    owned, number, now = OwnedKey(key.organization_id, key.key_id), key.newest.number + 1, datetime.now(UTC)
    changed = await rows_of(
        connection,
        """
        UPDATE quantum_keys.quantum_key_store SET version = %(version)s, public_key = %(public)s,
            key_handle = %(handle)s, rotated_at = %(now)s, status = 'active', uses = 0,
            expires_at = greatest(expires_at, %(expires)s),
            next_rotation_at = %(next)s, rotation_claimed_until = NULL,
            min_decrypt_version = greatest(min_decrypt_version, %(oldest)s)
        WHERE organization_id = %(organization)s AND key_id = %(key)s AND version = %(version)s - 1
            AND status <> 'revoked'
        RETURNING key_id
        """,
        {
            **named(owned),
            "version": number,
            "public": made.public_key,
            "handle": made.key_handle,
            "now": now,
            "expires": ends_at(now, key.lifetime_days),
            "next": next_rotation(now, key.rotation_days),
            "oldest": min_decrypt_version,
        },
    )
    if not changed:
        return None
    await _insert_version(connection, owned, number, made)
    return await _changed(connection, owned)


async def change_key(connection: AsyncConnection[Any], owned: OwnedKey, changes: KeyChanges) -> Key | None:
    """Change what is set; None when the key is revoked, or the least version is above its newest.

    An expired key with an end in the future is active again.
    """
    given = changes.rotation_days is not None
    done = await rows_of(
        connection,
        """
        UPDATE quantum_keys.quantum_key_store SET
            min_decrypt_version = coalesce(%(oldest)s, min_decrypt_version),
            expires_at = coalesce(%(expires)s, expires_at),
            status = CASE WHEN %(expires)s::timestamptz > now() THEN 'active' ELSE status END,
            rotation_days = coalesce(%(days)s, rotation_days),
            next_rotation_at = CASE WHEN %(scheduled)s THEN coalesce(rotated_at, created_at)
                + nullif(%(days)s::int, 0) * interval '1 day' ELSE next_rotation_at END,
            use_limit = coalesce(%(limit)s, use_limit),
            metadata = coalesce(%(metadata)s, metadata)
        WHERE organization_id = %(organization)s AND key_id = %(key)s AND status <> 'revoked'
            AND version >= coalesce(%(oldest)s, 1)
        RETURNING key_id
        """,
        {
            **named(owned),
            "oldest": changes.min_decrypt_version,
            "expires": changes.expires_at,
            "days": changes.rotation_days,
            "scheduled": given,
            "limit": changes.use_limit,
            "metadata": None if changes.metadata is None else Jsonb(dict(changes.metadata)),
        },
    )
    return await _changed(connection, owned) if done else None


async def revoke(connection: AsyncConnection[Any], owned: OwnedKey, reason: str) -> list[str]:
    """End a key and all below it; the ids of those that were not ended before, the key's own first.

    Level by level: once a key is marked here, nobody can put another one under it, so that each statement sees all
    children there will ever be.
    """
    ended: list[str] = []
    statement, level = _REVOKE_KEY, [owned.key_id]
    while level:
        values = {"organization": owned.organization_id, "level": level, "reason": reason}
        level = [row["key_id"] for row in await rows_of(connection, statement, values)]
        statement = _REVOKE_CHILDREN
        ended += level
    for key_id in ended:
        await _notify(connection, OwnedKey(owned.organization_id, key_id))
    return ended


async def expire(connection: AsyncConnection[Any], owned: OwnedKey) -> bool:
    """Mark a key that is past its end; False when it is not, or is marked already."""
    done = await rows_of(
        connection,
        """UPDATE quantum_keys.quantum_key_store SET status = 'expired'
        WHERE organization_id = %(organization)s AND key_id = %(key)s AND status = 'active' AND expires_at <= now()
        RETURNING key_id""",
        named(owned),
    )
    if done:
        await _notify(connection, owned)
    return bool(done)


async def mark_destroyed(connection: AsyncConnection[Any], owned: OwnedKey) -> bool:
    """Note that the HSM has destroyed a revoked key; False when that was noted before."""
    return bool(
        await rows_of(
            connection,
            """UPDATE quantum_keys.quantum_key_store SET destroyed_at = now()
            WHERE organization_id = %(organization)s AND key_id = %(key)s AND status = 'revoked'
            AND destroyed_at IS NULL RETURNING key_id""",
            named(owned),
        )
    )


async def current(connection: AsyncConnection[Any], owned: OwnedKey) -> Key:
    """The key as the transaction sees it; it must be there."""
    rows = await rows_of(
        connection, f"{SELECT_WHOLE} WHERE k.organization_id = %(organization)s AND k.key_id = %(key)s", named(owned)
    )
    return whole_key(rows[0])


async def _changed(connection: AsyncConnection[Any], owned: OwnedKey) -> Key:
    await _notify(connection, owned)
    return await current(connection, owned)


async def _insert_version(connection: AsyncConnection[Any], owned: OwnedKey, number: int, made: GeneratedKey) -> None:
    await rows_of(
        connection,
        """INSERT INTO quantum_keys.key_versions (organization_id, key_id, version, public_key, key_handle, entropy,
            hsm_operation_id, created_at)
        VALUES (%(organization)s, %(key)s, %(version)s, %(public)s, %(handle)s, %(entropy)s, %(operation)s, %(made)s)
        RETURNING version""",
        {
            **named(owned),
            "version": number,
            "public": made.public_key,
            "handle": made.key_handle,
            "entropy": made.entropy[:255],
            "operation": made.operation_id,
            "made": made.generated_at,
        },
    )


async def _notify(connection: AsyncConnection[Any], owned: OwnedKey) -> None:
    await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{owned.organization_id} {owned.key_id}"))
