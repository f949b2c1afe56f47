"""The three modules that keep replicas: folders, which an operator may put on different disks.

What replaces something is written whole under another name, synced, renamed, and its folder synced: at no moment,
whatever is killed, is there half a file under its name. What is new is written under its name at once, which saves the
disk a step: it counts only when the journal has its hash.
"""

from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

QUORUM: Final = 2
"""Modules that must have a change durably before it is acknowledged."""

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
NEW: Final = ".new"
"""Ends the name of a file that is being written; one that is found later is rubbish of a killed process."""
T = TypeVar("T")


class QuorumError(Exception):
    """Fewer than two modules took a change: it is not acknowledged."""


class ModulesInUseError(Exception):
    """Another process has a module open."""


@dataclass(frozen=True, slots=True)
class Replica:
    """What one module has under a name."""

    module: Module
    content: bytes | None
    """None: nothing."""
    available: bool = True
    """False: the module did not answer, which says nothing about what it has."""


class Module:
    """One folder. Methods raise `OSError` when it is away, full or broken."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.available = True
        self.repaired = 0
        self._lock: int | None = None

    def open(self) -> None:
        """Make the folder where it is missing and keep other processes out.

        Raises:
            ModulesInUseError: another process has it.
        """
        self.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ModulesInUseError(f"another process uses the HSM module {self.folder}: stop it first") from None

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, name: str, limit: int) -> bytes | None:
        """What lies under a name, at most `limit` bytes of it and one more; None when nothing does."""
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            return b""

    def create(self, name: str, content: bytes) -> None:
        """Write under a name that has nothing; durable when it returns. A crash may leave a part of it: whoever reads
        must know the whole by its hash.
        """
        path = self.folder / name
        self._make_folder(path.parent)
        write_synced(path, content)
        sync_folder(path.parent)

    def write(self, name: str, content: bytes) -> None:
        """Replace what lies under a name, in one step; durable when it returns."""
        path = self.folder / name
        self._make_folder(path.parent)
        new = path.with_name(f"{path.name}.{threading.get_ident()}{NEW}")
        write_synced(new, content)
        new.replace(path)
        sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Remove what lies under a name, if anything; durable when it returns. The blocks on the disk may survive."""
        path = self.folder / name
        try:
            path.unlink()
        except FileNotFoundError:
            return
        sync_folder(path.parent)

    def names(self, folder: str) -> Iterator[str]:
        """Names of all files at any depth below a folder, relative to the module."""
        for found in sorted((self.folder / folder).rglob("*")):
            if found.is_file():
                yield str(found.relative_to(self.folder))

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        sync_folder(folder.parent)


class Modules:
    """All modules together; its methods block and may be called by several threads."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.all = tuple(Module(f"module-{number}", folder) for number, folder in enumerate(folders, 1))
        # One thread a module and caller: a slow disk holds up its own writes only.
        self._pool = ThreadPoolExecutor(4 * len(self.all), thread_name_prefix="hsm-module")

    def open(self) -> None:
        """Open all; one that is away is noticed later.

        Raises:
            ModulesInUseError: another process has one.
            QuorumError: fewer than two can be opened.
        """
        for module in self.all:
            try:
                module.open()
            except OSError:
                module.available = False
        self.require(sum(module.available for module in self.all))

    def close(self) -> None:
        """Let other processes in."""
        self._pool.shutdown()
        for module in self.all:
            module.close()

    def create(self, name: str, content: bytes) -> None:
        """Write under a new name to all; durable on two at least when it returns.

        Raises:
            QuorumError: fewer took it. What one may have is removed again where that can be done.
        """
        try:
            self.require(sum(self.each(lambda module: module.create(name, content))))
        except QuorumError:
            self.each(lambda module: module.remove(name))
            raise

    def write(self, name: str, content: bytes) -> None:
        """Replace on all; durable on two at least when it returns.

        Raises:
            QuorumError: fewer took it.
        """
        self.require(sum(self.each(lambda module: module.write(name, content))))

    def read(self, name: str, limit: int) -> list[Replica]:
        """What each has under a name. Reading three small files that the system has in memory is faster than asking
        three threads to.
        """
        return [self._read(module, name, limit) for module in self.all]

    def remove(self, name: str) -> int:
        """Remove from all; returns how many did."""
        return sum(self.each(lambda module: module.remove(name)))

    def each(self, work: Callable[[Module], object], only: Sequence[Module] | None = None) -> list[bool]:
        """Do something on each module at once; tells for each whether it could, and remembers who is away."""

        def attempt(module: Module) -> bool:
            try:
                work(module)
            except OSError:
                module.available = False
            else:
                module.available = True
            return module.available

        return list(self._pool.map(attempt, self.all if only is None else only))

    @staticmethod
    def require(done: int) -> None:
        """Raise `QuorumError` when fewer than two modules did something."""
        if done < QUORUM:
            raise QuorumError("fewer than two of the HSM's modules take changes: check their disks")

    @staticmethod
    def _read(module: Module, name: str, limit: int) -> Replica:
        try:
            return Replica(module, module.read(name, limit))
        except OSError:
            module.available = False
            return Replica(module, None, available=False)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file; its content is durable on return, its name is not."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
