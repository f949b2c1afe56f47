"""The file that holds one sealed seed. `docs/hsm.md` writes the format down.

    magic 8 B | length of header 2 B | header (JSON) | nonce 12 B | ciphertext with tag | SHA-256 of all before, 32 B

The header is the associated data of the seal: a seed opens only as the key, version, algorithm, organisation and
generation that it was sealed as. The hash at the end finds damage without the master key.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Final

MAGIC: Final = b"BGSEAL01"
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
HASH_SIZE: Final = 32
MAX_FILE_SIZE: Final = 4096
"""A sealed file is under 600 B; more is not read."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEX_HASH: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER_MAX: Final = 2**63 - 1


class DamagedError(ValueError):
    """The bytes are not what was written; the text says what is wrong with their form."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a sealed seed is; all of it is bound to the seal."""

    key_id: str
    """UUID, lower case."""
    version: int
    """From 1."""
    algorithm: str
    """The standard's name."""
    organization_id: str
    """UUID, lower case."""
    generation: int
    """Number of the seal, from 1: no two in an HSM's life have the same. An older file in a newer one's place is seen
    by it."""
    created_at: str
    """When the key was made: ISO 8601 in UTC."""
    public_key_hash: str
    """SHA-256 of the public half, hexadecimal."""
    entropy: str
    """What the key was made from: "os:healthy"."""

    @property
    def handle(self) -> str:
        """The HSM's name for the version."""
        return f"{self.key_id}:{self.version}"

    def encode(self) -> bytes:
        """One form for one header: JSON with sorted keys, without spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    def associated_data(self) -> bytes:
        """What is bound to the seal."""
        return MAGIC + self.encode()


@dataclass(frozen=True, slots=True)
class SealedSeed:
    """A sealed file taken apart; that it opens is not said yet."""

    header: Header
    nonce: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)

    def encode(self) -> bytes:
        """The file's content."""
        header = self.header.encode()
        content = MAGIC + len(header).to_bytes(2) + header + self.nonce + self.ciphertext
        return content + hashlib.sha256(content).digest()


def parse_sealed(content: bytes) -> SealedSeed:
    """Take a sealed file apart.

    Raises:
        DamagedError: it was not written by `SealedSeed.encode`, or changed since.
    """
    start = len(MAGIC) + 2
    if len(content) > MAX_FILE_SIZE or len(content) < start + NONCE_SIZE + TAG_SIZE + HASH_SIZE:
        raise DamagedError("a sealed file has another size")
    if not content.startswith(MAGIC):
        raise DamagedError("the file does not begin as a sealed file")
    body, digest = content[:-HASH_SIZE], content[-HASH_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise DamagedError("the sealed file's hash is wrong")
    end = start + int.from_bytes(body[len(MAGIC) : start])
    sealed = SealedSeed(parse_header(body[start:end]), body[end : end + NONCE_SIZE], body[end + NONCE_SIZE :])
    if len(sealed.ciphertext) < TAG_SIZE:
        raise DamagedError("the sealed file is cut short")
    return sealed


def parse_header(raw: bytes) -> Header:
    """Read a header in its one form.

    Raises:
        DamagedError: it is in another.
    """
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        raise DamagedError("the header is not JSON") from None
    if not isinstance(said, dict) or set(said) != set(Header.__slots__):
        raise DamagedError("the header has other fields")
    numbers = (said["version"], said["generation"])
    if any(type(number) is not int or not 1 <= number <= _NUMBER_MAX for number in numbers):
        raise DamagedError("the header's version or generation is no number from 1")
    if any(not isinstance(value, str) for name, value in said.items() if name not in ("version", "generation")):
        raise DamagedError("the header's fields are not text")
    header = Header(**said)
    if not _UUID.fullmatch(header.key_id) or not _UUID.fullmatch(header.organization_id):
        raise DamagedError("the header's ids are not UUIDs")
    if not _HEX_HASH.fullmatch(header.public_key_hash) or header.encode() != raw:
        raise DamagedError("the header is not in its one form")
    return header
