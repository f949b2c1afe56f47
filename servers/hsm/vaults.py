"""Where the master key is: behind one Protocol, this process (`SoftwareVault`) or a PKCS#11 module
(`servers.hsm.pkcs11_vault`).

Shares never give the master key of a module away, because nothing does. They give the root secret, and from it follow,
by HKDF-SHA256 with a label each:

    seal       the software store's master key
    pin        what the module's PIN is sealed with
    journal    the key of the journal's MACs
    backup     what proves that a backup was made by an unsealed HSM of the same root
    recovery   the X-Wing key pair that backups are encrypted to; only its public half is kept while unsealed
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from servers.crypto.algorithms import Algorithm
from servers.hsm.sealed import NONCE_SIZE, DamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.crypto.provider import CryptoProvider, KemPrivateKey, KemPublicKey

ROOT_SIZE: Final = 32
_LABEL: Final = b"BehaviorGuard HSM root v1: "


class VaultError(Exception):
    """The vault cannot be made or opened; the text tells an operator what to do."""


class SealedError(VaultError):
    """The master key is not in reach: the HSM is sealed."""


class MasterKey(Protocol):
    """Seals and opens seeds. Its methods block and may be called by several threads."""

    def seal(self, plaintext: bytes | bytearray, associated_data: bytes) -> tuple[bytes, bytes]:
        """A fresh nonce (12 B) and the AES-256-GCM ciphertext with its tag."""

    def open(self, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytearray:
        """What was sealed; the owner overwrites it after use.

        Raises:
            DamagedError: something is not as it was sealed, or another master key sealed it.
        """

    def close(self) -> None:
        """Forget the key, or log out of the module."""


class Vault(Protocol):
    """Makes and opens the master key. Its methods block."""

    @property
    def backend(self) -> str:
        """ "software" or "pkcs11"."""

    @property
    def notice(self) -> str:
        """One honest sentence about where keys live."""

    def create(self, root: RootSecret) -> Mapping[str, str]:
        """Make the master key of a new HSM; returns what `open` needs besides the root, without secrets.

        Raises:
            VaultError: it cannot be made.
        """

    def open(self, root: RootSecret, made: Mapping[str, str]) -> MasterKey:
        """The master key that was made with this root.

        Raises:
            VaultError: the module is away, or does not have it.
        """


class RootSecret:
    """What the shares give. Overwrite it as soon as what follows from it is derived."""

    def __init__(self, secret: bytes | bytearray) -> None:
        if len(secret) != ROOT_SIZE:
            raise ValueError(f"the root secret has {ROOT_SIZE} bytes")
        self._secret = bytearray(secret)

    def derive(self, label: str, size: int = 32) -> bytes:
        """What follows from the root for one purpose: HKDF-SHA256 without salt, the label as info."""
        return HKDF(hashes.SHA256(), size, salt=None, info=_LABEL + label.encode()).derive(bytes(self._secret))

    def recovery_key(self, provider: CryptoProvider) -> KemPrivateKey:
        """The X-Wing key that opens backups."""
        return provider.kem_private_key(Algorithm.X_WING, self.derive("recovery"))

    def secret(self) -> bytes:
        """The secret itself, to be split."""
        return bytes(self._secret)

    def overwrite(self) -> None:
        """Overwrite it with zeros; copies that libraries made are beyond reach."""
        overwrite(self._secret)


def fingerprint(recovery_public: bytes) -> str:
    """Public name of a root: the first 16 B of SHA-256 of its recovery key's public half, hexadecimal."""
    return hashlib.sha256(recovery_public).hexdigest()[:32]


def overwrite(buffer: bytearray) -> None:
    """Overwrite with zeros, in place."""
    buffer[:] = bytes(len(buffer))


@dataclass(frozen=True, slots=True)
class Unlocked:
    """What an unsealed HSM holds in memory besides the keys in use."""

    master: MasterKey = field(repr=False)
    journal_key: bytes = field(repr=False)
    backup_key: bytes = field(repr=False)
    recovery: KemPublicKey = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Public name of the root."""
        return fingerprint(self.recovery.public_bytes)


def unlock(root: RootSecret, master: MasterKey, provider: CryptoProvider) -> Unlocked:
    """Derive what an unsealed HSM needs."""
    public = root.recovery_key(provider).public_bytes
    recovery = provider.kem_public_key(Algorithm.X_WING, public)
    return Unlocked(master, root.derive("journal"), root.derive("backup"), recovery)


class SoftwareVault:
    """The master key in this process's memory."""

    backend: Final = "software"
    notice: Final = "Software store: keys are protected by the shares and by this process, not by hardware."

    def create(self, root: RootSecret) -> Mapping[str, str]:
        """See `Vault`."""
        del root
        return {}

    def open(self, root: RootSecret, made: Mapping[str, str]) -> MasterKey:
        """See `Vault`."""
        del made
        return SoftwareMasterKey(root.derive("seal"))


class SoftwareMasterKey:
    """AES-256-GCM with a key in memory."""

    def __init__(self, key: bytes) -> None:
        self._cipher: AESGCM | None = AESGCM(key)

    def seal(self, plaintext: bytes | bytearray, associated_data: bytes) -> tuple[bytes, bytes]:
        """See `MasterKey`."""
        nonce = os.urandom(NONCE_SIZE)
        return nonce, self._open_cipher().encrypt(nonce, plaintext, associated_data)

    def open(self, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytearray:
        """See `MasterKey`."""
        plaintext = bytearray(max(0, len(ciphertext) - 16))
        try:
            self._open_cipher().decrypt_into(nonce, ciphertext, associated_data, plaintext)
        except (InvalidTag, ValueError):
            raise DamagedError("the sealed seed does not open") from None
        return plaintext

    def close(self) -> None:
        """See `MasterKey`."""
        self._cipher = None

    def _open_cipher(self) -> AESGCM:
        if self._cipher is None:
            raise SealedError("the HSM was sealed meanwhile")
        return self._cipher
