"""How fast the audit trail writes: records a second and the wait for one, over a PostgreSQL that flushes to disk.

    taskset -c 0 python -m tests.bench.audit_trail [--json] [--writers 64] [--seconds 3] [--profile]

`records_per_s` counts everything: this process and PostgreSQL's, on the core that `taskset` gives both.
`verify_per_s` is the offline check of an export.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import uvloop

from infra.postgres.migrate import migrate
from infra.postgres.roles import ensure_roles
from infra.stack.ports import free_port
from infra.stack.postgres import PostgresOptions, PostgresServer
from infra.stack.secrets import password
from servers.quantum.alarms import Alarms
from servers.quantum.audit_trail import AuditEntry, AuditTrail
from tests.support.audit_chains import check, export, make_chain, make_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

ORGANIZATION = "11111111-1111-4111-8111-111111111111"
KEY = "22222222-2222-4222-8222-222222222222"


@dataclass(frozen=True)
class Run:
    """What is measured."""

    writers: int
    seconds: float
    profile: bool


def entry() -> AuditEntry:
    """A record as EncryptTemplate leaves it."""
    return AuditEntry(
        "encrypt",
        ORGANIZATION,
        str(uuid.uuid4()),
        "identity",
        key_id=KEY,
        user_id=KEY,
        source_ip="192.0.2.1",
        user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
        data={"rpc": "behaviorguard.quantum.v1.TemplateService/EncryptTemplate", "suite": "ML-KEM-768", "bytes": 2048},
        processing_time_ms=2,
    )


async def measure(dsn: str, run: Run) -> dict[str, Any]:
    """Many writers at once, each waiting for its record before the next."""
    trail = AuditTrail(dsn, in_transaction=Alarms().check)
    writing = asyncio.create_task(trail.run())
    waits: list[float] = []
    longest = 0.0
    await trail.commit(entry())
    end = time.perf_counter() + run.seconds

    async def write() -> None:
        while (begun := time.perf_counter()) < end:
            await trail.commit(entry())
            waits.append(time.perf_counter() - begun)

    async def tick() -> None:
        nonlocal longest
        while (begun := time.perf_counter()) < end:
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begun - 0.001)

    profiler = cProfile.Profile()
    begun, processor = time.perf_counter(), time.process_time()
    if run.profile:
        profiler.enable()
    await asyncio.gather(tick(), *(write() for _ in range(run.writers)))
    profiler.disable()
    seconds, processor = time.perf_counter() - begun, time.process_time() - processor
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    if run.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    waits.sort()
    return {
        "writers": run.writers,
        "records_per_s": round(len(waits) / seconds),
        "wait_p50_ms": round(waits[len(waits) // 2] * 1000, 2),
        "wait_p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 2),
        "records_per_transaction": round(trail.written / trail.transactions, 1),
        "own_processor_us_per_record": round(processor / len(waits) * 1e6, 1),
        "loop_late_max_ms": round(longest * 1000, 1),
    }


def measure_verify(records: int = 20_000) -> dict[str, Any]:
    """The offline check."""
    chain = make_chain(records)
    lines = export(chain, [make_checkpoint(record) for record in chain[499::500]])
    begun = time.perf_counter()
    report = check(lines)
    seconds = time.perf_counter() - begun
    if not report.ok:
        raise RuntimeError("the export does not verify")
    return {"verify_per_s": round(records / seconds)}


def database() -> Iterator[str]:
    """A migrated quantum database of its own, as the service's role; stops when the generator is closed."""
    with tempfile.TemporaryDirectory(prefix="behaviorguard-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        secrets = folder / "secrets"
        options = PostgresOptions("postgres", folder / "postgres", free_port(), secrets, folder / "log", durable=True)
        server = PostgresServer(options)
        server.start(time.monotonic() + 60)
        try:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("CREATE DATABASE quantum")
            migrate(server.dsn(database="quantum"), "quantum")
            ensure_roles(server.dsn(database="quantum"), "quantum", lambda role: password(secrets, role))
            yield server.dsn("bg_quantum", password(secrets, "bg_quantum"), "quantum")
        finally:
            server.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, nargs="*", default=[1, 64, 256])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = []
    for dsn in database():
        results += [uvloop.run(measure(dsn, Run(each, asked.seconds, asked.profile))) for each in asked.writers]
    results.append(measure_verify())
    for result in results:
        print(json.dumps(result) if asked.json else "  ".join(f"{name} {value}" for name, value in result.items()))  # noqa: T201 -- a command


if __name__ == "__main__":
    main()
