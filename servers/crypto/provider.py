"""What a library of primitives must give, and how one is chosen.

Private keys are made from seeds, never from expanded keys: seeds are short, cannot be malformed, and both libraries
derive the same key from them (FIPS 203 section 7.1, FIPS 204 section 6.1). No key's `repr` shows more than its
algorithm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, Protocol

from servers.crypto.algorithms import Algorithm, Kind, require_kind
from servers.crypto.errors import KeyMaterialError, ProviderUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping


class KemPublicKey(Protocol):
    """The half of a KEM key pair that everybody may have."""

    @property
    def algorithm(self) -> Algorithm:
        """Which KEM."""

    @property
    def public_bytes(self) -> bytes:
        """The key as its standard encodes it."""

    def encapsulate(self) -> tuple[bytes, bytes]:
        """A fresh shared secret, 32 B, and the ciphertext that carries it to the private key's holder."""


class KemPrivateKey(Protocol):
    """The half of a KEM key pair that opens."""

    @property
    def algorithm(self) -> Algorithm:
        """Which KEM."""

    @property
    def public_bytes(self) -> bytes:
        """The public half as its standard encodes it."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 B; of a ciphertext for another key another secret.

        Raises:
            CiphertextError: The ciphertext has the wrong size or is not a valid encoding.
        """


class VerifyingKey(Protocol):
    """The half of a signature key pair that everybody may have."""

    @property
    def algorithm(self) -> Algorithm:
        """Which signature scheme."""

    @property
    def public_bytes(self) -> bytes:
        """The key as its standard encodes it."""

    def verify(self, message: bytes, signature: bytes, context: bytes = b"") -> bool:
        """Whether the signature is this key's over message and context; False for any other bytes."""


class SigningKey(Protocol):
    """The half of a signature key pair that signs."""

    @property
    def algorithm(self) -> Algorithm:
        """Which signature scheme."""

    @property
    def public_bytes(self) -> bytes:
        """The public half as its standard encodes it."""

    def sign(self, message: bytes, context: bytes = b"") -> bytes:
        """The signature; ML-DSA's is hedged (FIPS 204 section 3.4), so that two over the same message differ.

        Raises:
            ContextError: The context is over 255 B, or not empty for Ed25519, which takes none.
        """


class CryptoProvider(Protocol):
    """A library of primitives. Every method raises a `CryptoError` for what it refuses, and nothing else."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""

    def kem_private_key(self, algorithm: Algorithm, seed: bytes) -> KemPrivateKey:
        """The KEM key that the seed stands for.

        Raises:
            UnsupportedAlgorithmError: The algorithm signs.
            KeyMaterialError: The seed has the wrong size.
        """

    def kem_public_key(self, algorithm: Algorithm, raw: bytes) -> KemPublicKey:
        """The public KEM key of that encoding.

        Raises:
            UnsupportedAlgorithmError: The algorithm signs.
            KeyMaterialError: Wrong size, or not a valid encoding (FIPS 203 section 7.2: modulus check).
        """

    def signing_key(self, algorithm: Algorithm, seed: bytes) -> SigningKey:
        """The signature key that the seed stands for.

        Raises:
            UnsupportedAlgorithmError: The algorithm encapsulates.
            KeyMaterialError: The seed has the wrong size.
        """

    def verifying_key(self, algorithm: Algorithm, raw: bytes) -> VerifyingKey:
        """The public signature key of that encoding.

        Raises:
            UnsupportedAlgorithmError: The algorithm encapsulates.
            KeyMaterialError: Wrong size, or not a valid encoding.
        """

    def private_key(self, algorithm: Algorithm, seed: bytes) -> KemPrivateKey | SigningKey:
        """`kem_private_key` or `signing_key`, by the algorithm's kind."""

    def public_key(self, algorithm: Algorithm, raw: bytes) -> KemPublicKey | VerifyingKey:
        """`kem_public_key` or `verifying_key`, by the algorithm's kind."""


_PROVIDERS: Final[Mapping[str, str]] = {
    "cryptography": "servers.crypto.cryptography_provider:CryptographyProvider",
    "oqs": "servers.crypto.oqs_provider:OqsProvider",
}


def provider_named(name: str) -> CryptoProvider:
    """The provider of that name: `cryptography` (the default everywhere) or `oqs`. Nothing of the other is imported.

    Raises:
        ProviderUnavailableError: There is none of that name, or its library is not installed.
    """
    if name not in _PROVIDERS:
        raise ProviderUnavailableError(f"there is no such crypto provider; choose one of {', '.join(_PROVIDERS)}")
    module, _, attribute = _PROVIDERS[name].partition(":")
    provider: CryptoProvider = getattr(importlib.import_module(module), attribute)()
    return provider


def require_seed(algorithm: Algorithm, kind: Kind, seed: bytes) -> None:
    """Refuse an algorithm of the other kind and a seed of the wrong size."""
    require_kind(algorithm, kind)
    size = algorithm.parameters.seed_size
    if len(seed) != size:
        raise KeyMaterialError(f"a seed of {algorithm} has {size} bytes, not {len(seed)}")


def require_public(algorithm: Algorithm, kind: Kind, raw: bytes) -> None:
    """Refuse an algorithm of the other kind and a public key of the wrong size."""
    require_kind(algorithm, kind)
    size = algorithm.parameters.public_key_size
    if len(raw) != size:
        raise KeyMaterialError(f"a public key of {algorithm} has {size} bytes, not {len(raw)}")
