"""Sealed seeds on three modules, as the journal says they are."""

from __future__ import annotations

import hashlib
import heapq
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from servers.hsm.modules import NEW, QuorumError
from servers.hsm.sealed import MAX_FILE_SIZE, DamagedError, Header, SealedSeed, parse_sealed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from servers.hsm.journal import Entry, Journal, Value
    from servers.hsm.modules import Module, Modules, Replica
    from servers.hsm.vaults import MasterKey

_log = logging.getLogger(__name__)

KEYS: Final = "keys"
"""Folder of the sealed files in each module."""
MADE: Final = ("generate", "restore-key")
"""Kinds of records that say that a key exists."""
EMPTIED: Final = ("initialize", "restore-begin")
"""Kinds of records with which an HSM begins anew, empty."""

_RESTORED_AT_ONCE: Final = 8


class UnknownKeyError(LookupError):
    """There is no key of that handle."""


class KeysFullError(Exception):
    """The HSM holds as many keys as it may."""


class ReplicasDamagedError(Exception):
    """No module has the key whole."""


class VersionError(Exception):
    """The version is not the next one, or the key was destroyed; the text says which."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key version that exists."""

    key_id: str
    version: int
    algorithm: str
    organization_id: str
    generation: int
    digest: bytes
    """SHA-256 of its sealed file."""

    @property
    def handle(self) -> str:
        """The HSM's name for it."""
        return f"{self.key_id}:{self.version}"

    @property
    def file(self) -> str:
        """Where its sealed file lies in each module."""
        return f"{KEYS}/{self.key_id[0]}/{self.key_id}.{self.version}.seal"


class KeyIndex:
    """Which keys exist, from the journal's records in their order."""

    def __init__(self) -> None:
        self._keys: dict[str, StoredKey] = {}
        self._newest: dict[str, int] = {}
        self._destroyed: set[str] = set()
        self.generation = 0
        """The newest seal's number."""

    def __len__(self) -> int:
        return len(self._keys)

    def apply(self, entry: Entry) -> None:
        """Take a record into account.

        Raises:
            DamagedError: its particulars are not what such a record holds.
        """
        data = entry.data
        try:
            if entry.kind in MADE:
                self.generation = max(self.generation, _number(data, "generation"))
                self._add(_stored(data))
            elif entry.kind == "destroy":
                self._forget(_text(data, "key_id"))
            elif entry.kind in EMPTIED:
                self._keys.clear()
                self._newest.clear()
                self._destroyed.clear()
        except (KeyError, TypeError, ValueError):
            raise DamagedError(f"record {entry.sequence} of the journal does not say which key it is about") from None

    def get(self, handle: str) -> StoredKey | None:
        """The key version of that handle."""
        return self._keys.get(handle)

    def newest(self, key_id: str) -> StoredKey | None:
        """The newest version of a key."""
        version = self._newest.get(key_id)
        return None if version is None else self._keys[f"{key_id}:{version}"]

    def was_destroyed(self, key_id: str) -> bool:
        """Whether there was such a key."""
        return key_id in self._destroyed

    def versions(self, key_id: str) -> list[StoredKey]:
        """All versions of a key, oldest first; they may have gaps after a restore that rejected some."""
        found = (self._keys.get(f"{key_id}:{version}") for version in range(1, self._newest.get(key_id, 0) + 1))
        return [stored for stored in found if stored is not None]

    def page(self, after: str, size: int) -> list[StoredKey]:
        """The next `size` keys by handle after a handle; the empty one comes before all."""
        handles = heapq.nsmallest(size, (handle for handle in tuple(self._keys) if handle > after))
        return [self._keys[handle] for handle in handles if handle in self._keys]

    def handles(self) -> tuple[str, ...]:
        """All handles, in no order: sorting so many would hold up every other thread."""
        return tuple(self._keys)

    def files(self) -> set[str]:
        """Names of all sealed files that should be there."""
        return {stored.file for stored in self._keys.values()}

    def _add(self, stored: StoredKey) -> None:
        self._keys[stored.handle] = stored
        self._newest[stored.key_id] = max(stored.version, self._newest.get(stored.key_id, 0))

    def _forget(self, key_id: str) -> None:
        for stored in self.versions(key_id):
            del self._keys[stored.handle]
        self._newest.pop(key_id, None)
        self._destroyed.add(key_id)


class KeyStore:
    """Writes, reads, repairs and destroys sealed seeds. Its methods block and may be called by several threads."""

    def __init__(self, modules: Modules, journal: Journal, *, capacity: int) -> None:
        self._modules = modules
        self._journal = journal
        self._capacity = capacity
        self._lock = threading.Lock()
        self._to_scrub: tuple[str, ...] = ()
        self._lost: set[str] = set()
        self.index = KeyIndex()

    def load(self, entries: Iterable[Entry]) -> None:
        """Begin with the journal's records; what a killed process left half done is removed.

        Raises:
            DamagedError: a record does not say what it should.
        """
        self.index = KeyIndex()
        for entry in entries:
            self.index.apply(entry)
        known = self.index.files()
        self._modules.each(lambda module: _tidy(module, known))

    def next_generation(self) -> int:
        """A number that no seal has had."""
        with self._lock:
            self.index.generation += 1
            return self.index.generation

    def put(self, sealed: SealedSeed, said: dict[str, Value], journal_key: bytes) -> StoredKey:
        """Write a sealed seed; durable on two modules, and in the journal, when it returns.

        Args:
            sealed: the seed.
            said: more for the journal's record: who asked, under which correlation id.
            journal_key: vouches for the record, also when the HSM is sealed meanwhile.

        Raises:
            KeysFullError: there is no room.
            QuorumError: fewer than two modules took it; the key does not exist then.
        """
        if len(self.index) >= self._capacity:
            raise KeysFullError(
                f"the HSM holds {self._capacity} key versions already: destroy some, or raise the limit"
            )
        stored, content = stored_key(sealed)
        self._modules.create(stored.file, content)
        try:
            entry = self._journal.append("generate", {**record_of(stored), **said}, journal_key)
        except Exception:
            self._modules.remove(stored.file)
            raise
        self._apply(entry)
        return stored

    def put_restored(self, sealed: Sequence[SealedSeed]) -> list[tuple[str, dict[str, Value]]]:
        """Write the sealed files of a restore; returns the records with which they begin to exist.

        Raises:
            KeysFullError: there is no room for as many.
            QuorumError: fewer than two modules took one.
        """
        if len(sealed) > self._capacity:
            raise KeysFullError(f"the HSM holds {self._capacity} key versions at most: raise the limit")

        def write(each: SealedSeed) -> tuple[str, dict[str, Value]]:
            stored, content = stored_key(each)
            self._modules.create(stored.file, content)
            return "restore-key", record_of(stored)

        with ThreadPoolExecutor(_RESTORED_AT_ONCE) as pool:
            return list(pool.map(write, sealed))

    def open(self, stored: StoredKey, master: MasterKey) -> tuple[Header, bytearray]:
        """Read and open a seed; replicas that are not as written are repaired. The owner overwrites the seed.

        Raises:
            ReplicasDamagedError: no module has it whole, or the master key does not open it.
            UnknownKeyError: it was destroyed meanwhile.
        """
        content = self.read(stored)
        try:
            sealed = parse_sealed(content)
            return sealed.header, master.open(sealed.nonce, sealed.ciphertext, sealed.header.associated_data())
        except DamagedError:
            raise ReplicasDamagedError(f"key {stored.handle} does not open: restore it from a backup") from None

    def read(self, stored: StoredKey) -> bytes:
        """The sealed file's content; replicas that are not as written are repaired, and the journal says so.

        Raises:
            ReplicasDamagedError: no module has it whole.
            UnknownKeyError: it was destroyed meanwhile.
        """
        replicas = self._modules.read(stored.file, MAX_FILE_SIZE)
        good = [r for r in replicas if r.content is not None and _hash(r.content) == stored.digest]
        if not good or good[0].content is None:
            if self.index.get(stored.handle) is None:
                raise UnknownKeyError("the key was destroyed")
            raise ReplicasDamagedError(f"no module has key {stored.handle} whole: restore it from a backup")
        wrong = [replica for replica in replicas if replica.available and replica not in good]
        if wrong:
            self._repair(stored, good[0].content, wrong)
        return good[0].content

    def whole_replicas(self, stored: StoredKey) -> int:
        """How many modules have the key as written: 0 to 3; repairs nothing."""
        replicas = self._modules.read(stored.file, MAX_FILE_SIZE)
        return sum(replica.content is not None and _hash(replica.content) == stored.digest for replica in replicas)

    def destroy(self, key_id: str, said: dict[str, Value], journal_key: bytes) -> int:
        """Destroy all versions of a key; returns how many there were. See `put` for the arguments.

        Raises:
            QuorumError: fewer than two modules took the record; the key still exists.
        """
        versions = self.index.versions(key_id)
        if not versions:
            return 0
        record: dict[str, Value] = {"key_id": key_id, "versions": len(versions), **said}
        entry = self._journal.append("destroy", record, journal_key)
        self._apply(entry)
        for stored in versions:  # a module that is away forgets when it is back: the start and `scrub` tidy up
            self._modules.remove(stored.file)
        return len(versions)

    def scrub(self, size: int) -> int:
        """Read the next `size` keys in turn, repairing replicas; returns how many were read."""
        if not self._to_scrub:
            self._to_scrub = self.index.handles()
        handles, self._to_scrub = self._to_scrub[:size], self._to_scrub[size:]
        for handle in handles:
            stored = self.index.get(handle)
            if stored is None:
                continue
            try:
                self.read(stored)
            except UnknownKeyError:
                continue
            except ReplicasDamagedError:
                self.tell_lost(handle)
        return len(handles)

    def tell_lost(self, handle: str) -> None:
        """Record, once, that no module has a key whole."""
        if handle not in self._lost:
            self._journal.append("replicas-lost", {"key_handle": handle})
            self._lost.add(handle)

    def tidy(self) -> None:
        """Remove files of destroyed keys from modules that were away, or were rolled back to before."""
        self._modules.each(self._tidy_destroyed)

    def _tidy_destroyed(self, module: Module) -> None:
        for name in module.names(KEYS):
            if self.index.was_destroyed(PurePath(name).name.partition(".")[0]):
                module.remove(name)

    def _apply(self, entry: Entry) -> None:
        with self._lock:
            self.index.apply(entry)

    def _repair(self, stored: StoredKey, content: bytes, wrong: Sequence[Replica]) -> None:
        if self.index.get(stored.handle) != stored:  # destroyed while it was read
            return
        found = {replica.module: _what_is_wrong(replica.content, stored) for replica in wrong}
        modules = list(found)
        done = self._modules.each(lambda module: module.write(stored.file, content), modules)
        for module, repaired in zip(modules, done, strict=True):
            module.repaired += repaired
        names = ",".join(
            f"{module.name}:{found[module]}" for module, repaired in zip(modules, done, strict=True) if repaired
        )
        if not names:
            return
        try:
            self._journal.append("repair", {"key_handle": stored.handle, "replicas": names})
        except QuorumError:  # the key is whole and can be used; that it was repaired is told by the status alone
            _log.warning("a repair could not be recorded", extra={"replicas": names})


def stored_key(sealed: SealedSeed) -> tuple[StoredKey, bytes]:
    """What the index keeps of a sealed seed, and its file's content."""
    content, header = sealed.encode(), sealed.header
    stored = StoredKey(
        header.key_id, header.version, header.algorithm, header.organization_id, header.generation, _hash(content)
    )
    return stored, content


def record_of(stored: StoredKey) -> dict[str, Value]:
    """What the journal says of a key."""
    return {
        "key_id": stored.key_id,
        "version": stored.version,
        "algorithm": stored.algorithm,
        "organization_id": stored.organization_id,
        "generation": stored.generation,
        "digest": stored.digest.hex(),
    }


def _stored(data: Mapping[str, Value]) -> StoredKey:
    return StoredKey(
        _text(data, "key_id"),
        _number(data, "version"),
        _text(data, "algorithm"),
        _text(data, "organization_id"),
        _number(data, "generation"),
        bytes.fromhex(_text(data, "digest")),
    )


def _text(data: Mapping[str, Value], name: str) -> str:
    value = data[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _number(data: Mapping[str, Value], name: str) -> int:
    value = data[name]
    if not isinstance(value, int):
        raise TypeError(name)
    return value


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _what_is_wrong(content: bytes | None, stored: StoredKey) -> str:
    if content is None:
        return "missing"
    try:
        found = parse_sealed(content)
    except DamagedError:
        return "damaged"
    return "rolled-back" if found.header.generation < stored.generation else "replaced"


def _tidy(module: Module, known: set[str]) -> None:
    """Remove what a killed process left half written, and keys that do not exist."""
    for name in module.names(KEYS):
        if name not in known:
            module.remove(name)
    for name in module.names(""):
        if name.endswith(NEW):
            module.remove(name)
