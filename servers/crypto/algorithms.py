"""The algorithms, by their standards' names, with their sizes and what they give.

FIPS 203 (ML-KEM), FIPS 204 (ML-DSA), draft-connolly-cfrg-xwing-kem (X-Wing), RFC 8032 (Ed25519).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from servers.crypto.errors import SecurityLevelError, UnsupportedAlgorithmError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Algorithm(StrEnum):
    """An algorithm; the value is the standard's name."""

    ML_KEM_768 = "ML-KEM-768"
    ML_KEM_1024 = "ML-KEM-1024"
    ML_DSA_65 = "ML-DSA-65"
    ML_DSA_87 = "ML-DSA-87"
    X_WING = "X-Wing"
    ED25519 = "Ed25519"

    @property
    def kind(self) -> Kind:
        """Whether it encapsulates or signs."""
        return PARAMETERS[self].kind

    @property
    def security_level(self) -> str:
        """`NIST-L3` or `NIST-L5`; `classical` for Ed25519, which a quantum computer breaks."""
        return PARAMETERS[self].security_level

    @property
    def parameters(self) -> Parameters:
        """Its sizes."""
        return PARAMETERS[self]


class Kind(StrEnum):
    """What an algorithm does."""

    KEM = "kem"
    SIGNATURE = "signature"


@dataclass(frozen=True, slots=True)
class Parameters:
    """Sizes of an algorithm, bytes."""

    kind: Kind
    security_level: str
    seed_size: int
    """The private key: FIPS 203's `d || z`, FIPS 204's `xi`, X-Wing's and Ed25519's secret."""
    public_key_size: int
    output_size: int
    """The KEM ciphertext or the signature."""


CLASSICAL: Final = "classical"
"""Security level of what a quantum computer breaks."""

SHARED_SECRET_SIZE: Final = 32
"""Shared secret of every KEM here, bytes."""

CONTEXT_MAX_SIZE: Final = 255
"""Longest context string of ML-DSA (FIPS 204, section 5.2), bytes."""

PARAMETERS: Final[Mapping[Algorithm, Parameters]] = {
    Algorithm.ML_KEM_768: Parameters(Kind.KEM, "NIST-L3", 64, 1184, 1088),
    Algorithm.ML_KEM_1024: Parameters(Kind.KEM, "NIST-L5", 64, 1568, 1568),
    Algorithm.ML_DSA_65: Parameters(Kind.SIGNATURE, "NIST-L3", 32, 1952, 3309),
    Algorithm.ML_DSA_87: Parameters(Kind.SIGNATURE, "NIST-L5", 32, 2592, 4627),
    Algorithm.X_WING: Parameters(Kind.KEM, "NIST-L3", 32, 1216, 1120),
    Algorithm.ED25519: Parameters(Kind.SIGNATURE, CLASSICAL, 32, 32, 64),
}

_ALIASES: Final = {"Kyber768": Algorithm.ML_KEM_768, "Dilithium3": Algorithm.ML_DSA_65}
"""Names of the round-3 submissions, taken for the standards that came of them; the submissions themselves differ."""

_LEVELS: Final = {CLASSICAL: 0, "NIST-L1": 1, "NIST-L3": 3, "NIST-L5": 5}


def canonical(name: str) -> Algorithm:
    """The algorithm of that name or alias.

    Raises:
        UnsupportedAlgorithmError: There is none; the text lists those there are.
    """
    algorithm = _ALIASES.get(name)
    if algorithm is not None:
        return algorithm
    try:
        return Algorithm(name)
    except ValueError:
        names = ", ".join([*Algorithm, *_ALIASES])
        raise UnsupportedAlgorithmError(f"the algorithm is unknown; there are {names}") from None


def require_kind(algorithm: Algorithm, kind: Kind) -> None:
    """Refuse an algorithm that does not do `kind`.

    Raises:
        UnsupportedAlgorithmError: It does the other.
    """
    if algorithm.kind is not kind:
        needed = "encapsulate" if kind is Kind.KEM else "sign"
        names = ", ".join(other for other in Algorithm if other.kind is kind)
        raise UnsupportedAlgorithmError(f"{algorithm} does not {needed}; these do: {names}")


def require_level(algorithm: Algorithm, asked: str) -> None:
    """Refuse a security level above what the algorithm gives; an empty one asks for nothing.

    Raises:
        SecurityLevelError: The level is unknown or above the algorithm's.
    """
    if not asked:
        return
    if asked not in _LEVELS or asked == CLASSICAL:
        raise SecurityLevelError("the security level is unknown; there are NIST-L1, NIST-L3, NIST-L5")
    if _LEVELS[asked] > _LEVELS[algorithm.security_level]:
        raise SecurityLevelError(f"{algorithm} gives {algorithm.security_level}, which is less than {asked}")
