"""The supervisor: starts parts as soon as what they need is there, watches them, restarts the dead, stops in order."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from infra.settings import load_settings
from infra.stack.errors import StackError
from infra.stack.leftovers import stop_leftovers
from infra.stack.parts import build_parts
from infra.stack.state import StackStatus, StatusBoard, acquire_lock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.stack.parts import Part
    from infra.stack.state import PartState

_log = logging.getLogger("behaviorguard.supervisor")
LOCK_SECONDS = 3.0
JOIN_SECONDS = 5.0


@dataclass(frozen=True)
class Watching:
    """How parts are watched. Attempts and failures are the document's, three each; it asks every 30 s, we more often.

    `look_seconds` passes between two looks at the processes, `health_seconds` between two questions for health,
    `steady_seconds` must pass without a fault before the count of attempts starts anew.
    """

    look_seconds: float = 0.25
    health_seconds: float = 5.0
    failures: int = 3
    attempts: int = 3
    steady_seconds: float = 300.0
    start_seconds: float = 90.0


class Supervisor:
    """Keeps a set of parts running. Each part has a thread of its own, so that one that hangs delays no other."""

    def __init__(self, parts: Sequence[Part], board: StatusBoard, watching: Watching) -> None:
        self._parts = {part.name: part for part in parts}
        self._board = board
        self._watching = watching
        self._stopping = threading.Event()
        self._ready = {name: threading.Event() for name in self._parts}
        self._failure: StackError | None = None
        for part in parts:
            board.add(part.name, part.address)

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler."""
        self._stopping.set()

    def run(self) -> bool:
        """Start everything, watch until `stop` is called, stop everything. Returns False when the start failed."""
        threads = [threading.Thread(target=self._guard, args=(part,), daemon=True) for part in self._parts.values()]
        try:
            for part in self._parts.values():
                part.claim()
        except StackError as error:
            self._failure = error
        else:
            for thread in threads:
                thread.start()
            if self._all_ready():
                self._board.phase("running")
                self._stopping.wait()
            self._board.phase("stopping")
            self._stop_parts()
            for thread in threads:
                thread.join(JOIN_SECONDS)
            self._stop_parts()  # whatever was just being started when the first round passed
        if self._failure is not None:
            self._board.phase("failed", self._failure.problem, self._failure.action)
        else:
            self._board.phase("stopped")
        return self._failure is None

    def _all_ready(self) -> bool:
        return all(self._await(name) for name in self._ready)

    def _await(self, name: str) -> bool:
        """Wait until a part is ready; False when the stack stops before. A part that was left out counts as ready."""
        while name in self._ready and not self._ready[name].wait(0.05):
            if self._stopping.is_set():
                return False
        return True

    def _guard(self, part: Part) -> None:
        """Run a part's whole life; whatever goes wrong in here is the stack's failure, not a silent thread's."""
        try:
            if all(self._await(need) for need in part.needs) and not self._stopping.is_set():
                self._start(part, "starting")
                self._ready[part.name].set()
                self._watch(part)
        except StackError as error:
            self._fail(part, error)
        except Exception as error:
            _log.exception("%s: unexpected error", part.name)
            self._fail(part, StackError(f"{part.name}: {type(error).__name__}: {error}", "read supervisor.log"))

    def _fail(self, part: Part, error: StackError) -> None:
        if self._stopping.is_set():  # it was stopped while it started: that is no failure
            return
        self._board.update(part.name, state="unhealthy", detail=error.problem)
        self._failure = error
        self._stopping.set()

    def _start(self, part: Part, state: PartState) -> None:
        begun = time.monotonic()
        self._board.update(part.name, state=state, detail="")
        part.start(self._watching.start_seconds)
        pid = part.process.pid if part.process is not None else None
        started = psutil.Process(pid).create_time() if pid is not None else None
        taken = round(time.monotonic() - begun, 2)
        self._board.update(part.name, state="healthy", pid=pid, started=started, ready_seconds=taken)
        _log.info("%s is ready after %.2f s", part.name, taken)

    def _watch(self, part: Part) -> None:
        """Look after a started part until the stack stops or the part is given up."""
        attempts = 0
        last_fault = time.monotonic()
        while (fault := self._next_fault(part)) is not None:
            _log.warning("%s %s", part.name, fault)
            if time.monotonic() - last_fault > self._watching.steady_seconds:
                attempts = 0
            last_fault = time.monotonic()
            if part.process is None:
                self._await_recovery(part, fault)
                continue
            attempts = self._restart(part, fault, attempts)
            if part.process.pid is None:
                return

    def _next_fault(self, part: Part) -> str | None:
        """Wait until the part's process ends or its health checks fail in a row; None when the stack stops before."""
        failures = 0
        asked = time.monotonic()
        while not self._stopping.wait(self._watching.look_seconds):
            process = part.process
            if process is not None:
                process.bound_log()
                if process.pid is None:
                    return process.ending
            if time.monotonic() - asked >= self._watching.health_seconds:
                failures = 0 if part.healthy() else failures + 1
                asked = time.monotonic()
                if failures >= self._watching.failures:
                    return f"failed {failures} health checks in a row"
        return None

    def _await_recovery(self, part: Part, fault: str) -> None:
        """Wait until something that is not ours to restart answers again."""
        self._board.update(part.name, state="unhealthy", detail=fault)
        while not self._stopping.wait(self._watching.health_seconds):
            if part.healthy():
                self._board.update(part.name, state="healthy", detail="")
                return

    def _restart(self, part: Part, fault: str, attempts: int) -> int:
        """Restart a part until it is healthy or the attempts are used up; returns how many were used."""
        while attempts < self._watching.attempts and not self._stopping.is_set():
            attempts += 1
            self._board.count_restart(part.name, fault)
            part.stop()
            try:
                self._start(part, "restarting")
            except StackError as error:
                _log.warning("%s: attempt %d failed: %s", part.name, attempts, error.problem)
                fault = error.problem
            else:
                return attempts
        part.stop()
        if not self._stopping.is_set():
            detail = f"given up after {attempts} restarts: {fault}"
            self._board.update(part.name, state="unhealthy", detail=detail, pid=None, started=None)
            _log.error("%s is %s", part.name, detail)
        return attempts

    def _stop_parts(self) -> None:
        """Stop what depends on others first; what does not depend on each other at the same time."""
        remaining = dict(self._parts)
        while remaining:
            needed = {need for part in remaining.values() for need in (*part.needs, *part.uses)}
            leaves = [part for name, part in remaining.items() if name not in needed]
            with ThreadPoolExecutor(len(leaves)) as pool:
                list(pool.map(self._stop_part, leaves))
            for part in leaves:
                del remaining[part.name]

    def _stop_part(self, part: Part) -> None:
        part.stop()
        self._board.update(part.name, state="stopped", pid=None, started=None)


def main(without: Sequence[str]) -> int:
    """Run the embedded stack in this process until SIGTERM or SIGINT. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings = load_settings()
    lock = acquire_lock(settings.run, LOCK_SECONDS)
    if lock is None:
        _log.error("a supervisor already runs on %s", settings.data)
        return 3
    with lock:
        stop_leftovers(settings.run)
        own = psutil.Process()
        board = StatusBoard(settings.run, StackStatus(pid=own.pid, started=own.create_time()))
        try:
            parts = build_parts(settings, board.tell, without)
        except StackError as error:
            board.phase("failed", error.problem, error.action)
            return 1
        supervisor = Supervisor(parts, board, Watching(start_seconds=settings.start_seconds))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        done = supervisor.run()
        for child in own.children(recursive=True):  # a download that was under way
            child.kill()
        return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
