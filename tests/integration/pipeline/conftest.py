"""A pipeline process of the tests' own, and what comes out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from infra.bench.events import record, user_id
from infra.stack.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[3]
STAND_IN = Path(__file__).parent / "stand_in.py"
PATIENCE = 150.0


@dataclass
class PipelineProcess:
    """The pipeline with stand-in models on a broker."""

    bootstrap: str
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> PipelineProcess:
        self.port = free_port()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BEHAVIORGUARD_KAFKA_BOOTSTRAP": self.bootstrap,
            "BEHAVIORGUARD_PIPELINE_PORT": str(self.port),
            "BEHAVIORGUARD_PIPELINE_USERS": "4096",
            **self.environment,
        }
        with self.log.open("ab") as log:
            self.child = subprocess.Popen([sys.executable, str(STAND_IN)], cwd=ROOT, env=environment, stderr=log)
        return self

    def health(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status, orjson.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, orjson.loads(error.read())
        except OSError:
            return 0, {}

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def wait(self, condition: Callable[[int, dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition(*self.health()):
            assert self.child is not None
            assert self.child.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def wait_healthy(self) -> PipelineProcess:
        self.wait(lambda status, _: status == 200)
        return self

    def wait_end(self) -> None:
        assert self.child is not None
        self.child.wait(PATIENCE)

    def end_code(self) -> int | None:
        assert self.child is not None
        return self.child.poll()

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.child is not None
        self.child.send_signal(how)
        return self.child.wait(PATIENCE)


@pytest.fixture
def pipelines(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Callable[..., PipelineProcess]]:
    """Starts pipeline processes in a group of the test's own; ends what is left."""
    started: list[PipelineProcess] = []
    group = f"pipeline-{uuid.uuid4()}"

    def start(**environment: str) -> PipelineProcess:
        number = len(started)
        names = {"BEHAVIORGUARD_PIPELINE_GROUP": group, "BEHAVIORGUARD_PIPELINE_NODE": f"node-{number}"}
        process = PipelineProcess(kafka_bootstrap, tmp_path / f"pipeline-{number}.log", names | environment)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        if process.child is not None and process.child.poll() is None:
            process.child.kill()
            process.child.wait(PATIENCE)


class Broker:
    """Sends events and collects what comes back."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1})
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"test-{uuid.uuid4()}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 20,
            }
        )
        # Assigned by hand: joining a group takes seconds. From the beginning: tests look for ids of their own.
        topics = self._consumer.list_topics(timeout=PATIENCE).topics
        self._consumer.assign(
            [
                TopicPartition(topic, partition, OFFSET_BEGINNING)
                for topic in ("threat-alerts", "threat-dead-letters")
                for partition in topics[topic].partitions
            ]
        )
        self.alerts: dict[str, list[dict[str, Any]]] = {}
        self.headers: dict[str, dict[str, bytes]] = {}
        self.letters: list[dict[str, Any]] = []
        self._by_node: dict[bytes, set[str]] = {}

    def send(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            self.send_raw(str(event["user_id"]).encode(), orjson.dumps(event))
        self.flush()

    def send_raw(self, key: bytes | None, value: bytes | None) -> None:
        self._producer.produce("threat-events", value, key)

    def flush(self) -> None:
        assert self._producer.flush(PATIENCE) == 0

    @property
    def nodes(self) -> set[bytes]:
        return set(self._by_node)

    def made_by(self, node: bytes) -> set[str]:
        """Ids of the alerts that a node made."""
        return self._by_node.get(node, set())

    def wait(self, condition: Callable[[Broker], bool]) -> Broker:
        deadline = time.monotonic() + PATIENCE
        while not condition(self):
            assert time.monotonic() < deadline, f"{len(self.alerts)} alerts, {len(self.letters)} dead letters"
            self.collect(0.1)
        return self

    def wait_for_alerts(self, ids: set[str]) -> Broker:
        return self.wait(lambda broker: ids <= broker.alerts.keys())

    def collect(self, seconds: float) -> None:
        for message in self._consumer.consume(1000, seconds):
            assert message.error() is None, message.error()
            value = message.value()
            assert value is not None
            content = orjson.loads(value)
            if message.topic() == "threat-alerts":
                assert message.key() == content["event_id"].encode()
                self.alerts.setdefault(content["event_id"], []).append(content)
                raw = message.headers()
                assert isinstance(raw, list)
                headers = {name: text for name, text in raw if isinstance(text, bytes)}
                self.headers[content["event_id"]] = headers
                self._by_node.setdefault(headers["processing-node"], set()).add(content["event_id"])
            else:
                self.letters.append(content)

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
def broker(kafka_bootstrap: str) -> Iterator[Broker]:
    connected = Broker(kafka_bootstrap)
    yield connected
    connected.close()


@pytest.fixture
def events() -> Callable[..., list[dict[str, Any]]]:
    """Makes events of a few users of the test's own."""
    rng = np.random.default_rng(7)
    first = int.from_bytes(os.urandom(4))

    def make(number: int, users: int = 10) -> list[dict[str, Any]]:
        now = int(time.time() * 1000)
        return [record(first + i % users, str(uuid.uuid4()), now, rng) for i in range(number)]

    return make


def ids(events: Sequence[dict[str, Any]]) -> set[str]:
    return {event["event_id"] for event in events}


__all__ = ["Broker", "PipelineProcess", "ids", "user_id"]
