"""Reads of the audit trail, and the store of its checkpoints. Every statement names the organisation.

Every method may raise `psycopg.Error` or `psycopg_pool.PoolTimeout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg.rows import tuple_row

from servers.quantum.audit_chain import Checkpoint
from servers.quantum.audit_store import COLUMNS, record_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from servers.quantum.audit_chain import AuditRecord
    from servers.quantum.database import Pool

_LOG: Final = "quantum_audit.quantum_operations_log"
_CHECKPOINT: Final = """
    organization_id::text, sequence, record_hash, created_at, key_id::text, key_version, algorithm, signature
"""
_HEADS: Final = """
SELECT organization_id::text, sequence FROM quantum_audit.chain_heads WHERE organization_id = ANY(%s::uuid[])
"""
_DUE: Final = """
SELECT h.organization_id::text, h.sequence, coalesce(c.sequence, 0), c.record_hash FROM quantum_audit.chain_heads h
LEFT JOIN LATERAL (
    SELECT sequence, record_hash FROM quantum_audit.checkpoints k WHERE k.organization_id = h.organization_id
    ORDER BY sequence DESC LIMIT 1) c ON true
WHERE h.sequence >= coalesce(c.sequence, 0) + %(new)s
    AND (%(organization)s::uuid IS NULL OR h.organization_id = %(organization)s)
    AND (%(after)s::uuid IS NULL OR h.organization_id > %(after)s)
ORDER BY h.organization_id LIMIT %(limit)s
"""
_KEEP: Final = """
INSERT INTO quantum_audit.checkpoints (
    organization_id, sequence, record_hash, created_at, key_id, key_version, algorithm, signature)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records of an organisation; empty and None mean all."""

    organization_id: str
    operation: str = ""
    result: str = ""
    key_id: str = ""
    user_id: str = ""
    correlation_id: str = ""
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """A chain with records that no checkpoint covers."""

    organization_id: str
    head: int
    """Place of its last record."""
    covered: int
    """Place of the last record that a checkpoint covers; 0: none."""
    covered_hash: bytes | None
    """Its hash; None without a checkpoint."""


class AuditReader:
    """Reads the trail through the service's pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def newest(self, wanted: RecordFilter, before: int, limit: int) -> list[AuditRecord]:
        """Records before a place in the chain, newest first."""
        where, values = _conditions(wanted)
        query = f"{where} AND sequence < %(before)s ORDER BY sequence DESC LIMIT %(limit)s"
        return await self._records(query, values | {"before": before, "limit": limit})

    async def after(self, organization_id: str, after: int, upto: int, limit: int) -> list[AuditRecord]:
        """Records after one place up to another, in the chain's order."""
        query = "organization_id = %(organization)s AND sequence > %(after)s AND sequence <= %(upto)s"
        values = {"organization": organization_id, "after": after, "upto": upto, "limit": limit}
        return await self._records(f"{query} ORDER BY sequence LIMIT %(limit)s", values)

    async def record(self, organization_id: str, audit_id: str) -> AuditRecord | None:
        """One record, or None when the organisation has no such."""
        values = {"organization": organization_id, "audit": audit_id}
        found = await self._records("organization_id = %(organization)s AND audit_id = %(audit)s", values)
        return found[0] if found else None

    async def heads(self, organizations: Sequence[str]) -> dict[str, int]:
        """Where chains end; those without records are missing."""
        return {row[0]: int(row[1]) for row in await self._rows(_HEADS, (list(organizations),))}

    async def checkpoints_before(self, organization_id: str, before: int, limit: int) -> list[Checkpoint]:
        """Checkpoints before a place, newest first."""
        query = f"""SELECT {_CHECKPOINT} FROM quantum_audit.checkpoints
            WHERE organization_id = %s AND sequence < %s ORDER BY sequence DESC LIMIT %s"""  # noqa: S608 -- our own text
        return [Checkpoint(*row) for row in await self._rows(query, (organization_id, before, limit))]

    async def checkpoints_from(self, organization_id: str, place: int, upto: int, limit: int) -> list[Checkpoint]:
        """Checkpoints from one place up to another, in the chain's order."""
        query = f"""SELECT {_CHECKPOINT} FROM quantum_audit.checkpoints
            WHERE organization_id = %s AND sequence >= %s AND sequence <= %s ORDER BY sequence LIMIT %s"""  # noqa: S608 -- our own text
        return [Checkpoint(*row) for row in await self._rows(query, (organization_id, place, upto, limit))]

    async def due(self, new: int, *, organization_id: str = "", after: str = "", limit: int = 64) -> list[Due]:
        """Chains with at least `new` records that no checkpoint covers: one organisation's, or those of the
        organisations after one."""
        values = {"new": new, "organization": organization_id or None, "after": after or None, "limit": limit}
        return [Due(row[0], int(row[1]), int(row[2]), row[3]) for row in await self._rows(_DUE, values)]

    async def keep(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint; one that another process made first stays."""
        values = (
            checkpoint.organization_id,
            checkpoint.sequence,
            checkpoint.record_hash,
            checkpoint.created_at,
            checkpoint.key_id,
            checkpoint.key_version,
            checkpoint.algorithm,
            checkpoint.signature,
        )
        async with self._pool.connection() as connection:
            await connection.execute(_KEEP.encode(), values)

    async def _records(self, condition: str, values: Mapping[str, Any]) -> list[AuditRecord]:
        """Records by a condition that is text of this module; every value is a parameter."""
        query = f"SELECT {COLUMNS} FROM {_LOG} WHERE {condition}"  # noqa: S608 -- our own text
        return [record_of(row) for row in await self._rows(query, values)]

    async def _rows(self, query: str, values: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, ...]]:
        async with self._pool.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(query.encode(), values)
            return await cursor.fetchall()


def _conditions(wanted: RecordFilter) -> tuple[str, dict[str, Any]]:
    where = ["organization_id = %(organization)s"]
    values: dict[str, Any] = {"organization": wanted.organization_id}
    for name, column, value in (
        ("operation", "operation::text", wanted.operation),
        ("result", "result::text", wanted.result),
        ("key", "key_id", wanted.key_id),
        ("user", "user_id", wanted.user_id),
        ("correlation", "correlation_id", wanted.correlation_id),
    ):
        if value:
            where.append(f"{column} = %({name})s")
            values[name] = value
    for name, sign, moment in (("start", ">=", wanted.start), ("end", "<", wanted.end)):
        if moment is not None:
            where.append(f"operation_timestamp {sign} %({name})s")
            values[name] = moment
    return " AND ".join(where), values
