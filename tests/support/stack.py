"""A stack of its own for a test: data folder, ports, and the command line that a person would use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from infra.settings import StackSettings
from infra.stack.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = (
    "POSTGRES",
    "QUANTUM_POSTGRES",
    "REDIS",
    "QUANTUM_REDIS",
    "KAFKA",
    "KAFKA_CONTROLLER",
    "HSM",
    "QUANTUM",
    "THREAT",
    "PIPELINE",
    "GATEWAY",
)


class Installation:
    """A data folder and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {f"BEHAVIORGUARD_{name}_PORT": str(free_port()) for name in PORTS} | {
            "BEHAVIORGUARD_DATA": str(folder),
            "BEHAVIORGUARD_BROKER": "embedded",
        }

    def settings(self) -> StackSettings:
        """The same settings, read."""
        values = {key.removeprefix("BEHAVIORGUARD_").lower(): value for key, value in self.environment.items()}
        return StackSettings(**values)  # type: ignore[arg-type]  # pydantic parses the texts as it does the environment's

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `behaviorguard` with the words and wait for its end."""
        argv, environment = self._command(words)
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=180)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Run `behaviorguard` with the words in the background."""
        argv, environment = self._command(words)
        return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _command(self, words: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
        argv = [sys.executable, "-c", "from infra.cli.main import main; main()", *words]
        return argv, {**os.environ, **self.environment, "COLUMNS": "200"}

    def status(self) -> dict[str, Any]:
        """What `behaviorguard status --json` says."""
        parsed: dict[str, Any] = json.loads(self.call("status", "--json").stdout)
        return parsed

    def kill(self, name: str, seconds: float = 90.0) -> None:
        """End a part's process by SIGKILL and wait until the supervisor has brought it back."""
        pid = self.status()["parts"][name]["pid"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + seconds
        while True:
            part = self.status()["parts"][name]
            if part["state"] == "healthy" and part["pid"] not in (pid, None):
                return
            assert time.monotonic() < deadline, part
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """Whoever still runs with this data folder in its arguments or as a supervisor on it."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder) in " ".join(process.cmdline()) or process.environ().get(
                    "BEHAVIORGUARD_DATA"
                ) == str(self.folder):
                    found.append(process.pid)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found


@contextmanager
def installed(**settings: str) -> Iterator[Installation]:
    """An installation that is stopped and erased at the end. `settings` as in the environment, without the prefix."""
    folder = Path(tempfile.mkdtemp(prefix="behaviorguard-stack-"))
    folder.chmod(0o711)  # PostgreSQL's account must pass through
    installation = Installation(folder)
    installation.environment |= {f"BEHAVIORGUARD_{name.upper()}": value for name, value in settings.items()}
    try:
        yield installation
    finally:
        installation.call("down", "--erase", "--yes")
        shutil.rmtree(folder, ignore_errors=True)
