"""SQL of the audit trail: the chain's writes, and its reads. Every statement names the organisation.

Tables and columns come from `infra/postgres/migrations/quantum/0002_audit.sql`.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import orjson

from servers.quantum.audit_chain import AuditRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import AsyncConnection

    Connection = AsyncConnection[tuple[Any, ...]]

_COPY: Final = """
COPY quantum_audit.quantum_operations_log (
    audit_id, operation, key_id, user_id, organization_id, service_id, operation_timestamp, source_ip, user_agent,
    correlation_id, operation_data, result, processing_time_ms, error_details, hsm_operation_id, sequence,
    previous_hash, record_hash) FROM STDIN
"""
COLUMNS: Final = """
    audit_id::text, operation::text, coalesce(key_id::text, ''), coalesce(user_id::text, ''), organization_id::text,
    coalesce(service_id, ''), operation_timestamp, coalesce(host(source_ip), ''), coalesce(user_agent, ''),
    coalesce(correlation_id::text, ''), coalesce(operation_data, '{}')::text, result::text,
    coalesce(processing_time_ms, 0), coalesce(error_details, ''), coalesce(hsm_operation_id, ''), sequence,
    previous_hash, record_hash
"""
_LOCK_HEADS: Final = """
SELECT organization_id::text, sequence, record_hash FROM quantum_audit.chain_heads
WHERE organization_id = ANY(%s::uuid[]) ORDER BY organization_id FOR UPDATE
"""
_ADD_HEADS: Final = """
INSERT INTO quantum_audit.chain_heads (organization_id) SELECT unnest(%s::uuid[]) ORDER BY 1 ON CONFLICT DO NOTHING
"""
_MOVE_HEADS: Final = """
UPDATE quantum_audit.chain_heads h SET sequence = n.sequence, record_hash = n.record_hash
FROM unnest(%s::uuid[], %s::bigint[], %s::bytea[]) AS n(organization_id, sequence, record_hash)
WHERE h.organization_id = n.organization_id
"""
_WRITTEN: Final = """
SELECT audit_id::text FROM quantum_audit.quantum_operations_log
WHERE audit_id = ANY(%s::uuid[]) AND organization_id = ANY(%s::uuid[])
"""
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


async def lock_heads(connection: Connection, organizations: Sequence[str]) -> dict[str, tuple[int, bytes]]:
    """Lock the chains' heads until the transaction ends, always in the same order, so that writers never wait in a
    circle; a chain without a head gets one.

    Returns:
        Sequence and hash of each chain's last record.
    """
    wanted = sorted(organizations)
    heads = await _heads(connection, wanted)
    if len(heads) < len(wanted):
        await connection.execute(_ADD_HEADS, (wanted,))
        heads = await _heads(connection, wanted)
    return heads


async def _heads(connection: Connection, organizations: list[str]) -> dict[str, tuple[int, bytes]]:
    cursor = await connection.execute(_LOCK_HEADS, (organizations,))
    return {row[0]: (int(row[1]), bytes(row[2])) for row in await cursor.fetchall()}


async def append(connection: Connection, rows: Sequence[str], heads: Mapping[str, tuple[int, bytes]]) -> None:
    """Write records (`copy_row`) and move their chains' heads, which the transaction has locked."""
    async with connection.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
        await copy.write("".join(rows).encode())
    moved = list(heads)
    await connection.execute(
        _MOVE_HEADS, (moved, [heads[each][0] for each in moved], [heads[each][1] for each in moved])
    )


async def written(connection: Connection, audit_ids: Sequence[str], organizations: Sequence[str]) -> set[str]:
    """Which of these records are in the trail."""
    cursor = await connection.execute(_WRITTEN, (list(audit_ids), list(organizations)))
    return {row[0] for row in await cursor.fetchall()}


def record_of(row: Sequence[Any]) -> AuditRecord:
    """A row of `COLUMNS` as a record, in the form that was hashed."""
    values: list[Any] = list(row)
    values[7] = str(ip_address(row[7])) if row[7] else ""
    values[10] = orjson.loads(row[10])
    return AuditRecord(*values)


def copy_row(record: Mapping[str, Any], record_hash: bytes) -> str:
    """A record, as the object that was hashed, as one line of COPY's text form."""
    fields = (
        record["audit_id"],
        record["operation"],
        record["key_id"] or "\\N",
        record["user_id"] or "\\N",
        record["organization_id"],
        _escaped(record["service_id"]),
        record["operation_timestamp"],
        record["source_ip"] or "\\N",
        _escaped(record["user_agent"]) or "\\N",
        record["correlation_id"] or "\\N",
        _escaped(orjson.dumps(record["operation_data"]).decode()),
        record["result"],
        str(record["processing_time_ms"]),
        _escaped(record["error_details"]) or "\\N",
        _escaped(record["hsm_operation_id"]) or "\\N",
        str(record["sequence"]),
        "\\\\x" + record["previous_hash"],
        "\\\\x" + record_hash.hex(),
    )
    return "\t".join(fields) + "\n"


def _escaped(text: str) -> str:
    """Text in COPY's form; most has nothing to escape, and looking is ten times as fast as translating."""
    return text if text.isprintable() and "\\" not in text else text.translate(_ESCAPES)
