from __future__ import annotations

import os

import pytest

from servers.crypto.algorithms import Algorithm, Kind
from servers.crypto.cryptography_provider import CryptographyProvider

KEMS = [algorithm for algorithm in Algorithm if algorithm.kind is Kind.KEM]
SIGNATURES = [algorithm for algorithm in Algorithm if algorithm.kind is Kind.SIGNATURE]


@pytest.fixture(scope="session")
def provider() -> CryptographyProvider:
    return CryptographyProvider()


@pytest.fixture(params=KEMS)
def kem(request: pytest.FixtureRequest) -> Algorithm:
    return Algorithm(request.param)


@pytest.fixture(params=SIGNATURES)
def signature(request: pytest.FixtureRequest) -> Algorithm:
    return Algorithm(request.param)


@pytest.fixture
def seed() -> bytes:
    return os.urandom(64)
