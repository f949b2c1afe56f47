"""TCP ports on this machine: which are free, and who holds one that is not."""

from __future__ import annotations

import socket

import psutil

from infra.stack.errors import StackError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a TCP port that nobody listens on now. Somebody may take it before it is used: retry then."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Tell whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Say who listens on a port, as well as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # other people's sockets are hidden from ordinary users on some systems
        return "another process"
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid
        ):
            try:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
            except psutil.NoSuchProcess:
                break
    return "another process"


def require_free(port: int, purpose: str, setting: str) -> None:
    """Raise StackError when the port is taken: it names the holder and the setting that chooses another."""
    if not is_free(port):
        raise StackError(
            f"port {port} for {purpose} is taken by {holder(port)}",
            f"stop it, or choose another port: {setting}={port + 10000}",
        )
