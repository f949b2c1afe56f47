"""The supervisor over real child processes: restarts, gives up, starts and stops in order, leaves nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from infra.stack.errors import StackError
from infra.stack.leftovers import leftovers, stop_leftovers
from infra.stack.process import LOG_LIMIT, Command, Process
from infra.stack.state import StackStatus, StatusBoard, acquire_lock, is_supervised, read_status
from infra.stack.supervisor import Supervisor, Watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infra.stack.state import PartStatus

WATCHING = Watching(look_seconds=0.01, health_seconds=0.02, start_seconds=10)
RUN = "import signal, time; print('up', flush=True); time.sleep(60)"
WAIT_SECONDS = 20.0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


class ChildPart:
    """A part that is one Python process, ready when it has said "up"."""

    def __init__(
        self, name: str, folder: Path, script: str = RUN, needs: tuple[str, ...] = (), uses: tuple[str, ...] = ()
    ) -> None:
        self.name, self.needs, self.uses, self.address = name, needs, uses, "nowhere"
        self.well = True
        self.stopped_at = 0.0
        self.started_at = 0.0
        self.process = Process(Command(name, [sys.executable, "-S", "-c", script]), folder / f"{name}.log")

    def claim(self) -> None:
        pass

    def start(self, seconds: float) -> None:
        self.process.log.unlink(missing_ok=True)
        self.process.start()
        self.process.wait_ready(lambda: "\nup" in self.process.log.read_text(), time.monotonic() + seconds)
        self.started_at = time.monotonic()

    def healthy(self) -> bool:
        return self.well

    def stop(self) -> None:
        self.process.stop()
        self.stopped_at = time.monotonic()


@contextmanager
def supervised(tmp_path: Path, *parts: ChildPart) -> Iterator[Callable[[str], PartStatus]]:
    """Run a supervisor over the parts; yields what reads a part's status."""
    supervisor = Supervisor(parts, StatusBoard(tmp_path / "run", StackStatus()), WATCHING)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        eventually(lambda: _status(tmp_path).phase in {"running", "failed"})
        yield lambda name: _status(tmp_path).parts[name]
    finally:
        supervisor.stop()
        thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert all(part.process.pid is None for part in parts)


def _status(tmp_path: Path) -> StackStatus:
    status = read_status(tmp_path / "run")
    assert status is not None
    return status


def test_a_killed_part_is_restarted(tmp_path: Path) -> None:
    with supervised(tmp_path, ChildPart("one", tmp_path)) as status:
        first = status("one").pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        eventually(lambda: status("one").state == "healthy" and status("one").pid != first)
        assert status("one").restarts == 1


def test_a_part_that_fails_its_health_checks_is_restarted(tmp_path: Path) -> None:
    part = ChildPart("one", tmp_path)
    with supervised(tmp_path, part) as status:
        first = status("one").pid
        part.well = False
        eventually(lambda: status("one").restarts > 0)
        part.well = True
        eventually(lambda: status("one").state == "healthy")
        assert status("one").pid != first


def test_a_part_that_cannot_be_restarted_is_given_up_after_three_attempts(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    once = f"import pathlib, sys; m = pathlib.Path({str(marker)!r}); sys.exit('broken') if m.exists() else m.touch()"
    script = f"{once}; {RUN}"
    with supervised(tmp_path, ChildPart("one", tmp_path, script), ChildPart("two", tmp_path)) as status:
        pid = status("one").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: status("one").state == "unhealthy")
        assert status("one").restarts == 3
        assert "given up after 3 restarts" in status("one").detail
        assert "broken" in status("one").detail
        assert status("two").state == "healthy"
        assert not _status(tmp_path).healthy


def test_a_failed_start_stops_the_others_and_says_what_to_do(tmp_path: Path) -> None:
    good, bad = ChildPart("good", tmp_path), ChildPart("bad", tmp_path, "import sys; sys.exit('no licence')")
    with supervised(tmp_path, good, bad):
        status = _status(tmp_path)
    assert status.phase == "failed"
    assert "bad did not start: it ended (exit code 1): no licence" in status.problem
    assert str(bad.process.log) in status.action


def test_parts_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    store, service = ChildPart("store", tmp_path), ChildPart("service", tmp_path, needs=("store",))
    with supervised(tmp_path, service, store):
        assert store.started_at < service.started_at
    assert service.stopped_at < store.stopped_at


def test_parts_stop_before_what_they_work_with_and_do_not_wait_for_it(tmp_path: Path) -> None:
    slow = ChildPart("trail", tmp_path, "import time; time.sleep(0.3); print('up', flush=True); time.sleep(60)")
    service = ChildPart("service", tmp_path, uses=("trail",))
    with supervised(tmp_path, slow, service):
        assert service.started_at < slow.started_at
    assert service.stopped_at < slow.stopped_at


def test_stopping_does_not_wait_for_a_part_that_never_becomes_ready(tmp_path: Path) -> None:
    part = ChildPart("slow", tmp_path, "import time; time.sleep(60)")
    supervisor = Supervisor([part], StatusBoard(tmp_path / "run", StackStatus()), WATCHING)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    eventually(lambda: part.process.pid is not None)
    supervisor.stop()
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert _status(tmp_path).phase == "stopped"


def test_a_process_that_ignores_the_request_is_ended_by_force_with_its_children(tmp_path: Path) -> None:
    script = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']);"
        "print('up', child.pid, flush=True); time.sleep(60)"
    )
    process = Process(Command("stubborn", [sys.executable, "-c", script], grace_seconds=0.1), tmp_path / "stubborn.log")
    process.start()
    process.wait_ready(lambda: "\nup " in process.log.read_text(), time.monotonic() + WAIT_SECONDS)
    child = int(process.last_words().split()[1])
    process.stop()
    assert process.pid is None
    eventually(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_log_is_cut_while_its_process_writes(tmp_path: Path) -> None:
    process = Process(Command("talker", [sys.executable, "-S", "-c", RUN]), tmp_path / "talker.log")
    process.start()
    try:
        with process.log.open("ab") as log:
            log.write(b"x" * (LOG_LIMIT + 1))
        process.bound_log()
        assert process.log.stat().st_size == 0
        assert (tmp_path / "talker.log.1").stat().st_size > LOG_LIMIT
    finally:
        process.stop()


def test_a_program_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="ghost cannot be run") as raised:
        Process(Command("ghost", [str(tmp_path / "ghost")]), tmp_path / "ghost.log").start()
    assert "make up" in raised.value.action


def test_what_a_killed_supervisor_left_behind_is_found_and_stopped(tmp_path: Path) -> None:
    part = ChildPart("orphan", tmp_path)
    board = StatusBoard(tmp_path, StackStatus())
    board.add("orphan", "nowhere")
    part.start(WAIT_SECONDS)
    pid = part.process.pid
    assert pid is not None
    board.update("orphan", pid=pid, started=psutil.Process(pid).create_time() - 100)
    assert leftovers(tmp_path) == {}, "a reused process id is somebody else"
    board.update("orphan", started=psutil.Process(pid).create_time())
    assert leftovers(tmp_path) == {pid: "orphan"}
    assert stop_leftovers(tmp_path) == ["orphan"]
    assert part.process.exit_code is not None


def test_only_one_supervisor_holds_the_lock(tmp_path: Path) -> None:
    assert not is_supervised(tmp_path)
    lock = acquire_lock(tmp_path)
    assert lock is not None
    assert is_supervised(tmp_path)
    assert acquire_lock(tmp_path) is None
    lock.close()
    assert not is_supervised(tmp_path)
