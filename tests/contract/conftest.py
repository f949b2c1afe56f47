"""The committed contracts, as every server and the gateway read them."""

from __future__ import annotations

import pytest

from infra.contracts.compiler import GENERATED
from infra.contracts.model import Contracts


@pytest.fixture(scope="session")
def contracts() -> Contracts:
    """All contracts, from the committed descriptor set."""
    return Contracts((GENERATED / "descriptors.binpb").read_bytes())
