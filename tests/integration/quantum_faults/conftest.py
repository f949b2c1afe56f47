"""The quantum service on real stores, with a real HSM, for whatever goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.hsm import HsmRig
from tests.support.quantum import QuantumStores

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseServer


@pytest.fixture(scope="module")
def stores(database_server: DatabaseServer, quantum_dsn: str, redis_url: str, pki: Path) -> QuantumStores:
    return QuantumStores.of(database_server, quantum_dsn, redis_url, pki)


@pytest.fixture
def rig(tmp_path: Path, pki: Path) -> HsmRig:
    """Three empty modules and the software store."""
    return HsmRig(tmp_path / "hsm", pki)
