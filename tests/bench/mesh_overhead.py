"""What the mesh's steps cost: one RPC on the bare server stack (grpc.aio, uvloop, mTLS) and inside the mesh,
alternating in one run.

    python -m tests.bench.mesh_overhead [--json] [--rounds 3] [--seconds 3]

`rate_ratio` is the figure that other benches are compared with: calls a second inside the mesh over calls a second of
the bare echo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from behaviorguard.threat.v1 import threat_service_pb2_grpc as threat_grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from infra import pki
from infra.bench.calls import Load, run_load
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.settings import MeshSettings

if TYPE_CHECKING:
    from infra.pki import Identity

SERVICE = "behaviorguard.threat.v1.ThreatService"
METHOD = f"/{SERVICE}/AnalyzeRealtime"


class Echo(threat_grpc.ThreatServiceServicer):
    """Answers at once: what is left is the stack."""

    async def AnalyzeRealtime(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        """Answer with the event's id."""
        del context
        return threat.AnalyzeRealtimeResponse(event_id=request.event_data.event_id, preliminary_risk=0.5)


def echo() -> Echo:
    """The servicer; the RPCs that it leaves out are refused as not implemented."""
    return Echo()  # type: ignore[abstract]  # see above


def typing_events(people: int = 200) -> list[bytes]:
    """Valid events of many people, each with one typed phrase of 30 keys and a stretch of 40 pointer positions."""
    events = []
    for _ in range(people):
        request = threat.AnalyzeRealtimeRequest(
            user_id=str(uuid.uuid4()), timestamp=Timestamp(seconds=int(time.time()))
        )
        request.event_data.event_id = str(uuid.uuid4())
        request.event_data.session_id = str(uuid.uuid4())
        metrics = request.event_data.behavioral_metrics
        metrics.session_duration = 60
        metrics.keystroke_dynamics.add(
            prompt_id="phrase", key_classes=[1] * 30, hold_ms=[90.0] * 30, flight_ms=[150.0] * 30
        )
        metrics.mouse_dynamics.add(time_ms=range(0, 4000, 100), x_px=range(40), y_px=range(40), actions=[1] * 40)
        events.append(request.SerializeToString())
    return events


class BareServer:
    """The same servicer on the same stack without the mesh."""

    def __init__(self, identity: Identity) -> None:
        self._server = aio.server(options=[("grpc.so_reuseport", 0)])
        threat_grpc.add_ThreatServiceServicer_to_server(echo(), self._server)
        pair = (identity.key.read_bytes(), identity.cert.read_bytes())
        credentials = grpc.ssl_server_credentials([pair], identity.ca.read_bytes(), require_client_auth=True)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    async def start(self) -> int:
        """Listen; returns the port."""
        await self._server.start()
        return self.port

    async def drain(self) -> None:
        """Stop."""
        await self._server.stop(None)


def _mesh(identity: Identity) -> MeshServer:
    settings = MeshSettings(
        service_name="threat", tls_ca=identity.ca, tls_cert=identity.cert, tls_key=identity.key, drain_seconds=1
    )
    return MeshServer(settings, [ServiceBinding(SERVICE, threat_grpc.add_ThreatServiceServicer_to_server, echo())])


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Alternate between the two servers; medians over the rounds."""
    figures: dict[str, dict[str, list[float]]] = {
        kind: {"rate": [], "server_cpu_us": [], "p50_ms": [], "p99_ms": []} for kind in ("bare", "mesh")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pki.ensure_authority(folder)
        ours, caller = pki.issue(folder, "threat"), pki.issue(folder, "operator")
        requests = typing_events()
        for _ in range(rounds):
            for kind, seen in figures.items():
                server: Any = BareServer(ours) if kind == "bare" else _mesh(ours)
                port = await server.start()
                load = Load(f"127.0.0.1:{port}", METHOD, requests, caller, seconds=seconds)
                cpu = time.process_time()
                result = await run_load(load)
                cpu = time.process_time() - cpu
                await server.drain()
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
    medians["rate_ratio"] = medians["mesh"]["rate"] / medians["bare"]["rate"]
    medians["added_cpu_us"] = medians["mesh"]["server_cpu_us"] - medians["bare"]["server_cpu_us"]
    return medians


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
    for kind in ("bare", "mesh"):
        seen = figures[kind]
        sys.stdout.write(
            f"{kind}: {seen['rate']:7.0f} calls/s, {seen['server_cpu_us']:4.0f} us CPU a call in the server, "
            f"p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms\n"
        )
    sys.stdout.write(
        f"the mesh's steps: {figures['added_cpu_us']:.0f} us CPU a call, rate {figures['rate_ratio']:.2f} of bare\n"
    )


if __name__ == "__main__":
    main()
