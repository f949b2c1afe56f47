"""One child process: started with its own log, waited for with a deadline, stopped gracefully and then by force."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from infra.stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from infra.stack.account import Account

LOG_LIMIT = 8 * 1024 * 1024
"""Bytes after which a log becomes `NAME.log.1` and starts anew: at most twice this a process."""
READY_POLL = 0.03
"""Seconds between two looks at a process that is starting."""


@dataclass(frozen=True)
class Command:
    """What to run.

    `account` is whom to run it as: None keeps the caller's own. `stop_signal` asks for a graceful end.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 30.0


class Process:
    """A child process in a process group of its own, so that a terminal's Ctrl-C reaches only whoever started it."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command = command
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._swept = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """How it ended: None while it runs or before it started, negative for a signal."""
        return self._child.poll() if self._child is not None else None

    @property
    def ending(self) -> str:
        """How it ended, in words, with its last ones unless it was killed."""
        code = self.exit_code
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended (exit code {code}): {self.last_words()}"

    def start(self) -> None:
        """Start it. Raises StackError when the program cannot be run."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.bound_log()
        account = self.command.account
        self._swept = False
        with self.log.open("ab") as log:
            log.write(f"--- start {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n".encode())
            log.flush()
            try:
                self._child = subprocess.Popen(
                    list(self.command.argv),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(self.command.environment) or None,
                    cwd=self.command.folder,
                    process_group=0,
                    user=account.uid if account else None,
                    group=account.gid if account else None,
                    extra_groups=[] if account else None,
                )
            except OSError as error:
                raise StackError(
                    f"{self.command.name} cannot be run: {error.strerror}: {self.command.argv[0]}",
                    "install the project's dependencies again (make up does), then retry",
                ) from error

    def wait_ready(self, ready: Callable[[], bool], deadline: float) -> None:
        """Return when `ready()` is true. Raises StackError when it ends first or `deadline` (monotonic s) passes."""
        while True:
            if self.exit_code is not None:
                raise StackError(
                    f"{self.command.name} did not start: it {self.ending}",
                    f"read {self.log}",
                )
            if ready():
                return
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.command.name} was not ready in time: {self.last_words()}",
                    f"read {self.log}; on a slow machine raise BEHAVIORGUARD_START_SECONDS",
                )
            time.sleep(READY_POLL)

    def stop(self) -> None:
        """Ask it to end, wait `grace_seconds`, then end its whole group by force; harmless when it does not run."""
        with self._lock:
            child = self._child
            if child is None or self._swept:
                return
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(self.command.stop_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(self.command.grace_seconds)
            # Whatever it left behind shares its group; when it ended cleanly there is nobody and this is a no-op. Once
            # only: later the number may belong to somebody else.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            self._swept = True

    def bound_log(self) -> None:
        """Keep the log within its limit. The child appends, so cutting the file under it is safe."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            previous = self.log.with_suffix(".log.1")
            previous.write_bytes(self.log.read_bytes())
            os.truncate(self.log, 0)

    def last_words(self) -> str:
        """The last non-empty line of the log, for a message; at most 400 characters."""
        if not self.log.exists():
            return "no log"
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 4096))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return _message(lines[-1])[-400:] if lines else "it said nothing"


def _message(line: str) -> str:
    """The message of a structured log line; any other line as it is."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line


def is_running(pid: int, started: float) -> bool:
    """Tell whether process `pid` that started at `started` (Unix seconds) still runs; a reused id does not count."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
