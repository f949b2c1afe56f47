"""What the gateway costs: REST calls and WebSocket frames a second of one process, beside a bare relay of the same.

    python -m tests.bench.gateway_http [--json] [--seconds 4] [--rounds 3]

The bare relay is Starlette, protobuf's own JSON and the same mesh channel: no sessions, budgets, strictness, headers or
logs. Both run in processes of their own before the same scripted service, measured in turn; the load comes from a third
process. `rest_ratio` and `socket_ratio` are the gateway's rates over the relay's; CPU figures are of one process,
so that they hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil
import uvicorn
import uvloop
from behaviorguard.threat.v1 import threat_pb2, threat_service_pb2, threat_service_pb2_grpc
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect

from infra import pki
from infra.stack.ports import free_port
from infra.stack.valkey import ValkeyOptions, ValkeyServer
from servers.mesh.channels import open_channel
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.settings import MeshSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket

SERVICE = "behaviorguard.threat.v1.ThreatService"
ANALYZE = "/api/threat/analyze-realtime"
USER, SESSION = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
KEYS, POINTS = 14, 60
CALLERS = 12
"""Each with a session of its own: one person may send 6,000 events a minute."""


class Service(threat_service_pb2_grpc.ThreatServiceServicer):
    """Answers at once."""

    async def StartTrial(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        """A trial of an hour."""
        answer = threat_service_pb2.StartTrialResponse(user_id=str(uuid.uuid4()), session_id=SESSION)
        answer.expires_at.GetCurrentTime()
        answer.expires_at.seconds += 3600
        return answer

    async def AnalyzeRealtime(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        """An event that is accepted."""
        return threat_service_pb2.AnalyzeRealtimeResponse(
            event_id=SESSION,
            preliminary_risk=0.1,
            processing_status=threat_service_pb2.PROCESSING_STATUS_QUEUED_FOR_MORPHEUS,
        )

    async def WatchAlerts(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        """Alerts without end."""
        answer = threat_service_pb2.WatchAlertsResponse(type="threat_alert", resume_token="1")
        data = answer.data
        data.user_id, data.event_id, data.session_id, data.correlation_id = USER, USER, SESSION, SESSION
        data.threat_level, data.threat_score = threat_pb2.THREAT_LEVEL_CRITICAL, 0.93
        data.timestamp.GetCurrentTime()
        data.recommendations.extend(["End the session.", "Ask the person to sign in again."])
        for number in range(5):
            data.reasons.add(
                feature=f"f{number}", text="Keys are held longer than usual.", deviation=2.5, modality="typing"
            )
        while True:
            yield answer


def body() -> bytes:
    """An event of one phrase and one stretch of mouse; enums in the form that protobuf's own JSON takes too."""
    keys = {
        "promptId": "p",
        "keyClasses": ["KEY_CLASS_LETTER_LEFT"] * KEYS,
        "holdMs": [91.5] * KEYS,
        "flightMs": [151.5] * KEYS,
    }
    points = list(range(POINTS))
    mouse = {"timeMs": points, "xPx": points, "yPx": points, "actions": ["POINTER_ACTION_MOVE"] * POINTS}
    metrics = {"keystrokeDynamics": [keys], "mouseDynamics": [mouse], "sessionDuration": 60}
    event = {"sessionId": SESSION, "source": "EVENT_SOURCE_BEHAVIORAL", "behavioralMetrics": metrics}
    return orjson.dumps({"timestamp": "2026-11-22T12:00:00.000Z", "eventData": event})


async def relay(settings: MeshSettings, port: int, target: str) -> None:
    """The bare relay."""
    stub = threat_service_pb2_grpc.ThreatServiceStub(open_channel(settings, target, "threat", contract=[SERVICE]))
    user = (("x-bg-user-id", USER), ("x-bg-organization-id", SESSION), ("x-bg-scope", "self"))

    async def analyze(request: Request) -> Response:
        message = threat_service_pb2.AnalyzeRealtimeRequest()
        json_format.ParseDict(orjson.loads(await request.body()), message)
        message.user_id = USER
        answer = await stub.AnalyzeRealtime(message, metadata=user)
        return Response(orjson.dumps(json_format.MessageToDict(answer)), media_type="application/json")

    async def watch(socket: WebSocket) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            await follow(socket)

    async def follow(socket: WebSocket) -> None:
        await socket.accept()
        message = threat_service_pb2.WatchAlertsRequest()
        json_format.ParseDict(orjson.loads(await socket.receive_text()), message)
        async for answer in stub.WatchAlerts(message, metadata=user):
            await socket.send_text(orjson.dumps(json_format.MessageToDict(answer)).decode())

    app = Starlette(routes=[Route(ANALYZE, analyze, methods=["POST"]), WebSocketRoute("/ws", watch)])
    config = uvicorn.Config(
        app,
        port=port,
        loop="none",
        http="httptools",
        ws="websockets-sansio",
        log_level="error",
        access_log=False,
        lifespan="off",
        ws_per_message_deflate=False,
    )
    await uvicorn.Server(config).serve()


async def service(settings: MeshSettings) -> None:
    """The scripted service."""
    add = threat_service_pb2_grpc.add_ThreatServiceServicer_to_server
    servicer = Service()  # type: ignore[abstract]  # the other RPCs are not called
    server = MeshServer(settings, [ServiceBinding(SERVICE, add, servicer)], limiter=Unlimited())
    await server.start()
    await server.wait()


async def ready(port: int) -> None:
    """Waits until something listens."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, str, bytes]:
    """One request on a kept connection; returns status, Set-Cookie and body."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    headers = dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:] if ": " in line)
    answer = await reader.readexactly(int(headers["content-length"]))
    cookie = head[head.lower().find("set-cookie: ") + 12 :].partition(";")[0] if "set-cookie" in headers else ""
    return int(head.split(" ", 2)[1]), cookie, answer


def request_of(path: str, content: bytes, cookie: str) -> bytes:
    """A request's bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nUser-Agent: bench\r\n"
    head += f"Content-Length: {len(content)}\r\n" + (f"Cookie: {cookie}\r\n" if cookie else "")
    return head.encode() + b"\r\n" + content


async def sign_in(port: int) -> list[str]:
    """A session for each caller; returns their cookies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    cookies = [(await post(reader, writer, request_of("/api/threat/trials", b"{}", "")))[1] for _ in range(CALLERS)]
    writer.close()
    return cookies


async def rest_load(port: int, seconds: float, cookies: list[str]) -> dict[str, float]:
    """Calls in a closed loop; returns the rate and latencies."""
    times: list[float] = []
    begun = time.perf_counter()

    async def caller(cookie: str) -> None:
        request = request_of(ANALYZE, body(), cookie)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (now := time.perf_counter()) - begun < seconds:
            status, _, answer = await post(reader, writer, request)
            if status != 200:
                raise RuntimeError(answer.decode())
            times.append(time.perf_counter() - now)
        writer.close()

    await asyncio.gather(*(caller(cookie) for cookie in cookies))
    times.sort()
    middle, late = times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000
    return {"count": len(times), "rate": len(times) / seconds, "p50_ms": middle, "p99_ms": late}


async def socket_load(port: int, seconds: float, cookies: list[str]) -> dict[str, float]:
    """Reads one socket as fast as it comes."""
    headers = {"Origin": f"http://localhost:{port}", "Cookie": cookies[0]}
    count, begun = 0, time.perf_counter()
    async with connect(f"ws://localhost:{port}/ws", additional_headers=headers, compression=None) as socket:
        await socket.send("{}")
        while time.perf_counter() - begun < seconds:
            await socket.recv(decode=False)
            count += 1
    return {"count": count, "rate": count / seconds}


@asynccontextmanager
async def process(arguments: list[str], environment: dict[str, str], port: int) -> AsyncIterator[psutil.Process]:
    """A Python process that listens on a port."""
    command = [sys.executable, "-m", *arguments]
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL)
    try:
        await ready(port)
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        await child.wait()


async def measure(seconds: float, rounds: int) -> dict[str, float]:
    """All figures."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pki.ensure_authority(folder / "pki")
        threat_port, gateway_port, relay_port = free_port(), free_port(), free_port()
        cache = ValkeyServer(
            ValkeyOptions(
                "redis", folder / "redis", free_port(), folder / "secrets", folder / "r.log", durable=False, databases=1
            )
        )
        await asyncio.to_thread(cache.start, time.monotonic() + 30)
        stack.callback(cache.stop)
        base = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "BEHAVIORGUARD_REDIS_URL": cache.url(0)}
        base |= {"BEHAVIORGUARD_THREAT_TARGET": f"127.0.0.1:{threat_port}"}
        ports = {"service": threat_port, "gateway": gateway_port, "relay": relay_port}
        running: dict[str, psutil.Process] = {}
        for name, port in ports.items():
            identity = pki.issue(folder / "pki", "threat" if name == "service" else "gateway")
            environment = base | identity.environment() | {"BEHAVIORGUARD_PORT": str(port)}
            if name == "gateway":
                arguments = ["servers.gateway"]
            else:
                arguments = ["tests.bench.gateway_http", "--role", name]
                environment["BEHAVIORGUARD_SERVICE_NAME"] = "threat" if name == "service" else "gateway"
            running[name] = await stack.enter_async_context(process(arguments, environment, port))
        cookies = {"gateway": await sign_in(gateway_port), "relay": [""] * CALLERS}
        figures: dict[str, list[float]] = {}
        for _ in range(rounds):
            for kind, load in (("rest", rest_load), ("socket", socket_load)):
                for name in ("gateway", "relay"):
                    before = sum(running[name].cpu_times()[:2])
                    found = await load(ports[name], seconds, cookies[name])
                    spent = sum(running[name].cpu_times()[:2]) - before
                    found["cpu_us"] = spent / found.pop("count") * 1e6
                    for key, value in found.items():
                        figures.setdefault(f"{name}_{kind}_{key}", []).append(value)
    result = {key: round(statistics.median(values), 2) for key, values in figures.items()}
    for kind in ("rest", "socket"):
        result[f"{kind}_ratio"] = round(result[f"gateway_{kind}_rate"] / result[f"relay_{kind}_rate"], 3)
    return result


def main() -> int:
    """Measures, or plays one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=["service", "relay"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is not None:
        settings = MeshSettings()  # type: ignore[call-arg]  # from the environment
        if options.role == "service":
            uvloop.run(service(settings))
        else:
            import os  # noqa: PLC0415 -- only this role needs it

            uvloop.run(relay(settings, settings.port, os.environ["BEHAVIORGUARD_THREAT_TARGET"]))
        return 0
    result = uvloop.run(measure(options.seconds, options.rounds))
    lines = [json.dumps(result)] if options.json else [f"{key:<24} {value:>10}" for key, value in result.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
