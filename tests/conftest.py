"""Fixtures for every area: real servers on free ports, one of each per test process, empty for each test module.

Nothing is shared between pytest-xdist's workers, so tests need no order among themselves.

* `postgres_dsn`: a freshly migrated main database, as its owner; `threat_dsn`: the same one as the threat service.
* `quantum_dsn`: a freshly migrated quantum database, as its owner.
* `redis_url`: an empty database of a Valkey server.
* `kafka_bootstrap`: a broker of the module's own with the document's topics.
* `pki`: a folder with a development authority (`infra.pki.issue(pki, "threat")` adds a service).
* `eval_data`: the recordings named by BEHAVIORGUARD_EVAL_DATA; the test is skipped without them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psycopg
import pytest
import redis

from infra import pki as authority
from infra.kafka.topics import ensure_topics
from infra.postgres.migrate import migrate
from infra.postgres.roles import ensure_roles
from infra.stack.errors import StackError
from infra.stack.kafka import BrokerOptions, EmbeddedBroker
from infra.stack.ports import free_port
from infra.stack.postgres import OWNER, PostgresOptions, PostgresServer
from infra.stack.secrets import password
from infra.stack.valkey import ValkeyOptions, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_SECONDS = 60.0
PORT_TRIES = 5
VALKEY_DATABASES = 512
Server = TypeVar("Server", PostgresServer, ValkeyServer, EmbeddedBroker)


def _started(make: Callable[[], Server]) -> Server:
    """Start a server on a free port, again on another when somebody took that port in between."""
    for attempt in itertools.count(1):
        server = make()
        try:
            server.start(time.monotonic() + START_SECONDS)
        except StackError:
            server.stop()
            if attempt == PORT_TRIES:
                raise
        else:
            return server
    raise AssertionError


@pytest.fixture(scope="session")
def store_folder() -> Iterator[Path]:
    """A folder that an unprivileged account may enter too: PostgreSQL runs as one when the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="behaviorguard-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class DatabaseServer:
    """A PostgreSQL server with one migrated template database of each kind, copied for every module."""

    server: PostgresServer
    secrets: Path
    numbers: Iterator[int]

    def fresh(self, kind: str) -> str:
        """Create a migrated database of the kind "main" or "quantum" and return its name."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            template = f"template_{kind}"
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (template,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {template}")
                migrate(self.server.dsn(database=template), kind)
                ensure_roles(self.server.dsn(database=template), kind, lambda role: password(self.secrets, role))
            name = f"test_{kind}_{next(self.numbers)}"
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
            roles = (
                "bg_threat, bg_identity, bg_mobile, bg_monitoring" if kind == "main" else "bg_quantum, bg_monitoring"
            )
            # Rights on the database itself are not copied from the template.
            connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
            connection.execute(f"GRANT CONNECT ON DATABASE {name} TO {roles}")
        return name

    def drop(self, name: str) -> None:
        """Drop a database, with whoever is still connected."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def dsn(self, name: str, role: str = OWNER) -> str:
        """Address of a database for a role."""
        return self.server.dsn(role, None if role == OWNER else password(self.secrets, role), name)


@pytest.fixture(scope="session")
def database_server(store_folder: Path) -> Iterator[DatabaseServer]:
    """The test process's PostgreSQL server."""
    secrets = store_folder / "secrets"

    def make() -> PostgresServer:
        log = store_folder / "postgres.log"
        return PostgresServer(
            PostgresOptions("postgres-test", store_folder / "postgres", free_port(), secrets, log, durable=False)
        )

    server = _started(make)
    yield DatabaseServer(server, secrets, itertools.count(1))
    server.stop()


@pytest.fixture(scope="module")
def main_database(database_server: DatabaseServer) -> Iterator[str]:
    """Name of the module's own main database."""
    name = database_server.fresh("main")
    yield name
    database_server.drop(name)


@pytest.fixture(scope="module")
def postgres_dsn(database_server: DatabaseServer, main_database: str) -> str:
    """The module's main database, as its owner."""
    return database_server.dsn(main_database)


@pytest.fixture(scope="module")
def threat_dsn(database_server: DatabaseServer, main_database: str) -> str:
    """The module's main database, as the threat service sees it."""
    return database_server.dsn(main_database, "bg_threat")


@pytest.fixture(scope="module")
def quantum_dsn(database_server: DatabaseServer) -> Iterator[str]:
    """The module's quantum database, as its owner."""
    name = database_server.fresh("quantum")
    yield database_server.dsn(name)
    database_server.drop(name)


@pytest.fixture(scope="session")
def redis_server(store_folder: Path) -> Iterator[ValkeyServer]:
    """The test process's Valkey server."""

    def make() -> ValkeyServer:
        folder, secrets, log = store_folder / "redis", store_folder / "secrets", store_folder / "redis.log"
        return ValkeyServer(
            ValkeyOptions("redis-test", folder, free_port(), secrets, log, durable=False, databases=VALKEY_DATABASES)
        )

    server = _started(make)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def redis_url(redis_server: ValkeyServer, request: pytest.FixtureRequest) -> str:
    """An empty database of the Valkey server, for this module alone while it runs."""
    url = redis_server.url(zlib.crc32(request.node.nodeid.encode()) % VALKEY_DATABASES)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(scope="module")
def kafka_bootstrap(store_folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A broker of the module's own (in memory, up in 0.1 s) with the document's topics."""
    folder = store_folder / f"kafka-{zlib.crc32(request.node.nodeid.encode()):08x}"

    def make() -> EmbeddedBroker:
        return EmbeddedBroker(
            BrokerOptions(folder, free_port(), free_port(), folder, store_folder / f"{folder.name}.log")
        )

    broker = _started(make)
    ensure_topics(broker.bootstrap())
    yield broker.bootstrap()
    broker.stop()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a development authority and certificates for the services that most tests need."""
    folder = tmp_path_factory.mktemp("pki")
    authority.ensure_authority(folder)
    for service in ("threat", "gateway", "pipeline", "operator"):
        authority.issue(folder, service)
    return folder


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The folder with the recordings that evaluation needs (`keystroke/`, `mouse/`)."""
    named = os.environ.get("BEHAVIORGUARD_EVAL_DATA")
    if not named:
        pytest.skip("set BEHAVIORGUARD_EVAL_DATA to the folder with keystroke/ and mouse/")
    folder = Path(named)
    if not folder.is_dir():
        pytest.skip(f"BEHAVIORGUARD_EVAL_DATA={named} is not a folder")
    return folder
