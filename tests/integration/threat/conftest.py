"""Stores for the threat service's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.threat import Stores

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def stores(threat_dsn: str, postgres_dsn: str, redis_url: str, kafka_bootstrap: str, pki: Path) -> Stores:
    """Fresh stores of the module's own; tests make their own people in them."""
    return Stores(threat_dsn, postgres_dsn, redis_url, kafka_bootstrap, pki)
