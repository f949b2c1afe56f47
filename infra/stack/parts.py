"""The parts of the stack: what each needs, how it starts, how it is asked for its health, how it stops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import psycopg
from confluent_kafka import KafkaException

from infra import pki
from infra.kafka.topics import ensure_topics
from infra.postgres.migrate import migrate
from infra.postgres.roles import ensure_roles
from infra.stack import hsm
from infra.stack.addresses import addresses
from infra.stack.errors import StackError
from infra.stack.health import serves_grpc, serves_http
from infra.stack.kafka import (
    ApacheBroker,
    Broker,
    BrokerOptions,
    EmbeddedBroker,
    apache_obstacle,
    broker_answers,
    fetch_apache,
    libraries_folder,
)
from infra.stack.ports import LOOPBACK, require_free
from infra.stack.postgres import PostgresOptions, PostgresServer
from infra.stack.process import Process
from infra.stack.secrets import password
from infra.stack.services import SERVICES, WORKLOADS, Service, service_command
from infra.stack.valkey import ValkeyOptions, ValkeyServer, valkey_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from infra.settings import StackSettings


class Part(Protocol):
    """One part of the stack."""

    name: str
    needs: tuple[str, ...]
    """What must be ready before it starts."""
    uses: tuple[str, ...]
    """What it works with besides, once it runs: it stops before that as well."""
    address: str
    """Where it is, for people; no secrets."""

    @property
    def process(self) -> Process | None:
        """Its process; None for what has none of ours, or before it was started."""

    def claim(self) -> None:
        """Check that it can start (ports). Raises StackError."""

    def start(self, seconds: float) -> None:
        """Start it and return when it is ready. Raises StackError, at the latest after `seconds`."""

    def healthy(self) -> bool:
        """Tell how it is now; answers within seconds."""

    def stop(self) -> None:
        """Stop it, gracefully first."""


class PkiPart:
    """The development authority and the workloads' certificates."""

    name = "pki"
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    process: Process | None = None

    def __init__(self, settings: StackSettings) -> None:
        self._folder = settings.pki
        self.address = str(settings.pki)

    def claim(self) -> None:
        """Nothing to check."""

    def start(self, seconds: float) -> None:  # keys are made in milliseconds
        """Create the authority and issue what is missing or close to its end."""
        pki.ensure_authority(self._folder)
        for workload in WORKLOADS:
            pki.issue(self._folder, workload)

    def healthy(self) -> bool:
        """Tell whether every certificate is still good."""
        return all(pki.days_left(pki.identity(self._folder, workload).cert) > 0 for workload in WORKLOADS)

    def stop(self) -> None:
        """Nothing to stop."""


class DatabasePart:
    """A PostgreSQL database, ours or elsewhere, with its schema and roles up to date."""

    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()

    def __init__(self, settings: StackSettings, kind: str) -> None:
        self.name = f"postgres-{kind}"
        self._kind = kind
        self._secrets = settings.secrets
        external = settings.postgres_dsn if kind == "main" else settings.quantum_dsn
        self._setting = "BEHAVIORGUARD_POSTGRES_PORT" if kind == "main" else "BEHAVIORGUARD_QUANTUM_POSTGRES_PORT"
        self._port = settings.postgres_port if kind == "main" else settings.quantum_postgres_port
        self._server: PostgresServer | None = None
        self.process: Process | None = None
        if external is not None:
            self._dsn = external.get_secret_value()
            self.address = "external"
            return
        folder, log = settings.data / self.name, settings.logs / f"{self.name}.log"
        self._server = PostgresServer(PostgresOptions(self.name, folder, self._port, settings.secrets, log))
        self._dsn = self._server.dsn()
        self.process = self._server.process
        self.address = f"{LOOPBACK}:{self._port}"

    def claim(self) -> None:
        """Check the port."""
        if self._server is not None:
            require_free(self._port, self.name, self._setting)

    def start(self, seconds: float) -> None:
        """Start the server when it is ours, then bring the schema and the roles up to date."""
        if self._server is not None:
            self._server.start(time.monotonic() + seconds)
        try:
            migrate(self._dsn, self._kind)
            if self._server is not None:
                ensure_roles(self._dsn, self._kind, lambda role: password(self._secrets, role))
        except psycopg.Error as error:
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise StackError(
                f"{self.name} could not be brought up to date: {what}",
                f"read {self.process.log}" if self.process else "check the address and its user's rights",
            ) from error

    def healthy(self) -> bool:
        """Tell whether it accepts a connection."""
        try:
            with psycopg.connect(self._dsn, connect_timeout=3):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """Stop the server when it is ours."""
        if self._server is not None:
            self._server.stop()


class CachePart:
    """A Valkey or Redis server, ours or elsewhere."""

    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()

    def __init__(self, settings: StackSettings, kind: str) -> None:
        self.name = f"redis-{kind}"
        main = kind == "main"
        external = settings.redis_url if main else settings.quantum_redis_url
        self._setting = "BEHAVIORGUARD_REDIS_PORT" if main else "BEHAVIORGUARD_QUANTUM_REDIS_PORT"
        self._port = settings.redis_port if main else settings.quantum_redis_port
        self._server: ValkeyServer | None = None
        self.process: Process | None = None
        if external is not None:
            self._url = external.get_secret_value()
            self.address = "external"
            return
        folder, log = settings.data / self.name, settings.logs / f"{self.name}.log"
        self._server = ValkeyServer(ValkeyOptions(self.name, folder, self._port, settings.secrets, log))
        self._url = self._server.url()
        self.process = self._server.process
        self.address = f"{LOOPBACK}:{self._port}"

    def claim(self) -> None:
        """Check the port."""
        if self._server is not None:
            require_free(self._port, self.name, self._setting)

    def start(self, seconds: float) -> None:
        """Start the server when it is ours; else check that it is there."""
        if self._server is not None:
            self._server.start(time.monotonic() + seconds)
        elif not self.healthy():
            raise StackError(f"the external {self.name} does not answer", "check its address and that it runs")

    def healthy(self) -> bool:
        """Tell whether it answers."""
        return valkey_answers(self._url)

    def stop(self) -> None:
        """Stop the server when it is ours."""
        if self._server is not None:
            self._server.stop()


class BrokerPart:
    """The Kafka broker, ours or elsewhere, with the document's topics."""

    name = "kafka"
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()

    def __init__(self, settings: StackSettings, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._tell = tell
        self._broker: Broker | None = None
        self.address = settings.kafka_bootstrap or f"{LOOPBACK}:{settings.kafka_port}"

    @property
    def process(self) -> Process | None:
        """The broker's process, once it is chosen."""
        return self._broker.process if self._broker is not None else None

    def claim(self) -> None:
        """Check the ports."""
        if self._settings.kafka_bootstrap is None:
            require_free(self._settings.kafka_port, self.name, "BEHAVIORGUARD_KAFKA_PORT")
            setting = "BEHAVIORGUARD_KAFKA_CONTROLLER_PORT"
            require_free(self._settings.kafka_controller_port, f"{self.name}'s controller", setting)

    def start(self, seconds: float) -> None:
        """Choose and start the broker when it is ours, then create the topics and report those that differ."""
        if self._settings.kafka_bootstrap is None:
            if self._broker is None:
                self._broker = self._choose()
            self._broker.start(time.monotonic() + seconds)
        try:
            for difference in ensure_topics(self.address):
                self._tell(f"topic {difference}; nothing was changed")
        except KafkaException as error:
            raise StackError(
                f"the broker at {self.address} did not create the topics: {error.args[0].str()}",
                f"read {self.process.log}" if self.process else "check BEHAVIORGUARD_KAFKA_BOOTSTRAP and its rights",
            ) from error

    def healthy(self) -> bool:
        """Tell whether it answers."""
        return broker_answers(self.address)

    def stop(self) -> None:
        """Stop the broker when it is ours."""
        if self._broker is not None:
            self._broker.stop()

    def _choose(self) -> Broker:
        settings = self._settings
        options = BrokerOptions(
            settings.data / "kafka",
            settings.kafka_port,
            settings.kafka_controller_port,
            settings.cache,
            settings.logs / "kafka.log",
        )
        broker: Broker
        obstacle = "BEHAVIORGUARD_BROKER=embedded" if settings.broker == "embedded" else apache_obstacle(options.cache)
        if obstacle is not None and settings.broker == "apache":
            raise StackError(f"Apache Kafka cannot run: {obstacle}", "install it, or set BEHAVIORGUARD_BROKER=auto")
        if obstacle is None:
            try:
                if not libraries_folder(options.cache).exists():
                    self._tell("fetching Apache Kafka through Maven (45 MB, once)")
                fetch_apache(options.cache)
            except StackError as error:
                if settings.broker == "apache":
                    raise
                obstacle = error.problem
        if obstacle is None:
            broker = ApacheBroker(options)
            self._tell(f"broker: {broker.label}")
        else:
            broker = EmbeddedBroker(options)
            self._tell(f"broker: {broker.label}, because {obstacle}; {'; '.join(broker.warnings)}")
        return broker


class ServicePart:
    """One of our own services."""

    def __init__(self, settings: StackSettings, service: Service) -> None:
        self.name = service.name
        self.needs = service.needs
        self.uses = service.uses
        self._settings = settings
        self._service = service
        self._port = service.port(settings)
        scheme = "https" if service.health == "grpc" else "http"
        self.address = f"{scheme}://localhost:{self._port}"
        self._process: Process | None = None

    @property
    def process(self) -> Process | None:
        """The service's process, once it was started."""
        return self._process

    def claim(self) -> None:
        """Check the port."""
        require_free(self._port, self.name, f"BEHAVIORGUARD_{self._service.port_setting.upper()}")

    def start(self, seconds: float) -> None:
        """Start it and wait until it says that it serves."""
        command = service_command(self._service, self._settings, addresses(self._settings))
        self._process = Process(command, self._settings.logs / f"{self.name}.log")
        self._process.start()
        self._process.wait_ready(self.healthy, time.monotonic() + seconds)

    def healthy(self) -> bool:
        """Ask it, over mTLS or HTTP."""
        if self._service.health == "grpc":
            return serves_grpc(self._port, pki.identity(self._settings.pki, "monitoring"))
        return serves_http(self._port, self._service.health_path)

    def stop(self) -> None:
        """Ask it to drain and end."""
        if self._process is not None:
            self._process.stop()


class HsmPart(ServicePart):
    """The HSM, which is ready when it is unsealed, unless whoever holds its shares does that."""

    def __init__(self, settings: StackSettings, service: Service, tell: Callable[[str], None]) -> None:
        super().__init__(settings, service)
        self._tell = tell

    def start(self, seconds: float) -> None:
        """Start it and unseal it."""
        deadline = time.monotonic() + seconds
        super().start(seconds)
        if self._settings.hsm_unseal == "auto":
            hsm.unseal(self._settings, deadline - time.monotonic())
        self._tell(hsm.notice(self._settings))


def build_parts(settings: StackSettings, tell: Callable[[str], None], without: Collection[str] = ()) -> list[Part]:
    """Return all parts but those named in `without`; `tell` takes what the person should know."""
    parts: list[Part] = [
        PkiPart(settings),
        DatabasePart(settings, "main"),
        DatabasePart(settings, "quantum"),
        CachePart(settings, "main"),
        CachePart(settings, "quantum"),
        BrokerPart(settings, tell),
        *(
            HsmPart(settings, service, tell) if service.name == "hsm" else ServicePart(settings, service)
            for service in SERVICES
        ),
    ]
    return [part for part in parts if part.name not in without]
