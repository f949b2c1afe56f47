"""Three modules: durable on two, whole from one, repaired when they differ."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.hsm.engine import Engine, KeyOrder
from servers.hsm.entropy import EntropyPool, OsSource
from servers.hsm.journal import FILE, Journal, merge
from servers.hsm.keystore import KeysFullError, KeyStore, ReplicasDamagedError
from servers.hsm.modules import NEW, Modules, ModulesInUseError, QuorumError
from servers.hsm.sealed import DamagedError
from servers.hsm.vaults import RootSecret, SoftwareVault, unlock
from tests.support.hsm import ORGANIZATION, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT = bytes(range(32))
PROVIDER = provider_named("cryptography")


class Shelf:
    """A key store over three folders, unlocked, without a server."""

    def __init__(self, folder: Path, capacity: int = 1000) -> None:
        self.folders = [folder / name for name in "abc"]
        self.modules = Modules(self.folders)
        self.modules.open()
        self.journal = Journal(self.modules)
        self.store = KeyStore(self.modules, self.journal, capacity=capacity)
        self.store.load(self.journal.load())
        entropy = EntropyPool([OsSource()])
        entropy.start()
        self.engine = Engine(self.store, entropy, PROVIDER, keys_in_use=16)
        root = RootSecret(ROOT)
        unlocked = unlock(root, SoftwareVault().open(root, {}), PROVIDER)
        self.journal.key = unlocked.journal_key
        self.engine.unlock(unlocked)

    def make(self, key_id: str | None = None, version: int = 1) -> str:
        order = KeyOrder(key_id or new_id(), version, Algorithm.ED25519, ORGANIZATION)
        return self.engine.generate(order, {}).handle

    def file(self, handle: str, module: int) -> Path:
        stored = self.store.index.get(handle)
        assert stored is not None
        return self.folders[module] / stored.file

    def read(self, handle: str) -> bytes:
        stored = self.store.index.get(handle)
        assert stored is not None
        return self.store.read(stored)

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.journal.read()]

    def close(self) -> None:
        self.modules.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    made.close()


@contextmanager
def away(*folders: Path) -> Iterator[None]:
    """Disks that are not there: a file lies where the folder was."""
    for folder in folders:
        folder.rename(folder.with_suffix(".away"))
        folder.write_bytes(b"")
    yield
    for folder in folders:
        folder.unlink()
        folder.with_suffix(".away").rename(folder)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def delete(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("harm", "named"), [(flip, "damaged"), (cut, "damaged"), (delete, "missing")])
@pytest.mark.parametrize("count", [1, 2])
def test_bad_replicas_are_noticed_served_and_repaired(
    shelf: Shelf, harm: Callable[[Path], None], named: str, count: int
) -> None:
    handle = shelf.make()
    good = shelf.read(handle)
    for module in range(count):
        harm(shelf.file(handle, module))
    assert shelf.read(handle) == good
    assert [shelf.file(handle, module).read_bytes() for module in range(3)] == [good] * 3
    assert [module.repaired for module in shelf.modules.all] == [1] * count + [0] * (3 - count)
    repair = shelf.journal.read()[-1]
    assert (repair.kind, repair.data["key_handle"]) == ("repair", handle)
    assert repair.data["replicas"] == ",".join(f"module-{number}:{named}" for number in range(1, count + 1))


def test_three_bad_replicas_are_an_error_of_that_key_alone(shelf: Shelf) -> None:
    handle, other = shelf.make(), shelf.make()
    for module in range(3):
        flip(shelf.file(handle, module))
    with pytest.raises(ReplicasDamagedError, match=handle):
        shelf.read(handle)
    assert shelf.read(other)


def test_a_lost_key_is_told_once_and_left_out_of_backups(shelf: Shelf) -> None:
    handle, other = shelf.make(), shelf.make()
    for module in range(3):
        flip(shelf.file(handle, module))
    for _ in range(2):
        shelf.store.scrub(10)
        assert [header.handle for header, _ in shelf.engine.seeds()] == [other]
    assert shelf.kinds().count("replicas-lost") == 1


def test_a_rolled_back_replica_is_noticed(tmp_path: Path) -> None:
    """A module that was set back to an earlier state of the disk: the key was restored since, under a new seal."""
    shelf = Shelf(tmp_path)
    handle = shelf.make()
    old = shelf.file(handle, 0).read_bytes()
    stored = shelf.store.index.get(handle)
    assert stored is not None
    unlocked = shelf.engine.require_unlocked()
    header, seed = shelf.store.open(stored, unlocked.master)
    again = shelf.engine.seal_restored(header, seed, unlocked)
    assert again is not None
    for entry in shelf.journal.append_all(shelf.store.put_restored([again])):
        shelf.store.index.apply(entry)
    new = shelf.file(handle, 1).read_bytes()
    shelf.file(handle, 0).write_bytes(old)
    assert shelf.read(handle) == new
    assert shelf.journal.read()[-1].data["replicas"] == "module-1:rolled-back"
    shelf.close()


def test_another_keys_file_in_its_place_is_noticed(shelf: Shelf) -> None:
    key_id = new_id()
    first, second = shelf.make(key_id), shelf.make(key_id, 2)
    good = shelf.read(second)
    shelf.file(second, 2).write_bytes(shelf.file(first, 2).read_bytes())
    assert shelf.read(second) == good


def test_a_whole_module_set_back_catches_up(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    first, gone = shelf.make(), shelf.make()
    shelf.close()
    shutil.copytree(tmp_path / "b", tmp_path / "old")
    shelf = Shelf(tmp_path)
    newer = shelf.make()
    shelf.engine.destroy(gone.partition(":")[0], ORGANIZATION, {})
    shelf.close()
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "old").rename(tmp_path / "b")
    shelf = Shelf(tmp_path)
    assert shelf.modules.all[1].repaired == 1
    assert shelf.store.index.get(gone) is None
    for handle in (first, newer):
        shelf.read(handle)
    found = [sorted(path.name for path in folder.rglob("*.seal")) for folder in shelf.folders]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2
    shelf.close()


def test_an_empty_module_is_filled_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for _ in range(5):
        shelf.make()
    shelf.close()
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "c")
    shelf = Shelf(tmp_path)
    assert [shelf.store.scrub(3) for _ in range(3)] == [3, 2, 3]
    assert len(list((tmp_path / "a").rglob("*.seal"))) == len(list((tmp_path / "c").rglob("*.seal"))) == 5
    shelf.close()


def test_one_module_away_is_no_outage(shelf: Shelf) -> None:
    handle = shelf.make()
    with away(shelf.folders[2]):
        assert shelf.read(handle)
        newer = shelf.make()
        assert not shelf.modules.all[2].available
        assert shelf.journal.behind
    assert shelf.journal.check() == 1
    assert shelf.store.scrub(10) == 2
    assert shelf.file(newer, 2).exists()
    assert not shelf.journal.behind
    assert (shelf.folders[2] / FILE).read_bytes() == (shelf.folders[0] / FILE).read_bytes()


def test_two_modules_away_make_no_keys_and_leave_nothing(shelf: Shelf) -> None:
    handle = shelf.make()
    written = shelf.journal.sequence
    with away(*shelf.folders[1:]):
        assert shelf.read(handle)
        with pytest.raises(QuorumError):
            shelf.make()
        with pytest.raises(QuorumError):
            shelf.engine.destroy(handle.partition(":")[0], ORGANIZATION, {})
        assert len(shelf.store.index) == 1
        assert len(list(shelf.folders[0].rglob("*.seal"))) == 1
    assert shelf.journal.sequence == written
    shelf.journal.check()
    shelf.make()
    assert shelf.kinds() == ["generate", "generate"]


def test_a_destroyed_key_does_not_come_back_with_a_module(shelf: Shelf) -> None:
    handle = shelf.make()
    with away(shelf.folders[0]):
        shelf.engine.destroy(handle.partition(":")[0], ORGANIZATION, {})
    assert list(shelf.folders[0].rglob("*.seal"))
    shelf.store.tidy()
    assert not list(shelf.folders[0].rglob("*.seal"))


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    handle = shelf.make()
    orphan = shelf.file(handle, 0).with_name(f"{new_id()}.1.seal")
    orphan.write_bytes(shelf.read(handle))  # sealed, and never in the journal
    (tmp_path / "b" / f"journal.log.1{NEW}").write_bytes(b"half")
    with (tmp_path / "c" / FILE).open("ab") as file:
        file.write(b'{"at":"2026')
    shelf.close()
    shelf = Shelf(tmp_path)
    assert not orphan.exists()
    assert not list(tmp_path.rglob(f"*{NEW}"))
    assert len({(folder / FILE).read_bytes() for folder in shelf.folders}) == 1
    assert shelf.read(handle)
    shelf.close()


def test_records_of_many_threads_share_writes_and_keep_the_chain(shelf: Shelf) -> None:
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda n: shelf.journal.append("call", {"n": n}), range(100)))
    assert sorted(entry.sequence for entry in entries) == list(range(1, 101))
    contents = [(folder / FILE).read_bytes() for folder in shelf.folders]
    assert contents[0] == contents[1] == contents[2]
    assert len(merge(contents)) == 100


def test_damage_to_the_journal_while_running_is_repaired(shelf: Shelf) -> None:
    for number in range(6):
        shelf.journal.append("call", {"n": number})
    for folder in shelf.folders[:2]:
        flip(folder / FILE)
    assert shelf.journal.check() == 2
    assert len({(folder / FILE).read_bytes() for folder in shelf.folders}) == 1
    # All three, each elsewhere: joined again from what is whole.
    for number, folder in enumerate(shelf.folders):
        lines = (folder / FILE).read_bytes().splitlines(keepends=True)
        lines[number] = b"damaged\n"
        (folder / FILE).write_bytes(b"".join(lines))
    assert shelf.journal.check() == 3
    assert [entry.data["n"] for entry in shelf.journal.read()] == list(range(6))
    for folder in shelf.folders:
        delete(folder / FILE)
    with pytest.raises(DamagedError):
        shelf.journal.check()


def test_two_processes_never_share_modules(shelf: Shelf, tmp_path: Path) -> None:
    other = Modules([tmp_path / "x", tmp_path / "y", shelf.folders[0]])
    with pytest.raises(ModulesInUseError, match="another process"):
        other.open()
    other.close()


def test_there_is_room_for_so_many(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, capacity=2)
    shelf.make()
    shelf.make()
    with pytest.raises(KeysFullError):
        shelf.make()
    shelf.close()


def test_the_same_version_asked_for_at_once_is_one_key(shelf: Shelf) -> None:
    key_id = new_id()
    start = threading.Barrier(6)

    def make(_: int) -> bytes:
        start.wait()
        return shelf.engine.generate(KeyOrder(key_id, 1, Algorithm.ED25519, ORGANIZATION), {}).public_key

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(make, range(6)))) == 1
    assert shelf.kinds() == ["generate"]


def test_reading_and_repairing_at_once_is_safe(shelf: Shelf) -> None:
    handle = shelf.make()
    for module in range(2):
        flip(shelf.file(handle, module))
    with ThreadPoolExecutor(8) as pool:
        assert len({bytes(content) for content in pool.map(lambda _: shelf.read(handle), range(32))}) == 1
    assert all(module.available for module in shelf.modules.all)


def test_a_folder_in_a_files_place_is_a_module_that_fails(shelf: Shelf) -> None:
    handle = shelf.make()
    folder_instead(shelf.file(handle, 0))
    assert shelf.read(handle)
