"""A quantum database and audit trails on it."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from servers.quantum.audit_store import COLUMNS, record_of
from servers.quantum.audit_trail import AuditEntry, AuditTrail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager

    from servers.quantum.audit_chain import AuditRecord
    from tests.conftest import DatabaseServer


class Trails(Protocol):
    """Starts trails on the module's database."""

    def __call__(self, **options: Any) -> AbstractAsyncContextManager[AuditTrail]: ...


@pytest.fixture(scope="module")
def quantum_database(database_server: DatabaseServer) -> Iterator[str]:
    """Name of the module's own quantum database."""
    name = database_server.fresh("quantum")
    yield name
    database_server.drop(name)


@pytest.fixture(scope="module")
def owner_dsn(database_server: DatabaseServer, quantum_database: str) -> str:
    """The database as its owner."""
    return database_server.dsn(quantum_database)


@pytest.fixture(scope="module")
def service_dsn(database_server: DatabaseServer, quantum_database: str) -> str:
    """The database as the quantum service."""
    return database_server.dsn(quantum_database, "bg_quantum")


@pytest.fixture
def trails(service_dsn: str) -> Trails:
    """`async with trails() as trail`: a trail that writes."""

    @asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[AuditTrail]:
        trail = AuditTrail(options.pop("dsn", service_dsn), **options)
        writing = asyncio.create_task(trail.run())
        try:
            yield trail
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    return start


@pytest.fixture
def organization() -> str:
    """An organisation of the test's own, so with a chain of its own."""
    return str(uuid.uuid4())


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
