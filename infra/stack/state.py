"""What the supervisor tells the outside: one JSON file, replaced as a whole, and a lock that says it lives."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

Phase = Literal["starting", "running", "stopping", "stopped", "failed"]
PartState = Literal["waiting", "starting", "healthy", "unhealthy", "restarting", "stopped"]


@dataclass
class PartStatus:
    """How one part is. `pid` and `started` (Unix seconds) name its process, `restarts` counts since the start."""

    name: str
    state: PartState = "waiting"
    detail: str = ""
    address: str = ""
    pid: int | None = None
    started: float | None = None
    restarts: int = 0
    ready_seconds: float | None = None


@dataclass
class StackStatus:
    """How the stack is. `problem` and `action` are set when it failed."""

    phase: Phase = "starting"
    pid: int = 0
    started: float = 0.0
    parts: dict[str, PartStatus] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    action: str = ""

    @property
    def healthy(self) -> bool:
        """Whether everything that should run does."""
        return self.phase == "running" and all(part.state == "healthy" for part in self.parts.values())

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> StackStatus:
        """Read the file's text. Raises ValueError, KeyError or TypeError when it is not one."""
        values = json.loads(text)
        values["parts"] = {name: PartStatus(**part) for name, part in values["parts"].items()}
        return cls(**values)


class StatusBoard:
    """Where the supervisor's threads write how things are; each change is published at once."""

    def __init__(self, run: Path, status: StackStatus) -> None:
        self._run = run
        self._status = status
        self._lock = threading.Lock()
        self._publish()

    def add(self, name: str, address: str) -> None:
        """Put a part on the board."""
        with self._lock:
            self._status.parts[name] = PartStatus(name, address=address)
            self._publish()

    def update(self, name: str, **values: object) -> None:
        """Change fields of a part's status."""
        with self._lock:
            self._status.parts[name] = replace(self._status.parts[name], **values)  # type: ignore[arg-type]  # by name
            self._publish()

    def count_restart(self, name: str, fault: str) -> None:
        """Say that a part is being restarted once more, and why."""
        with self._lock:
            part = self._status.parts[name]
            part.restarts, part.state, part.detail = part.restarts + 1, "restarting", fault
            self._publish()

    def tell(self, note: str) -> None:
        """Keep a sentence for `up` and `status` to print, once."""
        with self._lock:
            if note not in self._status.notes:
                self._status.notes.append(note)
            self._publish()

    def phase(self, phase: Phase, problem: str = "", action: str = "") -> None:
        """Say how far the whole stack is, and for a failure what is wrong and what to do."""
        with self._lock:
            self._status.phase, self._status.problem, self._status.action = phase, problem, action
            self._publish()

    def _publish(self) -> None:
        write_status(self._run, self._status)


def write_status(folder: Path, status: StackStatus) -> None:
    """Replace the state file; a reader sees the old one or the new one, never half."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"state.json.{os.getpid()}"
    partial.write_text(status.to_json())
    partial.replace(folder / "state.json")


def read_status(folder: Path) -> StackStatus | None:
    """Return the last state written, or None when there is none that can be read."""
    try:
        return StackStatus.from_json((folder / "state.json").read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def acquire_lock(folder: Path, seconds: float = 0.0) -> IO[str] | None:
    """Take the supervisor's lock, or return None when another holds it. It ends with the process, however that ends.

    `seconds` is how long to try: whoever asks whether the lock is held holds it for an instant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / "lock").open("a")  # not inherited: a child that outlives the supervisor must not look like one
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                handle.close()
                return None
            time.sleep(0.02)
        else:
            return handle


def is_supervised(folder: Path) -> bool:
    """Tell whether a supervisor runs on this data folder."""
    if not (folder / "lock").exists():
        return False
    handle = acquire_lock(folder)
    if handle is None:
        return True
    handle.close()
    return False
