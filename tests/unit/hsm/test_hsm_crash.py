"""A crash at every single step that reaches the disk: what was acknowledged is there afterwards, nothing is half."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.hsm.ceremony import Ceremony, State
from servers.hsm.engine import Engine, KeyOrder
from servers.hsm.entropy import EntropyPool, OsSource
from servers.hsm.journal import FILE, Journal
from servers.hsm.keystore import KeyStore
from servers.hsm.modules import Modules
from servers.hsm.sealed import DamagedError
from servers.hsm.vaults import SoftwareVault
from tests.support.hsm import ORGANIZATION, new_id
from tests.unit.hsm.test_hsm_replicas import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROVIDER = provider_named("cryptography")
STEPS = ("fsync", "pwrite", "open", "unlink", "replace", "mkdir")


class Crash(BaseException):
    """The process ends here."""


class Fuse:
    """Lets so many steps happen; after that nothing reaches the disk any more."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left < 0:
                raise Crash

    @property
    def blown(self) -> bool:
        return self._left < 0


def light(patch: pytest.MonkeyPatch, fuse: Fuse) -> None:
    for name in STEPS:
        real: Callable[..., Any] = getattr(os, name)

        def burning(*arguments: Any, _real: Callable[..., Any] = real, **named: Any) -> Any:
            fuse.step()
            return _real(*arguments, **named)

        patch.setattr(os, name, burning)


def crashed(folder: Path, steps: int, work: Callable[[Shelf, str], object]) -> tuple[Shelf, str, bool]:
    """Do `work` on a store with one key until the fuse blows; returns the store as it is found after a new start, the
    key, and whether the work was acknowledged.
    """
    shelf = Shelf(folder)
    kept = shelf.make()
    fuse, acknowledged = Fuse(steps), True
    with pytest.MonkeyPatch.context() as patch:
        light(patch, fuse)
        try:
            work(shelf, kept)
        except Crash:
            acknowledged = False
    assert acknowledged != fuse.blown
    shelf.close()
    return Shelf(folder), kept, acknowledged


def check(shelf: Shelf) -> None:
    """The modules agree, and every key that there is is whole on all of them."""
    assert len({(folder / FILE).read_bytes() for folder in shelf.folders}) == 1
    expected = sorted(shelf.store.index.files())
    for handle in shelf.store.index.handles():
        shelf.read(handle)
    for folder in shelf.folders:
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.seal")) == expected
    assert not [path for folder in shelf.folders for path in folder.rglob("*.new")]


def every_crash(
    tmp_path: Path, work: Callable[[Shelf, str], object], verify: Callable[[Shelf, str, bool], None]
) -> int:
    for steps in range(200):
        shelf, kept, acknowledged = crashed(tmp_path / str(steps), steps, work)
        check(shelf)
        verify(shelf, kept, acknowledged)
        shelf.close()
        if acknowledged:
            return steps
    raise AssertionError("the work never ends")


def test_a_crash_while_a_key_is_made(tmp_path: Path) -> None:
    def verify(shelf: Shelf, kept: str, acknowledged: bool) -> None:
        assert shelf.store.index.get(kept) is not None
        assert len(shelf.store.index) == 2 or not acknowledged
        shelf.make()

    assert every_crash(tmp_path, lambda shelf, _: shelf.make(), verify) > 20


def test_a_crash_while_a_key_is_destroyed(tmp_path: Path) -> None:
    def destroy(shelf: Shelf, kept: str) -> None:
        shelf.engine.destroy(kept.partition(":")[0], ORGANIZATION, {})

    def verify(shelf: Shelf, kept: str, acknowledged: bool) -> None:
        assert shelf.store.index.get(kept) is None or not acknowledged

    assert every_crash(tmp_path, destroy, verify) > 10


def test_a_crash_while_a_replica_is_repaired(tmp_path: Path) -> None:
    def repair(shelf: Shelf, kept: str) -> None:
        shelf.file(kept, 1).write_bytes(b"damaged")
        shelf.read(kept)

    def verify(shelf: Shelf, kept: str, acknowledged: bool) -> None:
        del acknowledged
        assert shelf.store.index.get(kept) is not None

    assert every_crash(tmp_path, repair, verify) > 3


class Site:
    """An HSM without a server."""

    def __init__(self, folder: Path) -> None:
        self.modules = Modules([folder / name for name in "abc"])
        self.modules.open()
        self.journal = Journal(self.modules)
        self.store = KeyStore(self.modules, self.journal, capacity=100)
        entropy = EntropyPool([OsSource()])
        entropy.start()
        self.engine = Engine(self.store, entropy, PROVIDER, keys_in_use=16)
        self.ceremony = Ceremony(
            self.journal, self.store, self.engine, SoftwareVault(), entropy, PROVIDER, shares_seconds=60
        )
        self.ceremony.load()

    def handles(self) -> list[str]:
        return [listed.stored.handle for listed in self.engine.listed("", 100, validate=True) if listed.valid]

    def close(self) -> None:
        self.engine.lock()
        self.modules.close()


def test_a_crash_while_a_backup_is_restored(tmp_path: Path) -> None:
    """Afterwards there is either all of it or nothing, and then the same restore works."""
    old = Site(tmp_path / "old")
    made = old.ceremony.initialize(1, 1, {})
    old.ceremony.unseal(made.shares[0], {})
    for _ in range(3):
        old.engine.generate(KeyOrder(new_id(), 1, Algorithm.ED25519, ORGANIZATION), {})
    backup, expected = list(old.ceremony.export({})), old.handles()
    old.close()
    for steps in range(0, 400, 3):
        site = Site(tmp_path / str(steps))
        site.ceremony.unseal(made.shares[0], {})
        fuse = Fuse(steps)
        with pytest.MonkeyPatch.context() as patch:
            light(patch, fuse)
            with suppress(Crash):
                site.ceremony.restore(iter(backup), {})
        site.close()
        site = Site(tmp_path / str(steps))
        if site.ceremony.state is State.UNINITIALIZED:
            assert fuse.blown
            site.ceremony.unseal(made.shares[0], {})
            assert site.ceremony.restore(iter(backup), {}).keys == 3
        else:
            site.ceremony.unseal(made.shares[0], {})
        assert site.handles() == expected
        site.close()
        if not fuse.blown:
            return
    raise AssertionError("the restore never ends")


def test_a_crash_while_an_hsm_is_initialised(tmp_path: Path) -> None:
    for steps in range(100):
        site = Site(tmp_path / str(steps))
        fuse = Fuse(steps)
        words: tuple[str, ...] = ()
        with pytest.MonkeyPatch.context() as patch:
            light(patch, fuse)
            with suppress(Crash):
                words = site.ceremony.initialize(1, 1, {}).shares
        site.close()
        site = Site(tmp_path / str(steps))
        if words:
            assert site.ceremony.unseal(words[0], {}).state is State.UNSEALED
        site.close()
        if not fuse.blown:
            return
    raise AssertionError("the ceremony never ends")


def test_a_beginning_that_says_nothing_is_damage(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.journal.append("initialize", {"backend": "software"})
    site.close()
    with pytest.raises(DamagedError, match="initialised"):
        Site(tmp_path)
