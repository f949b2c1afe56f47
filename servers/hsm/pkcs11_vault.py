"""The master key in a PKCS#11 module: an AES-256 key that is made there and cannot leave it.

The module's PIN comes from a file at the first ceremony; from then on it lies in the journal, sealed under what the
shares give, and the file can be deleted: without the shares nobody opens the module through us. Who knows the PIN and
has the module needs no shares: keep it as you keep them.

One thread owns the module: several in one process crash SoftHSM, and other modules promise little.
"""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pkcs11
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass

from servers.hsm.sealed import NONCE_SIZE, DamagedError
from servers.hsm.vaults import SealedError, VaultError, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from servers.crypto.provider import CryptoProvider
    from servers.hsm.vaults import MasterKey, RootSecret

_TAG_BITS: Final = 128
_LABEL: Final = "behaviorguard-master-"
_PIN_DATA: Final = b"BehaviorGuard HSM PIN v1"
_AWAY: Final = (
    pkcs11.exceptions.DeviceError,
    pkcs11.exceptions.DeviceMemory,
    pkcs11.exceptions.DeviceRemoved,
    pkcs11.exceptions.HostMemory,
    pkcs11.exceptions.KeyHandleInvalid,
    pkcs11.exceptions.SessionClosed,
    pkcs11.exceptions.SessionHandleInvalid,
    pkcs11.exceptions.TokenNotPresent,
    pkcs11.exceptions.UserNotLoggedIn,
)
T = TypeVar("T")


class Pkcs11Vault:
    """A token of a PKCS#11 module.

    Args:
        library: the module's shared library.
        token: label of the token, which its own tool has initialised.
        pin_file: holds the user PIN; needed for `create` alone.
        provider: makes the recovery key, whose fingerprint names the master key.
    """

    backend: Final = "pkcs11"

    def __init__(self, library: Path, token: str, pin_file: Path | None, provider: CryptoProvider) -> None:
        self._library = library
        self._token = token
        self._pin_file = pin_file
        self._provider = provider
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hsm-pkcs11")
        self.notice = (
            f"PKCS#11: the master key is in the module's token {token!r} and cannot leave it; seeds are opened by it "
            "and used in this process's memory."
        )

    def create(self, root: RootSecret) -> Mapping[str, str]:
        """See `Vault`."""
        # A name of its own each time: the old HSM's master key may be in the same token, and stays as it is.
        label = f"{_LABEL}{fingerprint(root.recovery_key(self._provider).public_bytes)}-{os.urandom(4).hex()}"
        pin = self._pin()

        def make() -> None:
            with self._session(pin, rw=True) as session:
                session.generate_key(
                    KeyType.AES,
                    256,
                    label=label,
                    store=True,
                    capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
                    template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
                )

        self._do(make)
        nonce = os.urandom(NONCE_SIZE)
        sealed = nonce + AESGCM(root.derive("pin")).encrypt(nonce, pin.encode(), _PIN_DATA)
        return {"token": self._token, "label": label, "pin": base64.b64encode(sealed).decode("ascii")}

    def open(self, root: RootSecret, made: Mapping[str, str]) -> MasterKey:
        """See `Vault`."""
        try:
            sealed = base64.b64decode(made["pin"], validate=True)
            opened = AESGCM(root.derive("pin")).decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], _PIN_DATA)
            pin, label = opened.decode(), made["label"]
        except (KeyError, ValueError, InvalidTag):
            raise VaultError("the journal does not hold this module's PIN: restore from shares and backup") from None

        def find() -> Pkcs11MasterKey:
            session = self._session(pin, rw=False)
            try:
                key = session.get_key(object_class=ObjectClass.SECRET_KEY, label=label)
                if key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
                    raise VaultError("the module's master key could be read out: restore onto a module that keeps it")
            except pkcs11.exceptions.PKCS11Error:
                session.close()
                raise
            return Pkcs11MasterKey(self._thread, session, key)

        return self._do(find)

    def _pin(self) -> str:
        if self._pin_file is None:
            raise VaultError("the module's PIN is needed once: name a file with BEHAVIORGUARD_HSM_PIN_FILE")
        try:
            pin = self._pin_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise VaultError(f"the PIN file {self._pin_file} cannot be read") from None
        if not pin:
            raise VaultError(f"the PIN file {self._pin_file} is empty")
        return pin

    def _session(self, pin: str, *, rw: bool) -> Any:
        token = pkcs11.lib(str(self._library)).get_token(token_label=self._token)
        return token.open(user_pin=pin, rw=rw)

    def _do(self, work: Callable[[], T]) -> T:
        try:
            return self._thread.submit(work).result()
        except (pkcs11.exceptions.PKCS11Error, RuntimeError) as error:
            raise VaultError(
                f"the PKCS#11 module refuses ({type(error).__name__}): check that its token {self._token!r} is there "
                "and its PIN right"
            ) from None


class Pkcs11MasterKey:
    """AES-256-GCM by the module (`C_Encrypt`; modules rarely offer `C_WrapKey` with GCM)."""

    def __init__(self, thread: ThreadPoolExecutor, session: Any, key: Any) -> None:
        self._thread = thread
        self._session = session
        self._key = key

    def seal(self, plaintext: bytes | bytearray, associated_data: bytes) -> tuple[bytes, bytes]:
        """See `MasterKey`."""
        nonce = os.urandom(NONCE_SIZE)

        def encrypt() -> bytes:
            sealed: bytes = self._usable().encrypt(
                bytes(plaintext),
                mechanism=Mechanism.AES_GCM,
                mechanism_param=GCMParams(nonce, associated_data, _TAG_BITS),
            )
            return sealed

        try:
            return nonce, self._thread.submit(encrypt).result()
        except pkcs11.exceptions.PKCS11Error as error:
            raise VaultError(f"the PKCS#11 module does not seal ({type(error).__name__}): check it") from None

    def open(self, nonce: bytes, ciphertext: bytes, associated_data: bytes) -> bytearray:
        """See `MasterKey`."""

        def decrypt() -> bytearray:
            return bytearray(
                self._usable().decrypt(
                    ciphertext,
                    mechanism=Mechanism.AES_GCM,
                    mechanism_param=GCMParams(nonce, associated_data, _TAG_BITS),
                )
            )

        try:
            return self._thread.submit(decrypt).result()
        except _AWAY:
            raise VaultError("the PKCS#11 module is away: check it, then seal and unseal the HSM") from None
        except pkcs11.exceptions.PKCS11Error:  # modules name a wrong tag differently
            raise DamagedError("the sealed seed does not open") from None

    def close(self) -> None:
        """See `MasterKey`."""
        session, self._session, self._key = self._session, None, None
        if session is not None:
            self._thread.submit(session.close).result()

    def _usable(self) -> Any:
        if self._key is None:
            raise SealedError("the HSM was sealed meanwhile")
        return self._key
