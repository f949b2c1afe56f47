"""Load on one unary RPC from a process of its own, so that the client's work is not counted as the server's.

    load = await run_load(Load(target, "/behaviorguard.threat.v1.ThreatService/AnalyzeRealtime", requests, identity))

Requests are sent as bytes, round robin, by a fixed number of callers that each wait for their answer (closed loop).
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from grpc import aio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.pki import Identity

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Load:
    """What to send where."""

    target: str
    method: str
    """Full name, `/package.Service/Method`."""
    requests: Sequence[bytes]
    """Serialised requests."""
    identity: Identity
    """Who calls."""
    server_name: str = "threat"
    seconds: float = 4.0
    warm_up_seconds: float = 1.0
    callers: int = 32


@dataclass(frozen=True)
class LoadResult:
    """What came of it."""

    calls: int
    failures: int
    rate: float
    """Successful calls a second."""
    p50_ms: float
    p99_ms: float
    first_failure: str


async def run_load(load: Load) -> LoadResult:
    """Run the load in another process and wait for its result.

    Raises:
        RuntimeError: the process failed; its output is in the text.
    """
    said = {
        "target": load.target,
        "method": load.method,
        "requests": [base64.b64encode(request).decode() for request in load.requests],
        "files": [str(load.identity.ca), str(load.identity.key), str(load.identity.cert)],
        "server_name": load.server_name,
        "seconds": load.seconds,
        "warm_up_seconds": load.warm_up_seconds,
        "callers": load.callers,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infra.bench.calls",
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(json.dumps(said).encode())
    if process.returncode != 0:
        raise RuntimeError(f"the load failed: {errors.decode()[-2000:]}")
    return LoadResult(**json.loads(output))


async def _send(said: dict[str, object], requests: list[bytes], files: list[bytes]) -> dict[str, object]:
    credentials = grpc.ssl_channel_credentials(*files)
    options = [("grpc.ssl_target_name_override", said["server_name"]), ("grpc.enable_retries", 0)]
    latencies: list[float] = []
    failures: list[str] = []
    async with aio.secure_channel(str(said["target"]), credentials, options) as channel:
        call: Any = channel.unary_unary(str(said["method"]))
        await channel.channel_ready()
        begin = time.perf_counter() + float(str(said["warm_up_seconds"]))
        end = begin + float(str(said["seconds"]))

        async def caller(first: int) -> None:
            index = first
            metadata = (("x-correlation-id", str(uuid.uuid4())),)
            while (sent := time.perf_counter()) < end:
                index += 1
                try:
                    await call(requests[index % len(requests)], timeout=10, metadata=metadata)
                except aio.AioRpcError as error:
                    failures.append(f"{error.code().name}: {error.details()}")
                    continue
                if sent >= begin:
                    latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(caller(number * 7919) for number in range(int(str(said["callers"])))))
    latencies.sort()
    count = len(latencies)
    return {
        "calls": count,
        "failures": len(failures),
        "rate": count / float(str(said["seconds"])),
        "p50_ms": latencies[count // 2] * 1000 if count else 0.0,
        "p99_ms": latencies[count * 99 // 100] * 1000 if count else 0.0,
        "first_failure": failures[0] if failures else "",
    }


def main() -> None:
    """Read a load from standard input, write its result to standard output."""
    said = json.load(sys.stdin)
    requests = [base64.b64decode(request) for request in said.pop("requests")]
    files = [Path(name).read_bytes() for name in said.pop("files")]
    json.dump(uvloop.run(_send(said, requests, files)), sys.stdout)


if __name__ == "__main__":
    main()
