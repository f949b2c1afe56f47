"""The post-quantum primitives of liboqs, when its shared library is installed.

The library is called directly: importing the package `oqs` where it is missing would download and build it. liboqs
makes an ML-KEM key from its seed by itself. For ML-DSA it only makes random keys: while one is made, its source of
randomness is replaced, for the making thread alone, by one that gives the seed (FIPS 204 section 6.1 takes nothing
else), and the public key is compared with what the seed must give. X25519 and Ed25519 are not in liboqs: they come from
`cryptography`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import hmac
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from servers.crypto.algorithms import CONTEXT_MAX_SIZE, SHARED_SECRET_SIZE, Algorithm, Kind
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.crypto.errors import CiphertextError, ContextError, CryptoError, KeyMaterialError, ProviderUnavailableError
from servers.crypto.provider import require_public, require_seed
from servers.crypto.xwing import XWingPrivateKey, XWingPublicKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.crypto.provider import KemPrivateKey, KemPublicKey, SigningKey, VerifyingKey

INSTALL_PATH: Final = "OQS_INSTALL_PATH"
"""Environment variable with the folder that liboqs was installed to, as for liboqs's own Python package."""

OLDEST: Final = (0, 16)
"""Oldest release that is taken: before it an AVX2 build accepts ML-DSA signatures that FIPS 204 refuses (algorithm 8,
line 13: the norm of `z`; https://github.com/pq-crystals/dilithium/issues/113)."""

_SECRET_KEY_SIZES: Final[Mapping[Algorithm, int]] = {
    Algorithm.ML_KEM_768: 2400,
    Algorithm.ML_KEM_1024: 3168,
    Algorithm.ML_DSA_65: 4032,
    Algorithm.ML_DSA_87: 4896,
}
"""liboqs's expanded private keys, bytes."""

_DSA_DIMENSIONS: Final[Mapping[Algorithm, bytes]] = {
    Algorithm.ML_DSA_65: bytes((6, 5)),
    Algorithm.ML_DSA_87: bytes((8, 7)),
}
"""`k` and `l`, hashed with the seed (FIPS 204, algorithm 6, line 1)."""

_RHO_SIZE: Final = 32
_RANDOMNESS_SIZE: Final = 32
_RandomBytes = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint8), ctypes.c_size_t)

_RANDOMNESS: Final = threading.Lock()
"""Held while liboqs's source of randomness is replaced: it has one for the whole process."""


def find_library() -> Path | None:
    """Where liboqs's shared library is, by `OQS_INSTALL_PATH` or the system's loader; None when it is not installed."""
    if folder := os.environ.get(INSTALL_PATH):
        places = [
            Path(folder) / library / name for library in ("lib", "lib64") for name in ("liboqs.so", "liboqs.dylib")
        ]
        return next((place for place in places if place.is_file()), None)
    found = ctypes.util.find_library("oqs")
    return Path(found) if found else None


class OqsProvider:
    """ML-KEM and ML-DSA by liboqs 0.16 or newer. Every call releases the interpreter's lock."""

    name: Final = "oqs"

    def __init__(self, library: Path | None = None) -> None:
        """Load the library, by default where `find_library` finds it.

        Raises:
            ProviderUnavailableError: There is none, it is too old, or it lacks an algorithm.
        """
        place = library or find_library()
        if place is None:
            raise ProviderUnavailableError(
                f"liboqs is not installed; install it and set {INSTALL_PATH}, or choose the provider cryptography"
            )
        self._liboqs = _Liboqs(place)
        self._classical = CryptographyProvider()

    @property
    def version(self) -> str:
        """Version of the library."""
        return self._liboqs.version

    def kem_private_key(self, algorithm: Algorithm, seed: bytes) -> KemPrivateKey:
        """See `CryptoProvider`."""
        require_seed(algorithm, Kind.KEM, seed)
        if algorithm is Algorithm.X_WING:
            return XWingPrivateKey(self, seed)
        return _KemPrivateKey(self._liboqs, algorithm, seed)

    def kem_public_key(self, algorithm: Algorithm, raw: bytes) -> KemPublicKey:
        """See `CryptoProvider`."""
        require_public(algorithm, Kind.KEM, raw)
        if algorithm is Algorithm.X_WING:
            return XWingPublicKey(self, raw)
        return _KemPublicKey(self._liboqs, algorithm, raw)

    def signing_key(self, algorithm: Algorithm, seed: bytes) -> SigningKey:
        """See `CryptoProvider`."""
        require_seed(algorithm, Kind.SIGNATURE, seed)
        if algorithm is Algorithm.ED25519:
            return self._classical.signing_key(algorithm, seed)
        return _SigningKey(self._liboqs, algorithm, seed)

    def verifying_key(self, algorithm: Algorithm, raw: bytes) -> VerifyingKey:
        """See `CryptoProvider`."""
        require_public(algorithm, Kind.SIGNATURE, raw)
        if algorithm is Algorithm.ED25519:
            return self._classical.verifying_key(algorithm, raw)
        return _VerifyingKey(self._liboqs, algorithm, raw)

    def private_key(self, algorithm: Algorithm, seed: bytes) -> KemPrivateKey | SigningKey:
        """See `CryptoProvider`."""
        make = self.kem_private_key if algorithm.kind is Kind.KEM else self.signing_key
        return make(algorithm, seed)

    def public_key(self, algorithm: Algorithm, raw: bytes) -> KemPublicKey | VerifyingKey:
        """See `CryptoProvider`."""
        make = self.kem_public_key if algorithm.kind is Kind.KEM else self.verifying_key
        return make(algorithm, raw)


class _Liboqs:
    """The library's functions that are used, with a handle for each algorithm."""

    def __init__(self, place: Path) -> None:
        try:
            self.library = ctypes.CDLL(str(place))
            self.library.OQS_init()
            for function in ("OQS_KEM_new", "OQS_SIG_new"):
                getattr(self.library, function).restype = ctypes.c_void_p
            self.library.OQS_version.restype = ctypes.c_char_p
            self.library.OQS_MEM_cleanse.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        except (OSError, AttributeError) as error:
            raise ProviderUnavailableError(f"{place} is not liboqs, or cannot be loaded") from error
        if tuple(map(int, re.findall(r"\d+", self.version)[:2])) < OLDEST:
            raise ProviderUnavailableError(
                f"liboqs {self.version} is too old: before {OLDEST[0]}.{OLDEST[1]} its ML-DSA may accept what FIPS 204"
                " refuses; install a newer one, or choose the provider cryptography"
            )
        self.handles = {algorithm: self._handle(algorithm) for algorithm in _SECRET_KEY_SIZES}
        self._seed: tuple[int, bytes] | None = None
        # Kept as long as the library: a thread may still be in it when the source is put back.
        self._source = _RandomBytes(self._give_random)

    @property
    def version(self) -> str:
        version: bytes = self.library.OQS_version()
        return version.decode()

    def _handle(self, algorithm: Algorithm) -> ctypes.c_void_p:
        make = self.library.OQS_KEM_new if algorithm.kind is Kind.KEM else self.library.OQS_SIG_new
        handle = make(algorithm.encode())
        if not handle:
            raise ProviderUnavailableError(f"the installed liboqs was built without {algorithm}")
        return ctypes.c_void_p(handle)

    def make_kem_key(self, algorithm: Algorithm, seed: bytes) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
        """Public and expanded private key of a seed."""
        public, secret = _key_buffers(algorithm)
        status = self.library.OQS_KEM_keypair_derand(self.handles[algorithm], public, secret, seed)
        _require(status, "liboqs could not make the key")
        return public.raw, secret

    def make_signing_key(self, algorithm: Algorithm, seed: bytes) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
        """Public and expanded private key of a seed."""
        public, secret = _key_buffers(algorithm)
        with _RANDOMNESS:
            self._seed = (threading.get_ident(), seed)
            self.library.OQS_randombytes_custom_algorithm(self._source)
            try:
                status = self.library.OQS_SIG_keypair(self.handles[algorithm], public, secret)
            finally:
                self.library.OQS_randombytes_switch_algorithm(b"system")
                self._seed = None
        _require(status, "liboqs could not make the key")
        rho = hashlib.shake_256(seed + _DSA_DIMENSIONS[algorithm]).digest(_RHO_SIZE)
        if not hmac.compare_digest(public.raw[:_RHO_SIZE], rho):
            raise ProviderUnavailableError("the installed liboqs does not make ML-DSA keys from seeds")
        return public.raw, secret

    def _give_random(self, buffer: ctypes._Pointer[ctypes.c_uint8], size: int) -> None:
        thread, seed = self._seed or (None, b"")
        own = thread == threading.get_ident() and size == len(seed)
        ctypes.memmove(buffer, seed if own else os.urandom(size), size)

    def cleanse(self, secret: ctypes.Array[ctypes.c_char]) -> None:
        """Overwrite an expanded private key."""
        self.library.OQS_MEM_cleanse(secret, len(secret))


def _key_buffers(algorithm: Algorithm) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
    public = ctypes.create_string_buffer(algorithm.parameters.public_key_size)
    return public, ctypes.create_string_buffer(_SECRET_KEY_SIZES[algorithm])


def _require(status: int, message: str) -> None:
    if status:
        raise CryptoError(message)


class _KemPublicKey:
    __slots__ = ("_liboqs", "algorithm", "public_bytes")

    def __init__(self, liboqs: _Liboqs, algorithm: Algorithm, raw: bytes) -> None:
        self._liboqs = liboqs
        self.algorithm = algorithm
        self.public_bytes = raw
        # liboqs checks the modulus only when it encapsulates; a bad key is to be refused before anybody uses it.
        try:
            self.encapsulate()
        except CryptoError:
            raise KeyMaterialError(f"the bytes are not a public key of {algorithm}") from None

    def encapsulate(self) -> tuple[bytes, bytes]:
        return self.encapsulate_from(os.urandom(_RANDOMNESS_SIZE))

    def encapsulate_from(self, randomness: bytes) -> tuple[bytes, bytes]:
        """Encapsulate with FIPS 203's `m`, 32 B: apart from `encapsulate`, for known-answer tests alone."""
        ciphertext = ctypes.create_string_buffer(self.algorithm.parameters.output_size)
        secret = ctypes.create_string_buffer(SHARED_SECRET_SIZE)
        handle = self._liboqs.handles[self.algorithm]
        status = self._liboqs.library.OQS_KEM_encaps_derand(handle, ciphertext, secret, self.public_bytes, randomness)
        _require(status, "liboqs could not encapsulate")
        return secret.raw, ciphertext.raw


class _KemPrivateKey:
    __slots__ = ("_liboqs", "_secret", "algorithm", "public_bytes")

    def __init__(self, liboqs: _Liboqs, algorithm: Algorithm, seed: bytes) -> None:
        self._liboqs = liboqs
        self.algorithm = algorithm
        self.public_bytes, self._secret = liboqs.make_kem_key(algorithm, seed)

    def __del__(self) -> None:
        if hasattr(self, "_secret"):
            self._liboqs.cleanse(self._secret)

    def decapsulate(self, ciphertext: bytes) -> bytes:
        size = self.algorithm.parameters.output_size
        if len(ciphertext) != size:
            raise CiphertextError(f"a ciphertext of {self.algorithm} has {size} bytes, not {len(ciphertext)}")
        secret = ctypes.create_string_buffer(SHARED_SECRET_SIZE)
        handle = self._liboqs.handles[self.algorithm]
        status = self._liboqs.library.OQS_KEM_decaps(handle, secret, ciphertext, self._secret)
        _require(status, "liboqs could not decapsulate")
        return secret.raw


class _VerifyingKey:
    __slots__ = ("_liboqs", "algorithm", "public_bytes")

    def __init__(self, liboqs: _Liboqs, algorithm: Algorithm, raw: bytes) -> None:
        self._liboqs = liboqs
        self.algorithm = algorithm
        self.public_bytes = raw

    def verify(self, message: bytes, signature: bytes, context: bytes = b"") -> bool:
        if len(context) > CONTEXT_MAX_SIZE or len(signature) != self.algorithm.parameters.output_size:
            return False
        status: int = self._liboqs.library.OQS_SIG_verify_with_ctx_str(
            self._liboqs.handles[self.algorithm],
            *_sized(message),
            *_sized(signature),
            *_sized(context),
            self.public_bytes,
        )
        return status == 0


class _SigningKey:
    __slots__ = ("_liboqs", "_secret", "algorithm", "public_bytes")

    def __init__(self, liboqs: _Liboqs, algorithm: Algorithm, seed: bytes) -> None:
        self._liboqs = liboqs
        self.algorithm = algorithm
        self.public_bytes, self._secret = liboqs.make_signing_key(algorithm, seed)

    def __del__(self) -> None:
        if hasattr(self, "_secret"):
            self._liboqs.cleanse(self._secret)

    def sign(self, message: bytes, context: bytes = b"") -> bytes:
        if len(context) > CONTEXT_MAX_SIZE:
            raise ContextError(f"a context string has at most {CONTEXT_MAX_SIZE} bytes, not {len(context)}")
        signature = ctypes.create_string_buffer(self.algorithm.parameters.output_size)
        size = ctypes.c_size_t(len(signature))
        status = self._liboqs.library.OQS_SIG_sign_with_ctx_str(
            self._liboqs.handles[self.algorithm],
            signature,
            ctypes.byref(size),
            *_sized(message),
            *_sized(context),
            self._secret,
        )
        _require(status, "liboqs could not sign")
        return signature.raw[: size.value]


def _sized(data: bytes) -> tuple[bytes, ctypes.c_size_t]:
    return data, ctypes.c_size_t(len(data))
