"""Backups: every seed, encrypted to the recovery key that only the shares give. `docs/hsm.md` writes the format down.

    magic 8 B | length of header 4 B | header (JSON) | frames
    frame: length 4 B | AES-256-GCM ciphertext with tag
    record, in the frames' plaintexts: length 2 B | header of the sealed seed (JSON) | length 1 B | seed

The content key is HKDF-SHA256 of an X-Wing secret for the recovery key, with the root's backup key as salt: reading one
needs the shares, making one needs an HSM that was unsealed with them. Frames are numbered in their nonces and the last
is marked, so that none can be dropped, doubled, moved or cut off unseen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from servers.crypto.errors import CryptoError
from servers.hsm.sealed import DamagedError, parse_header
from servers.hsm.vaults import fingerprint, overwrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from servers.crypto.provider import CryptoProvider, KemPublicKey
    from servers.hsm.sealed import Header
    from servers.hsm.vaults import RootSecret, Unlocked

MAGIC: Final = b"BGBACK01"
FRAME_SIZE: Final = 32 * 1024
"""Plaintext of a frame, bytes at most."""
MAX_HEADER: Final = 4096
MAX_SEED: Final = 64

_TAG_SIZE: Final = 16
_INFO: Final = b"BehaviorGuard HSM backup v1"
_FIELDS: Final = ("created_at", "fingerprint", "kem_ciphertext")


class OtherRootError(Exception):
    """The backup is of an HSM with other shares."""


@dataclass(frozen=True, slots=True)
class _Lead:
    """The start of a backup, in the clear."""

    created_at: str
    fingerprint: str
    kem_ciphertext: bytes

    def encode(self) -> bytes:
        said = {
            "created_at": self.created_at,
            "fingerprint": self.fingerprint,
            "kem_ciphertext": base64.b64encode(self.kem_ciphertext).decode("ascii"),
        }
        header = json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")
        return MAGIC + len(header).to_bytes(4) + header


class _Frames:
    """Cipher, nonces and associated data of a backup's frames."""

    def __init__(self, secret: bytes, backup_key: bytes, lead: bytes) -> None:
        key = HKDF(hashes.SHA256(), 32, salt=backup_key, info=_INFO).derive(secret)
        self._cipher = AESGCM(key)
        self._associated_data = hashlib.sha256(lead).digest()
        self._count = 0

    def seal(self, plaintext: bytes, *, last: bool) -> bytes:
        sealed = self._cipher.encrypt(self._nonce(last), plaintext, self._associated_data)
        return len(sealed).to_bytes(4) + sealed

    def open(self, sealed: bytes) -> tuple[bytes, bool]:
        """The plaintext, and whether it was the last."""
        number = self._count
        for last in (False, True):
            self._count = number
            try:
                return self._cipher.decrypt(self._nonce(last), sealed, self._associated_data), last
            except InvalidTag:
                continue
        raise DamagedError("a frame of the backup does not open: it was changed, moved, or is of another backup")

    def _nonce(self, last: bool) -> bytes:
        self._count += 1
        return self._count.to_bytes(11) + bytes((last,))


def write_backup(seeds: Iterable[tuple[Header, bytearray]], unlocked: Unlocked, created_at: str) -> Iterator[bytes]:
    """The pieces of a backup, each under 64 KiB; seeds are overwritten as they are taken."""
    recovery: KemPublicKey = unlocked.recovery
    secret, kem_ciphertext = recovery.encapsulate()
    lead = _Lead(created_at, unlocked.fingerprint, kem_ciphertext).encode()
    yield lead
    frames = _Frames(secret, unlocked.backup_key, lead)
    waiting = bytearray()
    for header, seed in seeds:
        encoded = header.encode()
        record = len(encoded).to_bytes(2) + encoded + len(seed).to_bytes(1)
        if len(waiting) + len(record) + len(seed) > FRAME_SIZE:
            yield frames.seal(bytes(waiting), last=False)
            overwrite(waiting)
            waiting.clear()
        waiting += record
        waiting += seed
        overwrite(seed)
    yield frames.seal(bytes(waiting), last=True)
    overwrite(waiting)


class BackupReader:
    """Reads a backup from pieces of any size; holds no more than a frame and a piece.

    Args:
        root: what the shares gave.
        provider: makes the recovery key.
    """

    def __init__(self, root: RootSecret, provider: CryptoProvider) -> None:
        self._recovery = root.recovery_key(provider)
        self._backup_key = root.derive("backup")
        self._waiting = bytearray()
        self._frames: _Frames | None = None
        self._ended = False

    def feed(self, piece: bytes) -> list[tuple[Header, bytearray]]:
        """Take a piece; returns the keys that are whole with it. Whoever takes a seed overwrites it.

        Raises:
            DamagedError: the backup was changed.
            OtherRootError: it is of an HSM with other shares.
        """
        self._waiting += piece
        if self._frames is None:
            self._begin()
        found: list[tuple[Header, bytearray]] = []
        while self._frames is not None and (sealed := self._frame()) is not None:
            if self._ended:
                raise DamagedError("the backup goes on after its end")
            plaintext, self._ended = self._frames.open(sealed)
            found += _records(plaintext)
        return found

    def finish(self) -> None:
        """Call when there are no more pieces.

        Raises:
            DamagedError: the end is missing.
        """
        if not self._ended or self._waiting:
            raise DamagedError("the backup is cut short")

    def _begin(self) -> None:
        start = len(MAGIC) + 4
        if len(self._waiting) < start:
            return
        if not self._waiting.startswith(MAGIC):
            raise DamagedError("this is no backup of an HSM")
        end = start + int.from_bytes(self._waiting[len(MAGIC) : start])
        if end - start > MAX_HEADER:
            raise DamagedError("the backup's header is too long")
        if len(self._waiting) < end:
            return
        lead = bytes(self._waiting[:end])
        del self._waiting[:end]
        said = _parse_lead(lead[start:])
        if said.fingerprint != fingerprint(self._recovery.public_bytes):
            raise OtherRootError("the backup is of an HSM with other shares: unseal with those")
        try:
            secret = self._recovery.decapsulate(said.kem_ciphertext)
        except CryptoError:
            raise DamagedError("the backup's header holds no key for us") from None
        self._frames = _Frames(secret, self._backup_key, lead)

    def _frame(self) -> bytes | None:
        """The next whole frame; None when more pieces are needed."""
        if len(self._waiting) < 4:
            return None
        size = int.from_bytes(self._waiting[:4])
        if not _TAG_SIZE <= size <= FRAME_SIZE + _TAG_SIZE:
            raise DamagedError("a frame of the backup has another size")
        if len(self._waiting) < 4 + size:
            return None
        sealed = bytes(self._waiting[4 : 4 + size])
        del self._waiting[: 4 + size]
        return sealed


def _parse_lead(raw: bytes) -> _Lead:
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        raise DamagedError("the backup's header is not JSON") from None
    if (
        not isinstance(said, dict)
        or sorted(said) != list(_FIELDS)
        or not all(isinstance(v, str) for v in said.values())
    ):
        raise DamagedError("the backup's header holds something else than text")
    try:
        ciphertext = base64.b64decode(said["kem_ciphertext"], validate=True)
    except (binascii.Error, ValueError):
        raise DamagedError("the backup's header is not base64") from None
    return _Lead(said["created_at"], said["fingerprint"], ciphertext)


def _records(plaintext: bytes) -> Iterator[tuple[Header, bytearray]]:
    place = 0
    while place < len(plaintext):
        header_end = place + 2 + int.from_bytes(plaintext[place : place + 2])
        if header_end >= len(plaintext):
            raise DamagedError("a record of the backup is cut short")
        seed_start = header_end + 1
        end = seed_start + plaintext[header_end]
        if end > len(plaintext) or end - seed_start > MAX_SEED:
            raise DamagedError("a seed of the backup is cut short or too long")
        yield parse_header(plaintext[place + 2 : header_end]), bytearray(plaintext[seed_start:end])
        place = end
