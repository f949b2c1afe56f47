"""Keys as rows: which columns are read, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg.rows import dict_row

from servers.crypto.algorithms import Algorithm
from servers.quantum.keys import Key, KeyPurpose, KeyStatus, KeyType, KeyVersion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import AsyncConnection

_COLUMNS: Final = """
    k.key_id::text, k.organization_id::text, k.key_type::text, k.algorithm, k.purpose::text, k.status::text,
    k.public_key, k.key_handle, k.version, k.min_decrypt_version, coalesce(k.parent_key_id::text, '') AS parent_key_id,
    k.service_id, k.device_id, k.created_at, k.expires_at, k.rotated_at, k.revoked_at, k.next_rotation_at,
    k.rotation_days, k.lifetime_days, k.use_limit, k.uses, coalesce(k.companion_key_id::text, '') AS companion_key_id,
    k.platform, coalesce(k.metadata, '{}') AS metadata
"""
_VERSIONS: Final = """
    CROSS JOIN LATERAL (
        SELECT array_agg(version ORDER BY version DESC) AS numbers,
            array_agg(public_key ORDER BY version DESC) AS public_keys,
            array_agg(key_handle ORDER BY version DESC) AS handles,
            array_agg(created_at ORDER BY version DESC) AS made
        FROM quantum_keys.key_versions v WHERE v.organization_id = k.organization_id AND v.key_id = k.key_id) AS v
"""
SELECT_WHOLE: Final = (
    f"SELECT {_COLUMNS}, v.numbers, v.public_keys, v.handles, v.made FROM quantum_keys.quantum_key_store k {_VERSIONS}"  # noqa: S608 - this module's own text
)
SELECT: Final = f"SELECT {_COLUMNS} FROM quantum_keys.quantum_key_store k"  # noqa: S608


@dataclass(frozen=True, slots=True)
class OwnedKey:
    """A key's id with its organisation."""

    organization_id: str
    key_id: str


async def rows_of(connection: AsyncConnection[Any], query: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a statement. `query` is a text of these modules; every value is a parameter."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.encode(), values)
        return await cursor.fetchall()


def named(owned: OwnedKey) -> dict[str, Any]:
    """The parameters that name a key."""
    return {"organization": owned.organization_id, "key": owned.key_id}


def listed_key(row: dict[str, Any]) -> Key:
    """A row of `SELECT`: a key with its newest version alone."""
    made = row["rotated_at"] or row["created_at"]
    return _key(row, (KeyVersion(row["version"], bytes(row["public_key"]), row["key_handle"], made),))


def whole_key(row: dict[str, Any]) -> Key:
    """A row of `SELECT_WHOLE`: a key with all its versions."""
    versions = zip(row["numbers"], row["public_keys"], row["handles"], row["made"], strict=True)
    return _key(row, tuple(KeyVersion(number, bytes(raw), handle, made) for number, raw, handle, made in versions))


def _key(row: dict[str, Any], versions: tuple[KeyVersion, ...]) -> Key:
    return Key(
        key_id=row["key_id"],
        organization_id=row["organization_id"],
        key_type=KeyType(row["key_type"]),
        algorithm=Algorithm(row["algorithm"]),
        purpose=KeyPurpose(row["purpose"]),
        status=KeyStatus(row["status"]),
        versions=versions,
        min_decrypt_version=row["min_decrypt_version"],
        parent_key_id=row["parent_key_id"],
        service_id=row["service_id"],
        device_id=row["device_id"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        rotated_at=row["rotated_at"],
        revoked_at=row["revoked_at"],
        next_rotation_at=row["next_rotation_at"],
        rotation_days=row["rotation_days"],
        lifetime_days=row["lifetime_days"],
        use_limit=row["use_limit"],
        uses=row["uses"],
        companion_key_id=row["companion_key_id"],
        platform=row["platform"],
        metadata=row["metadata"],
    )
