"""The HSM's life: initialised once, unsealed with shares, sealed, backed up, restored."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from servers.hsm import shares
from servers.hsm.backup import BackupReader, OtherRootError, write_backup
from servers.hsm.journal import authentic
from servers.hsm.keystore import MADE
from servers.hsm.modules import QuorumError
from servers.hsm.sealed import DamagedError, SealedSeed
from servers.hsm.shares import ParsedShare, ShareError
from servers.hsm.vaults import ROOT_SIZE, RootSecret, Unlocked, fingerprint, overwrite, unlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from servers.crypto.provider import CryptoProvider
    from servers.hsm.engine import Engine
    from servers.hsm.entropy import EntropyPool
    from servers.hsm.journal import Entry, Journal, Value
    from servers.hsm.keystore import KeyStore
    from servers.hsm.vaults import Vault

BEGUN: Final = ("initialize", "restore")
"""Kinds of records with which an HSM has a master key."""
VOUCHED: Final = (*BEGUN, *MADE, "restore-begin", "destroy")
"""Kinds of records that count only with a MAC."""

_BEGUN_FIELDS: Final = (("backend", str), ("fingerprint", str), ("set_id", int), ("threshold", int))


class State(StrEnum):
    """Whether the HSM can work."""

    UNINITIALIZED = "uninitialized"
    SEALED = "sealed"
    UNSEALED = "unsealed"


class WrongStateError(Exception):
    """The ceremony does not fit the HSM's state; the text says what does."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far unsealing is."""

    state: State
    given: int
    needed: int


@dataclass(frozen=True, slots=True)
class Initialized:
    """A new HSM's shares, this once."""

    shares: tuple[str, ...] = field(repr=False)
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore."""

    keys: int
    rejected: tuple[str, ...]


class Ceremony:
    """One ceremony at a time. Methods block; domain errors are those that `servers.hsm.errors` knows.

    Args:
        journal: says what the HSM is.
        store: its keys.
        engine: works with them while the HSM is unsealed.
        vault: makes and opens the master key.
        entropy: what the root secret is made from.
        provider: makes the recovery key.
        shares_seconds: how long shares that were given are kept while others are missing.
    """

    def __init__(
        self,
        journal: Journal,
        store: KeyStore,
        engine: Engine,
        vault: Vault,
        entropy: EntropyPool,
        provider: CryptoProvider,
        *,
        shares_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._store = store
        self._engine = engine
        self._vault = vault
        self._entropy = entropy
        self._provider = provider
        self._shares_seconds = shares_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: Mapping[str, Value] | None = None
        self._given: dict[tuple[int, int], ParsedShare] = {}
        self._first_given = 0.0
        self._adopted: RootSecret | None = None

    @property
    def state(self) -> State:
        """Whether the HSM can work."""
        if self._begun is None:
            return State.UNINITIALIZED
        return State.SEALED if self._engine.unlocked is None else State.UNSEALED

    @property
    def progress(self) -> Progress:
        """How far unsealing is. A new HSM whose shares are all there waits for its backup."""
        given, begun = tuple(self._given.values()), self._begun  # a ceremony may change them meanwhile
        needed = int(begun["threshold"]) if begun is not None else given[0].threshold if given else 0
        return Progress(self.state, len(given), needed)

    def load(self) -> None:
        """Read what the modules hold; the HSM is sealed afterwards, or has no master key yet.

        Raises:
            DamagedError: the journal is not whole on any module.
            QuorumError: fewer than two modules can be written.
        """
        with self._lock:
            entries = self._journal.load()
            self._store.load(entries)
            self._begun = _begun(entries)

    def initialize(self, count: int, threshold: int, said: dict[str, Value]) -> Initialized:
        """Make the root secret and the master key; the HSM is sealed afterwards, so that the shares prove themselves.

        Raises:
            WrongStateError: there is a master key already.
        """
        with self._lock:
            if self._begun is not None:
                raise WrongStateError("the HSM has a master key already: unseal it with its shares")
            self._forget_shares()
            drawn = self._entropy.draw(ROOT_SIZE)
            root = RootSecret(drawn.seed)
            overwrite(drawn.seed)
            try:
                words = shares.split(root.secret(), count, threshold)
                set_id = shares.parse(words[0]).set_id
                self._begin(root, {"shares": count, "threshold": threshold, "set_id": set_id, **said})
                name = fingerprint(root.recovery_key(self._provider).public_bytes)
            finally:
                root.overwrite()
            return Initialized(words, name)

    def unseal(self, words: str, said: dict[str, Value]) -> Progress:
        """Take one share; with the last one needed, the HSM opens.

        Raises:
            ShareError: the share is none, or not of this HSM; all shares given are dropped.
            DamagedError: the journal was changed by somebody without the root secret.
            VaultError: the master key is not there.
        """
        with self._lock:
            if self.state is State.UNSEALED:
                return self.progress
            try:
                return self._take(shares.parse(words), said)
            except ShareError:
                self._forget_shares()
                raise

    def seal(self, said: dict[str, Value]) -> None:
        """Forget the master key. Done even when it cannot be recorded.

        Raises:
            QuorumError: sealed, but not recorded.
        """
        with self._lock:
            self._forget_shares()
            was_open = self._engine.unlocked is not None
            self._engine.lock()
            try:
                if was_open:
                    self._journal.append("seal", said)
            finally:
                self._journal.key = None

    def expire_shares(self) -> None:
        """Drop shares that have waited too long for the others."""
        with self._lock:
            if self._given and self._clock() - self._first_given > self._shares_seconds:
                self._forget_shares()

    def export(self, said: dict[str, Value]) -> Iterator[bytes]:
        """The pieces of a backup of all keys, each under 64 KiB.

        Raises:
            SealedError: the HSM is sealed.
        """
        unlocked = self._engine.require_unlocked()
        self._journal.append("backup", {"keys": len(self._store.index), **said})
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        return write_backup(self._engine.seeds(), unlocked, created_at)

    def restore(self, pieces: Iterator[bytes], said: dict[str, Value]) -> Restored:
        """Put a backup into a new HSM to which its shares were given; it is unsealed afterwards.

        Raises:
            WrongStateError: it is not new, the shares are missing, or they are of another HSM than the backup.
            DamagedError: the backup was changed; nothing was kept.
        """
        with self._lock:
            root = self._adopted
            if root is None or self._begun is not None:
                raise WrongStateError("a backup goes into a new HSM that its shares were given to: unseal first")
            shape = next(iter(self._given.values()))
            record: dict[str, Value] = {"threshold": shape.threshold, "set_id": shape.set_id, **said}
            try:
                restored = self._restore(root, pieces, record)
            except OtherRootError as error:
                raise WrongStateError(str(error)) from None
            self._forget_shares()
            return restored

    def _take(self, share: ParsedShare, said: dict[str, Value]) -> Progress:
        now = self._clock()
        if self._given and now - self._first_given > self._shares_seconds:
            self._forget_shares()
        expected = self._expected(share)
        if (share.set_id, share.threshold) != expected:
            raise ShareError("the share is not one of this HSM's, or of another set than those given before")
        if not self._given:
            self._first_given = now
        self._given[share.place] = share
        if len(self._given) < share.threshold or self._adopted is not None:
            return self.progress
        root = RootSecret(shares.combine(tuple(self._given.values())))
        if self._begun is None:
            self._adopted = root  # until its backup is restored
            return self.progress
        try:
            self._open(root, self._begun, said)
        finally:
            root.overwrite()
        self._given.clear()
        return self.progress

    def _expected(self, share: ParsedShare) -> tuple[int, int]:
        if self._begun is not None:
            return int(self._begun["set_id"]), int(self._begun["threshold"])
        first = next(iter(self._given.values()), share)
        return first.set_id, first.threshold

    def _open(self, root: RootSecret, begun: Mapping[str, Value], said: dict[str, Value]) -> None:
        if fingerprint(root.recovery_key(self._provider).public_bytes) != begun["fingerprint"]:
            raise ShareError("the shares give another secret than this HSM's")
        if begun["backend"] != self._vault.backend:
            raise WrongStateError(
                f"the HSM was made with the {begun['backend']} back end: set BEHAVIORGUARD_BACKEND to it"
            )
        _require_vouched(self._journal.read(), root.derive("journal"))
        made = {name.removeprefix("vault_"): str(v) for name, v in begun.items() if name.startswith("vault_")}
        unlocked = unlock(root, self._vault.open(root, made), self._provider)
        self._journal.key = unlocked.journal_key
        try:
            self._journal.append("unseal", said)
        except QuorumError:
            self._journal.key = None
            unlocked.master.close()
            raise
        self._engine.unlock(unlocked)

    def _begin(self, root: RootSecret, record: dict[str, Value]) -> None:
        """Make the master key, and record that there is one."""
        made = {f"vault_{name}": value for name, value in self._vault.create(root).items()}
        entry = self._journal.append("initialize", self._description(root, record) | made, root.derive("journal"))
        self._store.index.apply(entry)
        self._begun = entry.data

    def _description(self, root: RootSecret, record: dict[str, Value]) -> dict[str, Value]:
        name = fingerprint(root.recovery_key(self._provider).public_bytes)
        return {"backend": self._vault.backend, "fingerprint": name, **record}

    def _restore(self, root: RootSecret, pieces: Iterator[bytes], record: dict[str, Value]) -> Restored:
        made = self._vault.create(root)
        unlocked = unlock(root, self._vault.open(root, made), self._provider)
        sealed, rejected = self._read(BackupReader(root, self._provider), pieces, unlocked)
        self._journal.key = unlocked.journal_key
        try:
            self._store.index.apply(self._journal.append("restore-begin", record))
            records = self._store.put_restored(sealed)
            description = self._description(root, record) | {f"vault_{name}": value for name, value in made.items()}
            description |= {"keys": len(sealed), "rejected": len(rejected)}
            entries = self._journal.append_all([*records, ("restore", description)])
        except Exception:
            self._journal.key = None
            unlocked.master.close()
            raise
        for entry in entries:
            self._store.index.apply(entry)
        self._begun = entries[-1].data
        self._engine.unlock(unlocked)
        return Restored(len(sealed), tuple(rejected))

    def _read(
        self, reader: BackupReader, pieces: Iterator[bytes], unlocked: Unlocked
    ) -> tuple[list[SealedSeed], list[str]]:
        sealed: list[SealedSeed] = []
        rejected: list[str] = []
        for piece in pieces:
            for header, seed in reader.feed(piece):
                found = self._engine.seal_restored(header, seed, unlocked)
                overwrite(seed)
                if found is None:
                    rejected.append(header.handle)
                else:
                    sealed.append(found)
        reader.finish()
        return sealed, rejected

    def _forget_shares(self) -> None:
        self._given.clear()
        if self._adopted is not None:
            self._adopted.overwrite()
            self._adopted = None


def _begun(entries: Sequence[Entry]) -> Mapping[str, Value] | None:
    """Particulars of the record with which the HSM got its master key; None when it has none.

    Raises:
        DamagedError: the record does not say what it must.
    """
    found = None
    for entry in entries:
        if entry.kind in BEGUN:
            found = entry.data
        elif entry.kind == "restore-begin":
            found = None
    if found is not None and any(type(found.get(name)) is not kind for name, kind in _BEGUN_FIELDS):
        raise DamagedError("the journal does not say how the HSM was initialised")
    return found


def _require_vouched(entries: Sequence[Entry], key: bytes) -> None:
    """Check the MACs of a journal, from the record on with which the HSM began.

    Raises:
        DamagedError: one is wrong, or missing where it must not be.
    """
    first = max((i for i, entry in enumerate(entries) if entry.kind in ("initialize", "restore-begin")), default=0)
    for entry in entries[first:]:
        if (entry.mac or entry.kind in VOUCHED) and not authentic(entry, key):
            raise DamagedError(f"record {entry.sequence} of the journal was not written by this HSM while unsealed")
