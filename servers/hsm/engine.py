"""Keys made, used and destroyed. Nothing here returns a private key, a seed or entropy."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar, cast

from servers.crypto.algorithms import Algorithm, Kind, require_kind
from servers.crypto.errors import CryptoError
from servers.crypto.sealing import Sealed, open_sealed
from servers.hsm.in_use import InUse
from servers.hsm.keystore import ReplicasDamagedError, UnknownKeyError, VersionError
from servers.hsm.sealed import Header, SealedSeed
from servers.hsm.vaults import SealedError, Unlocked, VaultError, overwrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from servers.crypto.provider import CryptoProvider, KemPrivateKey, SigningKey
    from servers.hsm.entropy import EntropyPool
    from servers.hsm.journal import Value
    from servers.hsm.keystore import KeyStore, StoredKey

_STRIPES: Final = 64
_BREATHER: Final = 8
"""Items of a batch after which other threads get their turn: decapsulating keeps the interpreter's lock, and the event
loop must not wait for a whole batch."""
_REFUSALS: Final = (UnknownKeyError, ReplicasDamagedError, VaultError, CryptoError)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """A key to be made."""

    key_id: str
    version: int
    algorithm: Algorithm
    organization_id: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key that was made; its public half only."""

    handle: str
    public_key: bytes
    entropy: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Box:
    """A ciphertext to open."""

    handle: str
    organization_id: str
    sealed: Sealed
    info: bytes = field(repr=False)
    associated_data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Paper:
    """A message to sign."""

    handle: str
    organization_id: str
    message: bytes = field(repr=False)
    context: bytes = b""


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key version as lists show it."""

    stored: StoredKey
    replicas: int
    valid: bool | None


class Engine:
    """The HSM's key operations. Its methods block (`generate` for some syncs of three disks) and may be called by
    several threads; domain errors are those that `servers.hsm.errors` knows.
    """

    def __init__(self, store: KeyStore, entropy: EntropyPool, provider: CryptoProvider, *, keys_in_use: int) -> None:
        self._store = store
        self._entropy = entropy
        self._provider = provider
        self._in_use: InUse[KemPrivateKey | SigningKey] = InUse(keys_in_use)
        self._stripes = tuple(threading.Lock() for _ in range(_STRIPES))
        self._state = threading.Lock()
        self._unlocked: Unlocked | None = None

    @property
    def unlocked(self) -> Unlocked | None:
        """What the unsealed HSM holds; None while it is sealed."""
        return self._unlocked

    def require_unlocked(self) -> Unlocked:
        """What the unsealed HSM holds.

        Raises:
            SealedError: it is sealed.
        """
        if self._unlocked is None:
            raise SealedError("the HSM is sealed")
        return self._unlocked

    def unlock(self, unlocked: Unlocked) -> None:
        """Begin to work."""
        with self._state:
            self._unlocked = unlocked

    def lock(self) -> None:
        """Forget the master key and the keys in use; what is running with them finishes."""
        with self._state:
            unlocked, self._unlocked = self._unlocked, None
            self._in_use.clear()
        if unlocked is not None:
            unlocked.master.close()

    def generate(self, order: KeyOrder, said: dict[str, Value]) -> MadeKey:
        """Make a key or its next version; durable on two modules when it returns. Asked again for a key's newest
        version, it answers with that.

        Args:
            order: what to make.
            said: for the journal: who asked.
        """
        unlocked = self.require_unlocked()
        with self._stripes[hash(order.key_id) % _STRIPES]:
            newest = self._store.index.newest(order.key_id)
            if newest is not None and newest.organization_id != order.organization_id:
                raise UnknownKeyError("the organisation has no such key")
            if newest is not None and (newest.version, newest.algorithm) == (order.version, order.algorithm):
                return self._made(newest, unlocked)
            self._require_next(order, newest)
            return self._make(order, unlocked, said)

    def decrypt(self, boxes: Sequence[Box]) -> list[bytes | Exception]:
        """Open boxes: what was inside each, or why not."""
        return self._batch(boxes, self._open_box)

    def sign(self, papers: Sequence[Paper]) -> list[bytes | Exception]:
        """Sign messages: the signature of each, or why there is none."""
        return self._batch(papers, self._sign_paper)

    def destroy(self, key_id: str, organization_id: str, said: dict[str, Value]) -> int:
        """Destroy all versions of a key; returns how many there were. One of another organisation is not there."""
        unlocked = self.require_unlocked()
        with self._stripes[hash(key_id) % _STRIPES]:
            versions = self._store.index.versions(key_id)
            if not versions:
                return 0
            if versions[-1].organization_id != organization_id:
                raise UnknownKeyError("the organisation has no such key")
            destroyed = self._store.destroy(key_id, said, unlocked.journal_key)
            self._in_use.forget(stored.handle for stored in versions)
        return destroyed

    def listed(self, after: str, size: int, *, validate: bool) -> list[ListedKey]:
        """The next keys by handle; with `validate` each is opened and its public half compared."""
        unlocked = self.require_unlocked() if validate else None
        return [
            ListedKey(
                stored,
                self._store.whole_replicas(stored),
                None if unlocked is None else self._is_valid(stored, unlocked),
            )
            for stored in self._store.index.page(after, size)
        ]

    def seeds(self) -> Iterator[tuple[Header, bytearray]]:
        """Every key's header and seed, for a backup; a lost one is left out, and the journal says so. Whoever takes a
        seed overwrites it.
        """
        unlocked = self.require_unlocked()
        for handle in self._store.index.handles():
            stored = self._store.index.get(handle)
            if stored is None:
                continue
            try:
                yield self._store.open(stored, unlocked.master)
            except UnknownKeyError:
                continue
            except ReplicasDamagedError:
                self._store.tell_lost(handle)

    def seal_restored(self, header: Header, seed: bytearray, unlocked: Unlocked) -> SealedSeed | None:
        """Seal a seed from a backup anew; None when it is not the key that its header says."""
        try:
            private = self._key(Algorithm(header.algorithm), seed)
        except ValueError:  # CryptoError, or no such algorithm
            return None
        if _public_hash(private.public_bytes) != header.public_key_hash:
            return None
        new = Header(
            header.key_id,
            header.version,
            header.algorithm,
            header.organization_id,
            self._store.next_generation(),
            header.created_at,
            header.public_key_hash,
            header.entropy,
        )
        return SealedSeed(new, *unlocked.master.seal(seed, new.associated_data()))

    def _make(self, order: KeyOrder, unlocked: Unlocked, said: dict[str, Value]) -> MadeKey:
        drawn = self._entropy.draw(order.algorithm.parameters.seed_size, order.sources)
        try:
            private = self._key(order.algorithm, drawn.seed)
            public = private.public_bytes
            made_at = datetime.now(UTC)
            header = Header(
                order.key_id,
                order.version,
                order.algorithm.value,
                order.organization_id,
                self._store.next_generation(),
                made_at.isoformat(timespec="microseconds"),
                _public_hash(public),
                drawn.told,
            )
            sealed = SealedSeed(header, *unlocked.master.seal(drawn.seed, header.associated_data()))
        finally:
            overwrite(drawn.seed)
        self._store.put(sealed, said, unlocked.journal_key)
        self._keep(unlocked, header.handle, private)
        return MadeKey(header.handle, public, drawn.told, made_at)

    def _require_next(self, order: KeyOrder, newest: StoredKey | None) -> None:
        if self._store.index.was_destroyed(order.key_id):
            raise VersionError("the key was destroyed: use another id")
        following = 1 if newest is None else newest.version + 1
        if order.version != following:
            raise VersionError(f"the key's next version is {following}, not {order.version}")

    def _made(self, stored: StoredKey, unlocked: Unlocked) -> MadeKey:
        header, private = self._open(stored, unlocked)
        return MadeKey(stored.handle, private.public_bytes, header.entropy, datetime.fromisoformat(header.created_at))

    def _batch(self, items: Sequence[Item], work: Callable[[Item, Unlocked], bytes]) -> list[bytes | Exception]:
        unlocked = self.require_unlocked()
        results: list[bytes | Exception] = []
        for number, item in enumerate(items, 1):
            try:
                results.append(work(item, unlocked))
            except _REFUSALS as error:
                results.append(error)
            if number % _BREATHER == 0:
                time.sleep(0)
        return results

    def _open_box(self, box: Box, unlocked: Unlocked) -> bytes:
        private = self._private(box.handle, box.organization_id, Kind.KEM, unlocked)
        return open_sealed(cast("KemPrivateKey", private), box.sealed, box.info, box.associated_data)

    def _sign_paper(self, paper: Paper, unlocked: Unlocked) -> bytes:
        private = self._private(paper.handle, paper.organization_id, Kind.SIGNATURE, unlocked)
        return cast("SigningKey", private).sign(paper.message, paper.context)

    def _private(self, handle: str, organization_id: str, kind: Kind, unlocked: Unlocked) -> KemPrivateKey | SigningKey:
        stored = self._store.index.get(handle)
        if stored is None or stored.organization_id != organization_id:
            raise UnknownKeyError("the organisation has no such key")
        require_kind(Algorithm(stored.algorithm), kind)
        return self._in_use.get(handle) or self._open(stored, unlocked)[1]

    def _open(self, stored: StoredKey, unlocked: Unlocked) -> tuple[Header, KemPrivateKey | SigningKey]:
        header, seed = self._store.open(stored, unlocked.master)
        try:
            private = self._key(Algorithm(header.algorithm), seed)
        finally:
            overwrite(seed)
        self._keep(unlocked, stored.handle, private)
        return header, private

    def _key(self, algorithm: Algorithm, seed: bytearray) -> KemPrivateKey | SigningKey:
        # `cryptography` reads the seed where it is; liboqs takes bytes alone, a copy that nobody can overwrite.
        in_place = self._provider.name == "cryptography"
        return self._provider.private_key(algorithm, cast("bytes", seed) if in_place else bytes(seed))

    def _keep(self, unlocked: Unlocked, handle: str, private: KemPrivateKey | SigningKey) -> None:
        with self._state:
            # Sealed or destroyed meanwhile: then nothing of the key stays in memory.
            if self._unlocked is unlocked and self._store.index.get(handle) is not None:
                self._in_use.keep(handle, private)

    def _is_valid(self, stored: StoredKey, unlocked: Unlocked) -> bool:
        try:
            header, seed = self._store.open(stored, unlocked.master)
        except (ReplicasDamagedError, UnknownKeyError):
            return False
        try:
            private = self._key(Algorithm(header.algorithm), seed)
        except ValueError:
            return False
        finally:
            overwrite(seed)
        return header.handle == stored.handle and _public_hash(private.public_bytes) == header.public_key_hash


def _public_hash(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()
