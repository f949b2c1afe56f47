"""The envelope: how an encrypted template lies in a store or travels. `docs/envelope.md` writes the bytes down.

    offset  size  field
    0       4     "BGEV"
    4       1     version of this layout: 1
    5       1     suite: 1 ML-KEM-768, 2 ML-KEM-1024, 3 X-Wing, each with HKDF-SHA256 and AES-256-GCM
    6       16    key id (UUID)
    22      4     key version, big-endian, from 1
    26      16    organisation (UUID)
    42      16    subject: the person (UUID)
    58      1     length n of the device id, 0 when it is bound to none
    59      n     device id, of [A-Za-z0-9._:-]
    59+n    k     KEM ciphertext: 1,088 B (suite 1), 1,568 B (suite 2), 1,120 B (suite 3)
    ..      12    nonce of AES-256-GCM
    ..      rest  ciphertext (1 B to 64 KiB) and tag (16 B)

Everything before the KEM ciphertext is the header and is bound as associated data.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC: Final = b"BGEV"
LAYOUT: Final = 1
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
MAX_TEMPLATE_SIZE: Final = 65_536
"""Longest template, bytes."""
MAX_KEY_VERSION: Final = 1_000_000

_FIXED: Final = struct.Struct(">4sBB16sI16s16sB")
_DEVICE: Final = re.compile(rb"[A-Za-z0-9._:-]{0,255}")


@dataclass(frozen=True, slots=True)
class Suite:
    """KEM, key derivation and cipher of an envelope."""

    number: int
    """As the header carries it."""
    algorithm: str
    """The KEM by its standard's name."""
    kem_ciphertext_size: int
    """Bytes."""

    @property
    def name(self) -> str:
        """`ML-KEM-768+HKDF-SHA256+AES-256-GCM`."""
        return f"{self.algorithm}+HKDF-SHA256+AES-256-GCM"

    @property
    def info(self) -> bytes:
        """HKDF's info string: keeps keys of this use apart from every other."""
        return b"behaviorguard envelope 1 " + self.name.encode()


SUITES: Final[Mapping[str, Suite]] = {
    suite.algorithm: suite
    for suite in (Suite(1, "ML-KEM-768", 1088), Suite(2, "ML-KEM-1024", 1568), Suite(3, "X-Wing", 1120))
}
"""By the KEM's name."""
_BY_NUMBER: Final[Mapping[int, Suite]] = {suite.number: suite for suite in SUITES.values()}


class EnvelopeError(ValueError):
    """The bytes are no envelope. The text is the same for whatever is wrong with them."""

    def __init__(self) -> None:
        super().__init__("the envelope is not one of this service, or was changed")


@dataclass(frozen=True, slots=True)
class Header:
    """What an envelope says about itself, all of it bound."""

    suite: Suite
    key_id: str
    """UUID of the key, lower case."""
    key_version: int
    """1 to 1,000,000."""
    organization_id: str
    """UUID of the organisation, lower case."""
    user_id: str = field(repr=False)
    """UUID of the person, lower case."""
    device_id: str = field(default="", repr=False)
    """Device that it is bound to; empty when to none."""

    def encode(self) -> bytes:
        """The header's bytes: 59 and the device id's.

        Raises:
            ValueError: an id is no UUID, or the device id has other characters or is too long.
        """
        device = self.device_id.encode()
        if _DEVICE.fullmatch(device) is None:
            raise ValueError("a device id has at most 255 of [A-Za-z0-9._:-]")
        return (
            _FIXED.pack(
                MAGIC,
                LAYOUT,
                self.suite.number,
                _uuid_bytes(self.key_id),
                self.key_version,
                _uuid_bytes(self.organization_id),
                _uuid_bytes(self.user_id),
                len(device),
            )
            + device
        )


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope: nothing of it is authentic before it opens."""

    header: Header
    header_bytes: bytes = field(repr=False)
    """The associated data."""
    kem_ciphertext: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)
    """With the tag at its end."""

    @property
    def tag(self) -> bytes:
        """The AES-256-GCM tag, 16 B."""
        return self.ciphertext[-TAG_SIZE:]


def join(header_bytes: bytes, kem_ciphertext: bytes, nonce: bytes, ciphertext: bytes) -> bytes:
    """The envelope of its parts."""
    return b"".join((header_bytes, kem_ciphertext, nonce, ciphertext))


def parse(data: bytes) -> Envelope:
    """Take an envelope apart; there is exactly one way to write each.

    Raises:
        EnvelopeError: it is none: another layout or suite, too short or too long, a field out of its range.
    """
    if len(data) < _FIXED.size:
        raise EnvelopeError
    magic, layout, number, key_id, key_version, organization, user, device_size = _FIXED.unpack_from(data)
    suite = _BY_NUMBER.get(number)
    if magic != MAGIC or layout != LAYOUT or suite is None or not 1 <= key_version <= MAX_KEY_VERSION:
        raise EnvelopeError
    kem_at = _FIXED.size + device_size
    nonce_at = kem_at + suite.kem_ciphertext_size
    text_at = nonce_at + NONCE_SIZE
    device = data[_FIXED.size : kem_at]
    if not 1 <= len(data) - text_at - TAG_SIZE <= MAX_TEMPLATE_SIZE or _DEVICE.fullmatch(device) is None:
        raise EnvelopeError
    header = Header(
        suite, _uuid_text(key_id), key_version, _uuid_text(organization), _uuid_text(user), device.decode("ascii")
    )
    return Envelope(header, data[:kem_at], data[kem_at:nonce_at], data[nonce_at:text_at], data[text_at:])


def _uuid_bytes(text: str) -> bytes:
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != 16:
        raise ValueError("an id is a UUID")
    return raw


def _uuid_text(raw: bytes) -> str:
    return str(UUID(bytes=raw))
