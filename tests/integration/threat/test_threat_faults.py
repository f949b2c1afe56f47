"""What goes wrong around the threat service: nothing accepted is lost, nothing is stored twice, nobody's neighbour
suffers.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import orjson
import redis
from behaviorguard.threat.v1 import threat_pb2
from behaviorguard.threat.v1 import threat_service_pb2 as pb
from behaviorguard.threat.v1.threat_service_pb2_grpc import ThreatServiceStub
from confluent_kafka import Consumer, Producer
from grpc import aio

from infra import pki
from infra.stack.ports import free_port
from servers.threat.features import FEATURES
from tests.support.threat import (
    ORGANIZATION,
    Hand,
    StandInPipeline,
    alert_for,
    eventually,
    ids,
    running_threat,
    take,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.threat import Stores

NORMAL = threat_pb2.THREAT_LEVEL_NORMAL


def _publish(bootstrap: str, values: list[bytes | None]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for value in values:
        producer.produce("threat-alerts", value, b"key")
    assert producer.flush(5) == 0


def _dead_letters(bootstrap: str, count: int) -> list[dict[str, Any]]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 1000,
            "heartbeat.interval.ms": 200,
            "log_level": 0,
        }
    )
    consumer.subscribe(["threat-dead-letters"])
    found: list[dict[str, Any]] = []
    for _ in range(100):
        found += [orjson.loads(m.value() or b"") for m in consumer.consume(100, 0.1) if m.error() is None]
        if len(found) >= count and consumer.assignment():
            break
    consumer.close()
    return found


async def test_poison_alerts_go_to_the_dead_letters_and_their_neighbours_are_stored(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    event = {
        "event_id": str(uuid.uuid4()),
        "user_id": anna,
        "session_id": session,
        "organization_id": ORGANIZATION,
        "correlation_id": str(uuid.uuid4()),
        "accepted_at_ms": int(time.time() * 1000),
        "timestamp": "2026-01-01T00:00:00Z",
        "sample": "",
        "evidence_version": 1,
        "simulated_features": [],
        **dict.fromkeys(FEATURES, 0.5),
    }
    good = [orjson.dumps(alert_for(event | {"event_id": str(uuid.uuid4())})) for _ in range(10)]
    poison: list[bytes | None] = [
        None,
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b'{"event_id": NaN}',
        orjson.dumps(alert_for(event, user_id="nobody")),
        orjson.dumps(alert_for(event, threat_score=1.5)),
        orjson.dumps(alert_for(event, threat_level="dreadful")),
        orjson.dumps(alert_for(event, features=[1.0])),
        orjson.dumps(alert_for(event, timestamp="yesterday")),
        orjson.dumps(alert_for(event, organization_id=str(uuid.uuid4()))),
        orjson.dumps({key: value for key, value in alert_for(event).items() if key != "ml_confidence"}),
    ]
    mixed = [*good, *poison]
    random.Random(7).shuffle(mixed)  # noqa: S311 - the order only has to be a mixed one
    async with running_threat(stores):
        _publish(stores.kafka, mixed)
        await eventually(
            lambda: stores.rows("SELECT count(*) FROM ai_services.threat_events WHERE user_id = %s", anna) == [(10,)]
        )
        letters = await asyncio.to_thread(_dead_letters, stores.kafka, len(poison))
    reasons = sorted(letter["reason"] for letter in letters)
    assert len(letters) == len(poison)
    assert set(reasons) <= {"malformed_json", "missing_field", "out_of_range", "wrong_size", "not_finite"}
    assert all(letter["topic"] == "threat-alerts" and letter["detail"] and letter["timestamp"] for letter in letters)


async def test_without_redis_results_are_stored_and_its_view_is_built_when_it_returns(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    proxy = SwitchablePort(stores.redis)
    async with proxy, running_threat(stores, redis_url=proxy.url) as service:
        with StandInPipeline(stores.kafka, lambda event: alert_for(event, 0.95)):
            watch = service.stub().WatchAlerts(pb.WatchAlertsRequest(user_ids=[anna]))
            await watch.initial_metadata()
            hand = Hand(1)
            sent = [(await service.stub().AnalyzeRealtime(hand.event(anna, session))).event_id]
            await take(watch, 1)
            await proxy.cut()
            sent += [(await service.stub().AnalyzeRealtime(hand.event(anna, session))).event_id for _ in range(3)]
            assert sorted(ids(await take(watch, 3))) == sorted(sent[1:])
            await proxy.mend()
            with redis.Redis.from_url(stores.redis, decode_responses=True) as cache:
                for event_id in sent:
                    await eventually(partial(cache.zscore, "threats:high_risk", f"{anna}:{event_id}"))
                risk = await eventually(lambda: cache.hgetall(f"behavior:{anna}"))
                assert float(risk["currentRisk"]) > 0.7
                assert risk["sessionCount"] == "1"
                members = [orjson.loads(member) for member in cache.zrange("threats:recent", 0, -1)]
                assert set(sent) <= {member["eventId"] for member in members}
                assert await eventually(lambda: cache.llen("metrics:morpheus:throughput"))


async def test_without_the_database_nothing_is_lost(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    proxy = SwitchablePort(stores.dsn)
    async with proxy, running_threat(stores, postgres_dsn=proxy.url) as service:
        stub = service.stub()
        with StandInPipeline(stores.kafka):
            watch = stub.WatchAlerts(pb.WatchAlertsRequest(user_ids=[anna], minimum_level=NORMAL))
            await watch.initial_metadata()
            hand = Hand(1)
            sent = [(await stub.AnalyzeRealtime(hand.event(anna, session))).event_id]
            await take(watch, 1)
            await proxy.cut()
            # Who is known is watched on; the broker keeps the events until the database is back.
            sent += [(await stub.AnalyzeRealtime(hand.event(anna, session))).event_id for _ in range(5)]
            try:
                await stub.GetThreatEvent(pb.GetThreatEventRequest(event_id=sent[0]))
            except aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - it may also answer from an open connection
            await proxy.mend()
            assert sorted(ids(await take(watch, 5, within_s=30))) == sorted(sent[1:])


class SwitchablePort:
    """A TCP relay in front of a store that can be cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (str(parts.hostname), int(parts.port or 0))
        self._port = free_port()
        self.url = url.replace(f":{parts.port}/", f":{self._port}/")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> SwitchablePort:
        await self.mend()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.cut()

    async def mend(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """End all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(*self._target)
            await asyncio.gather(_pump(reader, there), _pump(back, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    raise OSError("closed")


async def test_a_killed_service_loses_and_repeats_no_accepted_event(stores: Stores, tmp_path: Path) -> None:
    people = [stores.person() for _ in range(5)]
    port = free_port()
    process = await _serve(stores, port, tmp_path)
    files = pki.issue(stores.pki, "operator")
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    accepted: set[str] = set()
    stop = asyncio.Event()

    async def send(number: int, stub: Any) -> None:
        hand, session = Hand(number), str(uuid.uuid4())
        while not stop.is_set():
            request = hand.event(people[number], session)
            while not stop.is_set():
                try:
                    answer = await stub.AnalyzeRealtime(request, timeout=10, wait_for_ready=True)
                except aio.AioRpcError:
                    continue  # killed in between: the same event again
                accepted.add(answer.event_id)
                break

    try:
        async with aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
            with StandInPipeline(stores.kafka):
                senders = [asyncio.create_task(send(number, ThreatServiceStub(channel))) for number in range(5)]
                for kill in range(3):
                    goal = (kill + 1) * 150
                    await eventually(partial(_reached, accepted, goal), within_s=60)
                    os.kill(process.pid, signal.SIGKILL)
                    await process.wait()
                    process = await _serve(stores, port, tmp_path)
                await eventually(partial(_reached, accepted, 600), within_s=60)
                stop.set()
                await asyncio.gather(*senders)
                count = (
                    "SELECT count(*), count(DISTINCT event_id) FROM ai_services.threat_events"
                    " WHERE event_id = ANY(%s::uuid[])"
                )
                wanted = list(accepted)
                await eventually(lambda: stores.rows(count, wanted) == [(len(wanted), len(wanted))], within_s=60)
    finally:
        process.terminate()
        await process.wait()


def _reached(accepted: set[str], goal: int) -> bool:
    return len(accepted) >= goal


async def _serve(stores: Stores, port: int, folder: Path) -> asyncio.subprocess.Process:
    """The service as a process of its own."""
    settings = stores.settings(port=port)
    environment = {
        **os.environ,
        **pki.issue(stores.pki, "threat").environment(),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "BEHAVIORGUARD_PORT": str(port),
        "BEHAVIORGUARD_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "BEHAVIORGUARD_REDIS_URL": settings.redis_url.get_secret_value(),
        "BEHAVIORGUARD_KAFKA_BOOTSTRAP": stores.kafka,
        "BEHAVIORGUARD_ALERTS_SESSION_SECONDS": "1",
        "BEHAVIORGUARD_SAVE_SECONDS": "0.1",
    }
    with (folder / "threat.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "servers.threat", env=environment, stdout=log, stderr=log
        )
