"""The HSM's journal: one hash-chained record of every ceremony and of every key's life, on all three modules.

What the journal says, is: a key exists when its making is recorded, and a sealed file counts only as the one whose hash
is recorded. A record is durable on two modules before what it records is acknowledged. While the HSM is unsealed,
records also carry an HMAC under a key that follows from the root secret; it vouches for every record before it too.

One line of JSON a record; `docs/hsm.md` writes it down.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from servers.hsm.modules import Modules, QuorumError
from servers.hsm.sealed import DamagedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from servers.hsm.modules import Module, Replica

FILE: Final = "journal.log"
FIRST_PREVIOUS: Final = "0" * 64
MAX_LINE: Final = 8192
MAX_DATA: Final = MAX_LINE - 1024
"""Particulars of a record, bytes: what is longer could not be read back."""
MAX_FILE_SIZE: Final = 2**31

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_MAC: Final = re.compile(r"[0-9a-f]{64}|")
_FIELDS: Final = ("at", "data", "hash", "kind", "mac", "previous", "sequence")

Value = str | int


@dataclass(frozen=True, slots=True)
class Entry:
    """One record."""

    sequence: int
    """From 1, without gaps."""
    previous: str
    """Hash of the record before; 64 zeros for the first."""
    at: str
    """When: ISO 8601 in UTC."""
    kind: str
    """What happened: "initialize", "generate", ..."""
    data: Mapping[str, Value]
    """Particulars without secrets."""
    hash: str
    """SHA-256 of all of the above, hexadecimal."""
    mac: str = ""
    """HMAC-SHA256 of the hash, hexadecimal; empty when the HSM was sealed."""

    def encode(self) -> bytes:
        """The record's line, with its end."""
        body = {name: getattr(self, name) for name in _FIELDS}
        return _json(body | {"data": dict(self.data)}) + b"\n"


def make_entry(sequence: int, previous: str, at: str, kind: str, data: Mapping[str, Value], key: bytes | None) -> Entry:
    """A record with its hash and, with a key, its MAC."""
    digest = _digest(sequence, previous, at, kind, data)
    mac = "" if key is None else hmac.digest(key, bytes.fromhex(digest), "sha256").hex()
    return Entry(sequence, previous, at, kind, data, digest, mac)


def parse_entry(line: bytes) -> Entry:
    """Read a line without its end; its hash is checked, its MAC and its place are not.

    Raises:
        DamagedError: it was not written by `Entry.encode`, or changed since.
    """
    if len(line) > MAX_LINE:
        raise DamagedError("the record is too long")
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise DamagedError("the record is not JSON") from None
    if not isinstance(said, dict) or sorted(said) != list(_FIELDS):
        raise DamagedError("the record has other fields")
    texts = (said["at"], said["kind"], said["hash"], said["mac"], said["previous"])
    if type(said["sequence"]) is not int or said["sequence"] < 1 or any(not isinstance(t, str) for t in texts):
        raise DamagedError("the record's fields are of other types")
    if not isinstance(said["data"], dict) or any(type(v) not in (str, int) for v in said["data"].values()):
        raise DamagedError("the record's particulars are no text or number")
    if not _HASH.fullmatch(said["previous"]) or not _MAC.fullmatch(said["mac"]):
        raise DamagedError("the record's hashes are not hexadecimal")
    entry = Entry(**said)
    digest = _digest(entry.sequence, entry.previous, entry.at, entry.kind, entry.data)
    if digest != entry.hash or entry.encode() != line + b"\n":
        raise DamagedError("the record's hash is wrong, or it is not in its one form")
    return entry


def authentic(entry: Entry, key: bytes) -> bool:
    """Whether the record's MAC is right under the journal's key."""
    return hmac.compare_digest(entry.mac, hmac.digest(key, bytes.fromhex(entry.hash), "sha256").hex())


def merge(contents: Sequence[bytes]) -> list[Entry]:
    """The chain that the modules' files hold together, each record from whichever has it whole.

    Args:
        contents: the files as they were read; a missing one is empty.

    Raises:
        DamagedError: a record is whole on no module though later ones are.
    """
    entries: dict[str, Entry] = {}
    holders: Counter[str] = Counter()
    for content, modules in Counter(contents).items():  # the same three times, as a rule
        whole = {entry.hash: entry for entry in _entries(content)}
        entries |= whole
        for found in whole:
            holders[found] += modules
    following: dict[str, list[Entry]] = {}
    for entry in entries.values():
        following.setdefault(entry.previous, []).append(entry)
    chain: list[Entry] = []
    head = FIRST_PREVIOUS
    while True:
        nexts = [entry for entry in following.get(head, ()) if entry.sequence == len(chain) + 1]
        if not nexts:
            break
        # A record that one module took and two did not was never acknowledged: others built on the one that was.
        chosen = max(nexts, key=lambda entry: (entry.hash in following, holders[entry.hash]))
        chain.append(chosen)
        head = chosen.hash
    if len(chain) < max((entry.sequence for entry in entries.values()), default=0):
        raise DamagedError(f"record {len(chain) + 1} of the journal is whole on no module")
    return chain


def _entries(content: bytes) -> Iterator[Entry]:
    """The whole records of a file."""
    for line in content.split(b"\n"):
        try:
            yield parse_entry(line)
        except DamagedError:
            continue


def _digest(sequence: int, previous: str, at: str, kind: str, data: Mapping[str, Value]) -> str:
    body = {"at": at, "data": dict(data), "kind": kind, "previous": previous, "sequence": sequence}
    return hashlib.sha256(_json(body)).hexdigest()


def _json(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@dataclass(slots=True)
class _Waiting:
    """A record on its way, and what became of it."""

    kind: str
    data: Mapping[str, Value]
    key: bytes | None
    entry: Entry | None = None
    error: QuorumError | None = None


class Journal:
    """The journal on the modules. Its methods block and may be called by several threads: those who append at the same
    time share one write and one sync.
    """

    def __init__(self, modules: Modules, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._modules = modules
        self._clock = clock
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._behind: set[Module] = set(modules.all)
        self._size = 0
        self._digest = hashlib.sha256()
        self._sequence = 0
        self._head = FIRST_PREVIOUS
        self.key: bytes | None = None
        """Key of the records' MACs; None while the HSM is sealed."""
        self.listener: Callable[[Entry], None] | None = None
        """Told of each record once it is durable, in whichever thread wrote it; must not block."""

    @property
    def behind(self) -> bool:
        """Whether a module is known to miss records: `check` brings it up to date."""
        return bool(self._behind)

    @property
    def sequence(self) -> int:
        """Records so far."""
        return self._sequence

    def load(self) -> list[Entry]:
        """Read what the modules hold together, and write it to those that hold something else.

        Raises:
            DamagedError: a record is whole on no module.
            QuorumError: fewer than two modules can be written.
        """
        with self._writing:
            replicas = self._modules.read(FILE, MAX_FILE_SIZE)
            chain = merge([replica.content or b"" for replica in replicas])
            whole = b"".join(entry.encode() for entry in chain)
            self._size, self._digest = len(whole), hashlib.sha256(whole)
            self._sequence, self._head = len(chain), chain[-1].hash if chain else FIRST_PREVIOUS
            self._behind = {replica.module for replica in replicas if replica.content != whole}
            for replica in replicas:
                replica.module.repaired += replica.module in self._behind and replica.available and bool(chain)
            self._rewrite(whole)
            self._modules.require(len(self._modules.all) - len(self._behind))
        return chain

    def read(self) -> list[Entry]:
        """What was written, read again from the modules.

        Raises:
            DamagedError: it is not there any more.
        """
        with self._writing:
            chain = merge([replica.content or b"" for replica in self._modules.read(FILE, MAX_FILE_SIZE)])
            if (chain[-1].hash if chain else FIRST_PREVIOUS) != self._head:
                raise DamagedError("the journal's last records are whole on no module")
        return chain

    def append(self, kind: str, data: Mapping[str, Value], key: bytes | None = None) -> Entry:
        """Write a record; durable on two modules at least when it returns.

        Args:
            kind: what happened.
            data: particulars without secrets.
            key: what the MAC is made with; None takes the journal's. Who works on while the HSM is being sealed
                brings the key along.

        Raises:
            QuorumError: fewer took it; it is not in the journal.
        """
        return self.append_all([(kind, data)], key)[0]

    def append_all(self, records: Sequence[tuple[str, Mapping[str, Value]]], key: bytes | None = None) -> list[Entry]:
        """Write records next to each other; see `append`."""
        if any(len(_json(dict(data))) > MAX_DATA for _, data in records):
            raise ValueError(f"a record's particulars have at most {MAX_DATA} bytes")
        mine = [_Waiting(kind, data, key or self.key) for kind, data in records]
        with self._lock:
            self._waiting += mine
        with self._writing:
            if mine[-1].entry is None and mine[-1].error is None:  # else whoever wrote before took ours along
                with self._lock:
                    batch, self._waiting = self._waiting, []
                self._write(batch)
        if mine[-1].error is not None:
            raise QuorumError(str(mine[-1].error))
        return [waiting.entry for waiting in mine if waiting.entry is not None]

    def check(self) -> int:
        """Compare the modules' files with what was written, and repair those that differ; returns how many did.

        Raises:
            DamagedError: a record is whole on no module.
        """
        with self._writing:
            replicas = self._modules.read(FILE, MAX_FILE_SIZE)
            good = [r for r in replicas if r.content and hashlib.sha256(r.content).digest() == self._digest.digest()]
            wrong = [r.module for r in replicas if r.available and r not in good]
            self._behind |= {r.module for r in replicas if r not in good}
            for module in wrong:
                module.repaired += 1
            if self._behind:
                self._rewrite((good[0].content or b"") if good else self._joined(replicas))
            return len(wrong)

    def _joined(self, replicas: Sequence[Replica]) -> bytes:
        """What was written, from files that are all damaged, each elsewhere."""
        whole = b"".join(entry.encode() for entry in merge([replica.content or b"" for replica in replicas]))
        if hashlib.sha256(whole).digest() != self._digest.digest():
            raise DamagedError("the journal's last records are whole on no module")
        return whole

    def _write(self, batch: Sequence[_Waiting]) -> None:
        at = self._clock().isoformat(timespec="microseconds")
        sequence, head, written = self._sequence, self._head, []
        for waiting in batch:
            sequence += 1
            waiting.entry = make_entry(sequence, head, at, waiting.kind, waiting.data, waiting.key)
            head = waiting.entry.hash
            written.append(waiting.entry.encode())
        content = b"".join(written)
        able = [module for module in self._modules.all if module not in self._behind]
        took = self._modules.each(lambda module: _append(module, self._size, content), able)
        failed = {module for module, done in zip(able, took, strict=True) if not done}
        try:
            self._modules.require(sum(took))
        except QuorumError as error:
            self._undo(able)
            for waiting in batch:
                waiting.entry, waiting.error = None, error
            return
        self._behind |= failed
        self._size += len(content)
        self._digest.update(content)
        self._sequence, self._head = sequence, head
        if self.listener is not None:
            for waiting in batch:
                if waiting.entry is not None:
                    self.listener(waiting.entry)

    def _undo(self, modules: Sequence[Module]) -> None:
        """Cut off what some took and others did not. Whoever cannot is behind until it is rewritten."""
        size = self._size
        undone = self._modules.each(lambda module: _cut(module, size), modules)
        self._behind |= {module for module, done in zip(modules, undone, strict=True) if not done}

    def _rewrite(self, whole: bytes) -> None:
        """Bring those that are behind up to date."""
        behind = [module for module in self._modules.all if module in self._behind]
        done = self._modules.each(lambda module: module.write(FILE, whole), behind)
        self._behind = {module for module, caught_up in zip(behind, done, strict=True) if not caught_up}


def _append(module: Module, size: int, content: bytes) -> None:
    handle = os.open(module.folder / FILE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_size != size:
            raise OSError("the journal has another size than was written: it is repaired by the next check")
        os.pwrite(handle, content, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def _cut(module: Module, size: int) -> None:
    handle = os.open(module.folder / FILE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)
