"""X-Wing: ML-KEM-768 and X25519 in one, safe while either is (draft-connolly-cfrg-xwing-kem).

The composition is ours; ML-KEM-768 comes from the provider, X25519 from `cryptography`. Stricter than the draft in one
thing: an X25519 share of small order is refused instead of giving the all-zero secret (RFC 7748 section 6.1).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from servers.crypto.algorithms import Algorithm, Kind
from servers.crypto.errors import CiphertextError, KeyMaterialError
from servers.crypto.provider import require_public, require_seed

if TYPE_CHECKING:
    from servers.crypto.provider import CryptoProvider, KemPrivateKey, KemPublicKey

_LABEL: Final = b"\\.//^\\"
_SHARE_SIZE: Final = 32
_ML_KEM_SEED_SIZE: Final = 64


class XWingPublicKey:
    """`ML-KEM-768 encapsulation key || X25519 public key`, 1,216 B."""

    algorithm: Final = Algorithm.X_WING
    __slots__ = ("_ml_kem", "_share", "_x25519")

    def __init__(self, provider: CryptoProvider, raw: bytes) -> None:
        require_public(Algorithm.X_WING, Kind.KEM, raw)
        self._ml_kem: KemPublicKey = provider.kem_public_key(Algorithm.ML_KEM_768, raw[:-_SHARE_SIZE])
        self._share = raw[-_SHARE_SIZE:]
        self._x25519 = X25519PublicKey.from_public_bytes(self._share)

    @property
    def public_bytes(self) -> bytes:
        """The key, 1,216 B."""
        return self._ml_kem.public_bytes + self._share

    def encapsulate(self) -> tuple[bytes, bytes]:
        """A fresh shared secret, 32 B, and its ciphertext, 1,120 B."""
        ephemeral = X25519PrivateKey.generate()
        try:
            x25519_secret = ephemeral.exchange(self._x25519)
        except ValueError:
            raise KeyMaterialError("the X25519 part of the X-Wing public key has small order") from None
        ml_kem_secret, ml_kem_ciphertext = self._ml_kem.encapsulate()
        share = ephemeral.public_key().public_bytes_raw()
        return _combine(ml_kem_secret, x25519_secret, share, self._share), ml_kem_ciphertext + share


class XWingPrivateKey:
    """A key pair from a seed of 32 B."""

    algorithm: Final = Algorithm.X_WING
    __slots__ = ("_ml_kem", "_share", "_x25519")

    def __init__(self, provider: CryptoProvider, seed: bytes) -> None:
        require_seed(Algorithm.X_WING, Kind.KEM, seed)
        expanded = hashlib.shake_256(seed).digest(_ML_KEM_SEED_SIZE + _SHARE_SIZE)
        self._ml_kem: KemPrivateKey = provider.kem_private_key(Algorithm.ML_KEM_768, expanded[:_ML_KEM_SEED_SIZE])
        self._x25519 = X25519PrivateKey.from_private_bytes(expanded[_ML_KEM_SEED_SIZE:])
        self._share = self._x25519.public_key().public_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        """The public half, 1,216 B."""
        return self._ml_kem.public_bytes + self._share

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 B."""
        size = Algorithm.X_WING.parameters.output_size
        if len(ciphertext) != size:
            raise CiphertextError(f"a ciphertext of X-Wing has {size} bytes, not {len(ciphertext)}")
        share = ciphertext[-_SHARE_SIZE:]
        ml_kem_secret = self._ml_kem.decapsulate(ciphertext[:-_SHARE_SIZE])
        try:
            x25519_secret = self._x25519.exchange(X25519PublicKey.from_public_bytes(share))
        except ValueError:
            raise CiphertextError("the X25519 part of the X-Wing ciphertext has small order") from None
        return _combine(ml_kem_secret, x25519_secret, share, self._share)


def _combine(ml_kem_secret: bytes, x25519_secret: bytes, ephemeral_share: bytes, static_share: bytes) -> bytes:
    return hashlib.sha3_256(ml_kem_secret + x25519_secret + ephemeral_share + static_share + _LABEL).digest()
