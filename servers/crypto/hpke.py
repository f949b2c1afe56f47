"""The key schedule of HPKE (RFC 9180 section 5.1), for the suites that the product seals with.

HPKE is KEM, then HKDF, then AEAD, each step bound to the suite's name. The numbers of the post-quantum KEMs are those
of draft-ietf-hpke-pq.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from servers.crypto.algorithms import Algorithm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODE_BASE: Final = 0
"""Anybody with the public key may seal (RFC 9180 section 5.1.1): the product's one mode."""

_VERSION: Final = b"HPKE-v1"
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16


class Aead(Protocol):
    """A cipher under one key."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        """Ciphertext and tag."""

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        """Plaintext; `cryptography.exceptions.InvalidTag` when the tag is wrong."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What is put together, by RFC 9180's numbers (section 7)."""

    kem_id: int
    kdf_id: int
    aead_id: int
    hash_name: str = "sha256"
    """Hash of HKDF, as `hashlib` names it."""
    hash_size: int = 32
    """Its output, bytes."""
    key_size: int = 32
    """Key of the AEAD, bytes."""
    aead: Callable[[bytes], Aead] = AESGCM

    suite_id: bytes = field(init=False, repr=False)
    """Bound into every step."""

    def __post_init__(self) -> None:
        numbers = (self.kem_id, self.kdf_id, self.aead_id)
        object.__setattr__(self, "suite_id", b"HPKE" + b"".join(number.to_bytes(2) for number in numbers))

    def labeled_extract(self, salt: bytes, label: bytes, ikm: bytes) -> bytes:
        """RFC 9180 section 4, `LabeledExtract`."""
        return hmac.digest(salt, _VERSION + self.suite_id + label + ikm, self.hash_name)

    def labeled_expand(self, secret: bytes, label: bytes, info: bytes, size: int) -> bytes:
        """RFC 9180 section 4, `LabeledExpand`, to `size` bytes (at most 255 hashes long)."""
        info = size.to_bytes(2) + _VERSION + self.suite_id + label + info
        block, okm, counter = b"", b"", 0
        while len(okm) < size:
            counter += 1
            block = hmac.digest(secret, block + info + bytes((counter,)), self.hash_name)
            okm += block
        return okm[:size]


PRODUCT_SUITES: Final[Mapping[Algorithm, Suite]] = {
    Algorithm.ML_KEM_768: Suite(0x0041, 1, 2),
    Algorithm.ML_KEM_1024: Suite(0x0042, 1, 2),
    Algorithm.X_WING: Suite(0x647A, 1, 2),
}
"""HKDF-SHA256 and AES-256-GCM with each KEM."""


@dataclass(frozen=True, slots=True, repr=False)
class Schedule:
    """What one shared secret gives. Its `repr` shows nothing: all of it is secret."""

    suite: Suite
    secret: bytes
    context: bytes

    @classmethod
    def derive(
        cls,
        suite: Suite,
        shared_secret: bytes,
        info: bytes,
        *,
        mode: int = MODE_BASE,
        psk: bytes = b"",
        psk_id: bytes = b"",
    ) -> Schedule:
        """RFC 9180 section 5.1, `KeySchedule`, with the arguments in its order of meaning."""
        context = (
            bytes((mode,))
            + suite.labeled_extract(b"", b"psk_id_hash", psk_id)
            + suite.labeled_extract(b"", b"info_hash", info)
        )
        return cls(suite, suite.labeled_extract(shared_secret, b"secret", psk), context)

    def cipher(self) -> Aead:
        """The AEAD under the content key."""
        return self.suite.aead(self.expand(b"key", self.suite.key_size))

    def base_nonce(self) -> bytes:
        """Nonce of the first message; one message is all the product seals under a secret."""
        return self.expand(b"base_nonce", NONCE_SIZE)

    def expand(self, label: bytes, size: int) -> bytes:
        """`LabeledExpand` of the schedule's secret."""
        return self.suite.labeled_expand(self.secret, label, self.context, size)
