"""Processes that a killed supervisor left behind."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil

from infra.stack.process import is_running
from infra.stack.state import read_status

if TYPE_CHECKING:
    from pathlib import Path

GRACE_SECONDS = 30.0


def leftovers(run: Path) -> dict[int, str]:
    """Return the processes of the last state that still run: id to part's name. Meaningful when no supervisor runs."""
    status = read_status(run)
    if status is None:
        return {}
    return {
        part.pid: part.name
        for part in status.parts.values()
        if part.pid is not None and part.started is not None and is_running(part.pid, part.started)
    }


def stop_leftovers(run: Path) -> list[str]:
    """Stop them, gracefully first, with their children. Returns the names of the parts that were stopped."""
    found = leftovers(run)
    processes = []
    for pid, name in found.items():
        try:
            process = psutil.Process(pid)
            processes += [process, *process.children(recursive=True)]
            # PostgreSQL's own children end with it; SIGINT makes it end without waiting for clients.
            process.send_signal(signal.SIGINT if name.startswith("postgres") else signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)
    return sorted(found.values())
