"""The primitives of the package `cryptography`: the default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import (
    MLDSA65PrivateKey,
    MLDSA65PublicKey,
    MLDSA87PrivateKey,
    MLDSA87PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)

from servers.crypto.algorithms import CONTEXT_MAX_SIZE, Algorithm, Kind
from servers.crypto.errors import CiphertextError, ContextError, KeyMaterialError
from servers.crypto.provider import require_public, require_seed
from servers.crypto.xwing import XWingPrivateKey, XWingPublicKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.crypto.provider import KemPrivateKey, KemPublicKey, SigningKey, VerifyingKey

_KEM_PRIVATE: Final[Mapping[Algorithm, type[MLKEM768PrivateKey | MLKEM1024PrivateKey]]] = {
    Algorithm.ML_KEM_768: MLKEM768PrivateKey,
    Algorithm.ML_KEM_1024: MLKEM1024PrivateKey,
}
_KEM_PUBLIC: Final[Mapping[Algorithm, type[MLKEM768PublicKey | MLKEM1024PublicKey]]] = {
    Algorithm.ML_KEM_768: MLKEM768PublicKey,
    Algorithm.ML_KEM_1024: MLKEM1024PublicKey,
}
_DSA_PRIVATE: Final[Mapping[Algorithm, type[MLDSA65PrivateKey | MLDSA87PrivateKey]]] = {
    Algorithm.ML_DSA_65: MLDSA65PrivateKey,
    Algorithm.ML_DSA_87: MLDSA87PrivateKey,
}
_DSA_PUBLIC: Final[Mapping[Algorithm, type[MLDSA65PublicKey | MLDSA87PublicKey]]] = {
    Algorithm.ML_DSA_65: MLDSA65PublicKey,
    Algorithm.ML_DSA_87: MLDSA87PublicKey,
}


class CryptographyProvider:
    """ML-KEM, ML-DSA, X-Wing and Ed25519 by `cryptography`.

    Signing and verifying release the interpreter's lock; making keys, encapsulating and decapsulating do not.
    """

    name: Final = "cryptography"

    def kem_private_key(self, algorithm: Algorithm, seed: bytes) -> KemPrivateKey:
        """See `CryptoProvider`."""
        require_seed(algorithm, Kind.KEM, seed)
        if algorithm is Algorithm.X_WING:
            return XWingPrivateKey(self, seed)
        return _KemPrivateKey(algorithm, _KEM_PRIVATE[algorithm].from_seed_bytes(seed))

    def kem_public_key(self, algorithm: Algorithm, raw: bytes) -> KemPublicKey:
        """See `CryptoProvider`."""
        require_public(algorithm, Kind.KEM, raw)
        if algorithm is Algorithm.X_WING:
            return XWingPublicKey(self, raw)
        try:
            return _KemPublicKey(algorithm, _KEM_PUBLIC[algorithm].from_public_bytes(raw))
        except ValueError:
            raise KeyMaterialError(f"the bytes are not a public key of {algorithm}") from None

    def signing_key(self, algorithm: Algorithm, seed: bytes) -> SigningKey:
        """See `CryptoProvider`."""
        require_seed(algorithm, Kind.SIGNATURE, seed)
        if algorithm is Algorithm.ED25519:
            return _Ed25519SigningKey(Ed25519PrivateKey.from_private_bytes(seed))
        return _DsaSigningKey(algorithm, _DSA_PRIVATE[algorithm].from_seed_bytes(seed))

    def verifying_key(self, algorithm: Algorithm, raw: bytes) -> VerifyingKey:
        """See `CryptoProvider`."""
        require_public(algorithm, Kind.SIGNATURE, raw)
        try:
            if algorithm is Algorithm.ED25519:
                return _Ed25519VerifyingKey(Ed25519PublicKey.from_public_bytes(raw))
            return _DsaVerifyingKey(algorithm, _DSA_PUBLIC[algorithm].from_public_bytes(raw))
        except ValueError:
            raise KeyMaterialError(f"the bytes are not a public key of {algorithm}") from None

    def private_key(self, algorithm: Algorithm, seed: bytes) -> KemPrivateKey | SigningKey:
        """See `CryptoProvider`."""
        make = self.kem_private_key if algorithm.kind is Kind.KEM else self.signing_key
        return make(algorithm, seed)

    def public_key(self, algorithm: Algorithm, raw: bytes) -> KemPublicKey | VerifyingKey:
        """See `CryptoProvider`."""
        make = self.kem_public_key if algorithm.kind is Kind.KEM else self.verifying_key
        return make(algorithm, raw)


class _KemPublicKey:
    __slots__ = ("_key", "algorithm")

    def __init__(self, algorithm: Algorithm, key: MLKEM768PublicKey | MLKEM1024PublicKey) -> None:
        self.algorithm = algorithm
        self._key = key

    @property
    def public_bytes(self) -> bytes:
        return self._key.public_bytes_raw()

    def encapsulate(self) -> tuple[bytes, bytes]:
        return self._key.encapsulate()


class _KemPrivateKey:
    __slots__ = ("_key", "algorithm")

    def __init__(self, algorithm: Algorithm, key: MLKEM768PrivateKey | MLKEM1024PrivateKey) -> None:
        self.algorithm = algorithm
        self._key = key

    @property
    def public_bytes(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        size = self.algorithm.parameters.output_size
        if len(ciphertext) != size:
            raise CiphertextError(f"a ciphertext of {self.algorithm} has {size} bytes, not {len(ciphertext)}")
        return self._key.decapsulate(ciphertext)


class _DsaVerifyingKey:
    __slots__ = ("_key", "algorithm")

    def __init__(self, algorithm: Algorithm, key: MLDSA65PublicKey | MLDSA87PublicKey) -> None:
        self.algorithm = algorithm
        self._key = key

    @property
    def public_bytes(self) -> bytes:
        return self._key.public_bytes_raw()

    def verify(self, message: bytes, signature: bytes, context: bytes = b"") -> bool:
        if len(context) > CONTEXT_MAX_SIZE:
            return False
        try:
            self._key.verify(signature, message, context)
        except InvalidSignature:
            return False
        return True


class _DsaSigningKey:
    __slots__ = ("_key", "algorithm")

    def __init__(self, algorithm: Algorithm, key: MLDSA65PrivateKey | MLDSA87PrivateKey) -> None:
        self.algorithm = algorithm
        self._key = key

    @property
    def public_bytes(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes, context: bytes = b"") -> bytes:
        if len(context) > CONTEXT_MAX_SIZE:
            raise ContextError(f"a context string has at most {CONTEXT_MAX_SIZE} bytes, not {len(context)}")
        return self._key.sign(message, context)


class _Ed25519VerifyingKey:
    algorithm: Final = Algorithm.ED25519
    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @property
    def public_bytes(self) -> bytes:
        return self._key.public_bytes_raw()

    def verify(self, message: bytes, signature: bytes, context: bytes = b"") -> bool:
        if context:
            return False
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class _Ed25519SigningKey:
    algorithm: Final = Algorithm.ED25519
    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public_bytes(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes, context: bytes = b"") -> bytes:
        if context:
            raise ContextError("Ed25519 takes no context string")
        return self._key.sign(message)
