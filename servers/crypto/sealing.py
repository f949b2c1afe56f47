"""The sealed box that both sides use: KEM, then HKDF-SHA256, then AES-256-GCM, put together as HPKE's base mode.

`kem_ciphertext || ciphertext` is what any HPKE library opens with `info` and `associated_data` (RFC 9180 section 6.1,
`OpenBase`). The nonce follows from the shared secret and is carried all the same: it must be the right one.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag

from servers.crypto.errors import CryptoError, OpenError
from servers.crypto.hpke import PRODUCT_SUITES, Schedule

if TYPE_CHECKING:
    from servers.crypto.provider import KemPrivateKey, KemPublicKey


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed box."""

    kem_ciphertext: bytes = field(repr=False)
    """As long as the KEM's standard says."""
    nonce: bytes = field(repr=False)
    """12 B."""
    ciphertext: bytes = field(repr=False)
    """As long as the plaintext, and the tag of 16 B."""


def seal(public_key: KemPublicKey, info: bytes, associated_data: bytes, plaintext: bytes) -> Sealed:
    """Seal `plaintext` for the holder of the private key; each call has a shared secret of its own.

    `info` is bound into the key, `associated_data` into the tag: the box opens only with the same of both.
    """
    shared_secret, kem_ciphertext = public_key.encapsulate()
    schedule = Schedule.derive(PRODUCT_SUITES[public_key.algorithm], shared_secret, info)
    nonce = schedule.base_nonce()
    return Sealed(kem_ciphertext, nonce, schedule.cipher().encrypt(nonce, plaintext, associated_data))


def open_sealed(private_key: KemPrivateKey, sealed: Sealed, info: bytes, associated_data: bytes) -> bytes:
    """What was sealed.

    Raises:
        OpenError: The box was changed, is for another key, or `info` or `associated_data` are not what they were. The
            error does not say which.
    """
    try:
        shared_secret = private_key.decapsulate(sealed.kem_ciphertext)
        schedule = Schedule.derive(PRODUCT_SUITES[private_key.algorithm], shared_secret, info)
        nonce = schedule.base_nonce()
        plaintext = schedule.cipher().decrypt(nonce, sealed.ciphertext, associated_data)
    except (CryptoError, InvalidTag):
        raise OpenError from None
    if not hmac.compare_digest(nonce, sealed.nonce):
        raise OpenError
    return plaintext
