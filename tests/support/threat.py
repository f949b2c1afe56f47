"""The threat service on real stores, a stand-in for the pipeline, and events of made-up people."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import orjson
import psycopg
from behaviorguard.threat.v1 import threat_service_pb2 as pb
from behaviorguard.threat.v1.threat_service_pb2_grpc import ThreatServiceStub
from confluent_kafka import Consumer, Producer
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from infra import pki
from servers.mesh.limits import Unlimited
from servers.threat.app import threat_app
from servers.threat.features import FEATURES
from servers.threat.settings import ThreatSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

ORGANIZATION = "00000000-0000-4000-8000-000000000001"
Judge = "Callable[[dict[str, Any]], dict[str, Any] | None]"


def level_name(score: float) -> str:
    """The document's levels."""
    return "normal" if score < 0.3 else "suspicious" if score <= 0.7 else "threat" if score <= 0.9 else "critical"


def alert_for(event: dict[str, Any], score: float = 0.1, **changes: Any) -> dict[str, Any]:
    """What a pipeline would publish for an event's record."""
    now = datetime.now(UTC)
    alert = {
        "event_id": event["event_id"],
        "user_id": event["user_id"],
        "threat_score": score,
        "threat_level": level_name(score),
        "anomaly_score": score,
        "sequence_threat_score": score,
        "pattern_anomaly_score": score,
        "ml_confidence": 0.9,
        "processing_time_ms": max(0, int(now.timestamp() * 1000) - event["accepted_at_ms"]),
        "model_versions": [{"name": "anomaly-detection", "version": "1", "accuracy": 0.9}],
        "recommendations": ["Nothing to do."],
        "correlation_id": event["correlation_id"],
        "timestamp": now.isoformat(),
        "session_id": event["session_id"],
        "organization_id": event["organization_id"],
        "occurred_at": event["timestamp"],
        "reasons": [
            {
                "feature": "hold_mean",
                "text": "Keys are held longer.",
                "deviation": 2.0,
                "contribution": 0.5,
                "modality": "typing",
                "simulated": False,
            }
        ]
        if score >= 0.3
        else [],
        "features": [float(event[name]) for name in FEATURES],
        "simulated_features": event["simulated_features"],
        "pipeline_version": "test",
        "sample": event["sample"],
        "evidence_version": event["evidence_version"],
    }
    return alert | changes


class StandInPipeline:
    """Turns events into alerts in a thread: at least once, committing after delivery, like the real one."""

    def __init__(self, bootstrap: str, judge: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None) -> None:
        self.seen: list[dict[str, Any]] = []
        self.judge = judge or alert_for
        self._bootstrap = bootstrap
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> StandInPipeline:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "stand-in",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 1000,
                "heartbeat.interval.ms": 200,
                "log_level": 0,
            }
        )
        consumer.subscribe(["threat-events"])
        producer = Producer({"bootstrap.servers": self._bootstrap, "linger.ms": 1, "log_level": 0})
        while not self._stop.is_set():
            messages = [m for m in consumer.consume(256, 0.01) if m.error() is None]
            for message in messages:
                event = orjson.loads(message.value() or b"")
                self.seen.append(event)
                alert = self.judge(event)
                if alert is not None:
                    producer.produce("threat-alerts", orjson.dumps(alert), event["event_id"])
            producer.flush(5)
            if messages:
                consumer.commit(asynchronous=False)
        # The embedded broker never lets anybody into a group again that a member left while joining.
        while not consumer.assignment():
            consumer.poll(0.05)
        consumer.close()


@dataclass
class Stores:
    """Where the service's data lies in a test."""

    dsn: str
    """As the service's own role."""
    owner_dsn: str
    redis: str
    kafka: str
    pki: Path

    def settings(self, **changes: Any) -> ThreatSettings:
        """Settings of a service on these stores."""
        identity = pki.issue(self.pki, "threat")
        values: dict[str, Any] = {
            "port": 0,
            "tls_ca": identity.ca,
            "tls_cert": identity.cert,
            "tls_key": identity.key,
            "postgres_dsn": self.dsn,
            "redis_url": self.redis,
            "kafka_bootstrap": self.kafka,
            "drain_seconds": 2.0,
            "save_seconds": 0.1,
            "health_interval_seconds": 0.2,
            "alerts_session_seconds": 1.0,
        }
        return ThreatSettings(**(values | changes))

    def person(self, organization_id: str = ORGANIZATION) -> str:
        """Create somebody; returns their id."""
        user_id = str(uuid.uuid4())
        with psycopg.connect(self.owner_dsn, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO behaviorguard.users (user_id, email, organization_id) VALUES (%s, %s, %s)",
                (user_id, f"{user_id}@example.invalid", organization_id),
            )
        return user_id

    def organization(self) -> str:
        """Create another tenant; returns its id."""
        organization_id = str(uuid.uuid4())
        with psycopg.connect(self.owner_dsn, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO behaviorguard.organizations (organization_id, name) VALUES (%s, %s)",
                (organization_id, organization_id),
            )
        return organization_id

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database as its owner."""
        with psycopg.connect(self.owner_dsn, autocommit=True) as connection:
            return connection.execute(query.encode(), values).fetchall()


@dataclass
class RunningThreat:
    """A service that listens."""

    port: int
    stores: Stores
    _open: list[aio.Channel] = field(default_factory=list)

    def stub(self, caller: str = "operator") -> Any:
        """Call as a workload."""
        files = pki.issue(self.stores.pki, caller)
        credentials = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        channel = aio.secure_channel(f"localhost:{self.port}", credentials, options)
        self._open.append(channel)
        return ThreatServiceStub(channel)

    async def close(self) -> None:
        """Close what was opened."""
        for channel in self._open:
            await channel.close()


@asynccontextmanager
async def running_threat(stores: Stores, **changes: Any) -> AsyncIterator[RunningThreat]:
    """The service in this process, over real sockets."""
    async with threat_app(stores.settings(**changes), limiter=Unlimited()) as server:
        port = await server.start()
        running = RunningThreat(port, stores)
        try:
            yield running
        finally:
            await running.close()
            await server.drain()


def end_user(user_id: str, scope: str = "self", organization_id: str = ORGANIZATION) -> tuple[tuple[str, str], ...]:
    """Metadata with which the gateway speaks for a person."""
    return (("x-bg-user-id", user_id), ("x-bg-organization-id", organization_id), ("x-bg-scope", scope))


class Hand:
    """A made-up person's way of typing and moving: enough to tell two apart."""

    def __init__(self, seed: int) -> None:
        self._habits = np.random.default_rng(seed)
        # A tempo of their own, and a rhythm around it.
        self._hold = self._habits.uniform(60, 170) * self._habits.lognormal(0, 0.2, 12)
        self._flight = self._habits.uniform(90, 320) * self._habits.lognormal(0, 0.3, 12)
        self._speed = self._habits.uniform(4, 30)
        self._noise = np.random.default_rng(seed + 1000)

    def event(self, user_id: str, session_id: str, **changes: Any) -> pb.AnalyzeRealtimeRequest:
        """One phrase and one stretch of movement. `changes`: event_id, at_s (seconds since the epoch), mouse (bool)."""
        request = pb.AnalyzeRealtimeRequest(user_id=user_id)
        at_s = changes.get("at_s", time.time())
        request.timestamp.CopyFrom(Timestamp(seconds=int(at_s), nanos=int(at_s % 1 * 1e9)))
        event = request.event_data
        event.event_id = changes.get("event_id", str(uuid.uuid4()))
        event.session_id = session_id
        metrics = event.behavioral_metrics
        metrics.session_duration = 60
        metrics.keystroke_dynamics.add(
            prompt_id="phrase",
            key_classes=[1, 2] * 6,
            hold_ms=self._hold * self._noise.lognormal(0, 0.08, 12),
            flight_ms=[0.0, *(self._flight * self._noise.lognormal(0, 0.08, 12))[1:]],
        )
        if changes.get("mouse", True):
            steps = self._noise.normal(self._speed, 2, (2, 40)).cumsum(axis=1).astype(int)
            metrics.mouse_dynamics.add(
                time_ms=list(range(0, 4000, 100)),
                x_px=(steps[0] - steps[0][0]).tolist(),
                y_px=(steps[1] - steps[1][0]).tolist(),
                actions=[1] * 40,
            )
        return request


async def eventually(condition: Callable[[], Any], within_s: float = 10.0) -> Any:
    """Wait until `condition` (sync, cheap) is true; returns what it gave."""
    end = time.monotonic() + within_s
    while True:
        found = await asyncio.to_thread(condition)
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError("did not happen in time")
        await asyncio.sleep(0.02)


async def take(stream: Any, count: int, within_s: float = 15.0) -> list[Any]:
    """The next messages of a stream."""
    async with asyncio.timeout(within_s):
        return [await stream.read() for _ in range(count)]


def ids(answers: Iterable[Any]) -> list[str]:
    """Event ids of alerts."""
    return [answer.data.event_id for answer in answers]
