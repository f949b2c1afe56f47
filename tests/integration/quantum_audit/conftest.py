"""A quantum database, audit trails on it, and stores for the service."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from servers.quantum.audit_trail import AuditTrail
from tests.support.quantum import QuantumStores, StandInHsm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import DatabaseServer
    from tests.support.audit import Trails


@pytest.fixture(scope="module")
def stores(database_server: DatabaseServer, quantum_dsn: str, redis_url: str, pki: Path) -> QuantumStores:
    """Fresh stores of the module's own; tests make their own organisations in them."""
    return QuantumStores.of(database_server, quantum_dsn, redis_url, pki)


@pytest.fixture(scope="module")
def hsm() -> StandInHsm:
    """The module's HSM: it holds the keys that the module's database names."""
    return StandInHsm()


@pytest.fixture(scope="module")
def owner_dsn(quantum_dsn: str) -> str:
    """The database as its owner."""
    return quantum_dsn


@pytest.fixture(scope="module")
def service_dsn(stores: QuantumStores) -> str:
    """The database as the quantum service."""
    return stores.dsn


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
