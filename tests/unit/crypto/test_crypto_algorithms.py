from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.crypto.algorithms import Algorithm, Kind, canonical, require_kind, require_level
from servers.crypto.errors import CryptoError, SecurityLevelError, UnsupportedAlgorithmError


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("ML-KEM-768", Algorithm.ML_KEM_768),
        ("ML-KEM-1024", Algorithm.ML_KEM_1024),
        ("ML-DSA-65", Algorithm.ML_DSA_65),
        ("ML-DSA-87", Algorithm.ML_DSA_87),
        ("X-Wing", Algorithm.X_WING),
        ("Ed25519", Algorithm.ED25519),
        ("Kyber768", Algorithm.ML_KEM_768),
        ("Dilithium3", Algorithm.ML_DSA_65),
    ],
)
def test_names_and_aliases(name: str, algorithm: Algorithm) -> None:
    assert canonical(name) is algorithm


@given(st.text(max_size=20).filter(lambda name: name not in {*Algorithm, "Kyber768", "Dilithium3"}))
def test_any_other_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UnsupportedAlgorithmError, match=r"ML-KEM-768.*Dilithium3"):
        canonical(name)


@pytest.mark.parametrize(
    ("algorithm", "level"),
    [
        (Algorithm.ML_KEM_768, ""),
        (Algorithm.ML_KEM_768, "NIST-L1"),
        (Algorithm.ML_KEM_768, "NIST-L3"),
        (Algorithm.X_WING, "NIST-L3"),
        (Algorithm.ML_KEM_1024, "NIST-L5"),
        (Algorithm.ML_DSA_87, "NIST-L5"),
        (Algorithm.ED25519, ""),
    ],
)
def test_a_level_that_the_algorithm_gives(algorithm: Algorithm, level: str) -> None:
    require_level(algorithm, level)


@pytest.mark.parametrize(
    ("algorithm", "level"),
    [
        (Algorithm.ML_KEM_768, "NIST-L5"),
        (Algorithm.X_WING, "NIST-L5"),
        (Algorithm.ML_DSA_65, "NIST-L5"),
        (Algorithm.ED25519, "NIST-L1"),
        (Algorithm.ED25519, "classical"),
        (Algorithm.ML_KEM_1024, "NIST-L2"),
        (Algorithm.ML_KEM_1024, "nist-l1"),
    ],
)
def test_a_level_that_it_cannot_give_is_refused(algorithm: Algorithm, level: str) -> None:
    with pytest.raises(SecurityLevelError):
        require_level(algorithm, level)


def test_kinds() -> None:
    require_kind(Algorithm.X_WING, Kind.KEM)
    with pytest.raises(UnsupportedAlgorithmError, match="ML-DSA-65 does not encapsulate"):
        require_kind(Algorithm.ML_DSA_65, Kind.KEM)
    with pytest.raises(UnsupportedAlgorithmError, match="ML-KEM-768 does not sign"):
        require_kind(Algorithm.ML_KEM_768, Kind.SIGNATURE)


def test_refusals_are_value_errors() -> None:
    assert issubclass(CryptoError, ValueError)
