"""Fixtures of the gateway's integration tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway.gateway_stage import Stage, open_stage
from tests.integration.gateway.quantum_stage import QuantumStage, open_quantum_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def stage(pki: Path, redis_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway with default settings."""
    async with open_stage(pki, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def quantum(pki: Path, redis_url: str, tmp_path: Path) -> AsyncIterator[QuantumStage]:
    """A gateway before scripted quantum services."""
    async with open_quantum_stage(pki, redis_url, tmp_path) as opened:
        yield opened
