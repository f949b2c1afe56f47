"""What `AnalyzeRealtime` costs: a bare echo on the same server stack (mesh, mTLS, uvloop) and the whole service,
alternating in one run.

    python -m tests.bench.threat_analyze [--json] [--rounds 3] [--seconds 3]

Whole means: validation, known person, duplicates, sample, deviations, 15 features, preliminary risk, record, and the
broker's acknowledgement. Stores and broker are real and run on the same machine as server and load. `rate_ratio` is
calls a second of the service over calls a second of the echo; the target is a half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from behaviorguard.threat.v1 import threat_service_pb2_grpc as threat_grpc

from infra import pki
from infra.bench.calls import Load, run_load
from infra.kafka.topics import ensure_topics
from infra.postgres.migrate import migrate
from infra.postgres.roles import ensure_roles
from infra.stack.kafka import BrokerOptions, EmbeddedBroker
from infra.stack.ports import free_port
from infra.stack.postgres import PostgresOptions, PostgresServer
from infra.stack.secrets import password
from infra.stack.valkey import ValkeyOptions, ValkeyServer
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding, spare_collections
from servers.threat.app import SERVICE_NAME, threat_app
from tests.bench.mesh_overhead import METHOD, Echo
from tests.support.threat import Hand, StandInPipeline, Stores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PEOPLE = 200
ENROL_EVENTS = 14


def _stores(stack: ExitStack, folder: Path) -> Stores:
    """Real stores in a folder, stopped with the stack."""
    folder.chmod(0o711)  # PostgreSQL runs as an unprivileged account when the bench runs as root
    deadline = time.monotonic() + 60
    secrets = folder / "secrets"
    database = PostgresServer(
        PostgresOptions("postgres-bench", folder / "postgres", free_port(), secrets, folder / "p.log", durable=False)
    )
    cache = ValkeyServer(
        ValkeyOptions(
            "redis-bench", folder / "redis", free_port(), secrets, folder / "r.log", durable=False, databases=1
        )
    )
    broker = EmbeddedBroker(
        BrokerOptions(folder / "kafka", free_port(), free_port(), folder / "cache", folder / "k.log")
    )
    for server in (database, cache, broker):
        server.start(deadline)
        stack.callback(server.stop)
    migrate(database.dsn(), "main")
    ensure_roles(database.dsn(), "main", lambda role: password(secrets, role))
    ensure_topics(broker.bootstrap())
    keys = folder / "pki"
    pki.ensure_authority(keys)
    dsn = database.dsn("bg_threat", password(secrets, "bg_threat"))
    return Stores(dsn, database.dsn(), cache.url(0), broker.bootstrap(), keys)


def _events(stores: Stores, people: int) -> Iterator[list[bytes]]:
    """Rounds of events, one of each person a round: a phrase of 12 keys and a stretch of 40 pointer positions; ids are
    the server's choice.
    """
    hands = [(Hand(number), stores.person(), f"00000000-0000-4000-8000-{number:012}") for number in range(people)]
    while True:
        yield [hand.event(user, session, event_id="").SerializeToString() for hand, user, session in hands]


@asynccontextmanager
async def _echo(stores: Stores) -> AsyncIterator[int]:
    binding = ServiceBinding(SERVICE_NAME, threat_grpc.add_ThreatServiceServicer_to_server, Echo())  # type: ignore[abstract]  # one RPC is called
    server = MeshServer(stores.settings(health_interval_seconds=30.0), [binding], limiter=Unlimited())
    port = await server.start()
    yield port
    await server.drain()


@asynccontextmanager
async def _threat(stores: Stores) -> AsyncIterator[int]:
    async with threat_app(
        stores.settings(save_seconds=1.0, health_interval_seconds=30.0), limiter=Unlimited()
    ) as server:
        port = await server.start()
        yield port
        await server.drain()


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Alternate between echo and service; medians over the rounds."""
    figures: dict[str, dict[str, list[float]]] = {
        kind: {"rate": [], "server_cpu_us": [], "p50_ms": [], "p99_ms": []} for kind in ("echo", "threat")
    }
    with ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        stores = _stores(stack, Path(name))
        caller = pki.issue(stores.pki, "operator")
        events = _events(stores, PEOPLE)
        await _enrol(stores, events)
        spare_collections()  # as a service's process does
        for _ in range(rounds):
            for kind, seen in figures.items():
                async with (_echo if kind == "echo" else _threat)(stores) as port:
                    load = Load(f"127.0.0.1:{port}", METHOD, next(events), caller, seconds=seconds, callers=64)
                    cpu = time.process_time()
                    result = await run_load(load)
                    cpu = time.process_time() - cpu
                if result.failures:
                    raise RuntimeError(f"{kind}: {result.failures} calls failed, first: {result.first_failure}")
                total = result.rate * (load.seconds + load.warm_up_seconds)
                seen["rate"].append(result.rate)
                seen["server_cpu_us"].append(cpu / total * 1e6)
                seen["p50_ms"].append(result.p50_ms)
                seen["p99_ms"].append(result.p99_ms)
    medians: dict[str, Any] = {
        kind: {name: statistics.median(values) for name, values in seen.items()} for kind, seen in figures.items()
    }
    medians["rate_ratio"] = medians["threat"]["rate"] / medians["echo"]["rate"]
    medians["added_cpu_us"] = medians["threat"]["server_cpu_us"] - medians["echo"]["server_cpu_us"]
    return medians


async def _enrol(stores: Stores, events: Iterator[list[bytes]]) -> None:
    """Teach everybody's baseline first: an event against an empty one is cheaper than it will ever be again."""
    caller = pki.issue(stores.pki, "operator")
    async with _threat(stores) as port:
        with StandInPipeline(stores.kafka):
            for _ in range(ENROL_EVENTS):
                load = Load(f"127.0.0.1:{port}", METHOD, next(events), caller, seconds=0.3, warm_up_seconds=0.0)
                result = await run_load(load)
                if result.failures:
                    raise RuntimeError(f"enrolment failed: {result.first_failure}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    figures = uvloop.run(measure(arguments.rounds, arguments.seconds))
    if arguments.json:
        json.dump(figures, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    for kind in ("echo", "threat"):
        seen = figures[kind]
        sys.stdout.write(
            f"{kind}: {seen['rate']:7.0f} calls/s, {seen['server_cpu_us']:4.0f} us CPU a call in the server, "
            f"p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms\n"
        )
    sys.stdout.write(f"AnalyzeRealtime runs at {figures['rate_ratio']:.2f} of the echo's rate (target 0.5)\n")


if __name__ == "__main__":
    main()
