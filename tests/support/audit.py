"""Entries for the audit trail, and its records as they lie in the database."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from servers.quantum.audit_chain import FIRST_PREVIOUS, record_hash
from servers.quantum.audit_store import COLUMNS, record_of
from servers.quantum.audit_trail import AuditEntry

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from servers.quantum.audit_chain import AuditRecord
    from servers.quantum.audit_trail import AuditTrail


class Trails(Protocol):
    """Starts trails on the module's database: `async with trails(batch=8) as trail`."""

    def __call__(self, **options: Any) -> AbstractAsyncContextManager[AuditTrail]:
        """A trail that writes, until the block ends."""


def entry(organization_id: str, **changes: Any) -> AuditEntry:
    """A valid entry."""
    values: dict[str, Any] = {
        "operation": "encrypt",
        "organization_id": organization_id,
        "correlation_id": str(uuid.uuid4()),
        "service_id": "identity",
    }
    return AuditEntry(**(values | changes))


def chain(dsn: str, organization_id: str) -> list[AuditRecord]:
    """An organisation's records in order."""
    query = f"SELECT {COLUMNS} FROM quantum_audit.quantum_operations_log WHERE organization_id = %s ORDER BY sequence"  # noqa: S608 -- our own text
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        return [record_of(row) for row in connection.execute(query.encode(), (organization_id,)).fetchall()]


def holds(records: list[AuditRecord]) -> None:
    """The records form a chain from its beginning."""
    previous = FIRST_PREVIOUS
    for sequence, record in enumerate(records, 1):
        assert (record.sequence, record.previous_hash) == (sequence, previous)
        assert record.record_hash == record_hash(record)
        previous = record.record_hash
