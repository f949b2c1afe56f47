"""A crash at every single step that reaches the disk: what was acknowledged is there afterwards, nothing is half."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from servers.hsm.journal import FILE
from tests.support.hsm import ORGANIZATION
from tests.unit.hsm.test_hsm_replicas import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
