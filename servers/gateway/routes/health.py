"""`/healthz`: the document's health form; `/healthz/live` and `/healthz/ready` for whoever restarts and routes;
`/healthz/NAME`: what the service of that name reports of itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import orjson
from behaviorguard.monitoring.v1 import health_pb2 as monitoring_pb2
from behaviorguard.monitoring.v1 import health_pb2_grpc
from grpc_health.v1 import health_pb2

from servers.gateway.edge import problem_headers
from servers.gateway.problems import from_rpc_error
from servers.gateway.routes.http import exchange_of, send_json
from servers.mesh.health import DependencyCheck, DependencyStatus, HealthReport, ServiceStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from grpc import aio
    from redis.asyncio import Redis
    from starlette.types import Receive, Scope, Send

    from servers.gateway.transcoding import Codec
    from servers.mesh.health import HealthMonitor

_LIVE = "/healthz/live"
_FULL = "/healthz"
_REPORT_SECONDS = 2.0
_STORES = {"redis": "redis"}
_REACHABLE = {
    DependencyStatus.CONNECTED: "reachable",
    DependencyStatus.SLOW: "timeout",
    DependencyStatus.DISCONNECTED: "unreachable",
}


class HealthEndpoint:
    """ASGI application for all three paths."""

    def __init__(self, monitor: HealthMonitor) -> None:
        self._monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one probe."""
        del receive
        if scope["path"] == _LIVE:
            await send_json(send, b'{"status":"alive"}')
            return
        report = self._monitor.report()
        status = 503 if report.status is ServiceStatus.UNHEALTHY else 200
        document = health_document(report) if scope["path"] == _FULL else {"status": report.status.value}
        await send_json(send, orjson.dumps(document), status)


class ServiceHealthEndpoint:
    """What one service behind the gateway reports of itself, in the document's form (`quantum_specific` included)."""

    def __init__(self, channel: aio.Channel, codec: Codec) -> None:
        self._check: Any = health_pb2_grpc.HealthServiceStub(channel).HealthCheck
        self._codec = codec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one probe."""
        del receive
        exchange = exchange_of(scope)
        try:
            report = await self._check(
                monitoring_pb2.HealthCheckRequest(),
                timeout=_REPORT_SECONDS,
                metadata=(("x-correlation-id", exchange.correlation_id),),
            )
        except grpc.aio.AioRpcError as error:
            problem = from_rpc_error(error)
            body = problem.body(exchange.correlation_id)
            start = {"type": "http.response.start", "status": problem.status, "headers": problem_headers(problem, body)}
            await send(start)
            await send({"type": "http.response.body", "body": body})
            return
        unhealthy = report.status == monitoring_pb2.SERVICE_STATUS_UNHEALTHY
        await send_json(send, self._codec.encode(report), 503 if unhealthy else 200)


def health_document(report: HealthReport) -> dict[str, Any]:
    """The document's `HealthCheckResponse`."""
    stores: dict[str, Any] = {}
    services: dict[str, Any] = {}
    for found in report.dependencies:
        latency = {"latency_ms": round(found.latency_ms, 2)}
        if found.name in _STORES:
            stores[found.name] = {"status": found.status.value, **latency, **found.details}
        else:
            last_check = {"last_check": found.last_check}
            services[found.name] = {"status": _REACHABLE[found.status], **latency, **last_check}
    return {
        "service": report.service,
        "status": report.status.value,
        "timestamp": report.timestamp,
        "version": report.version,
        "uptime": round(report.uptime_seconds, 1),
        "dependencies": {**stores, "external_services": services},
    }


def redis_check(redis: Redis) -> DependencyCheck:
    """Sessions and budgets live in Redis: nobody who must be signed in can be served without it."""

    async def probe() -> Mapping[str, str | float]:
        found: dict[str, Any] = await redis.info("memory")
        return {"memory_usage": str(found.get("used_memory_human", "unknown"))}

    return DependencyCheck("redis", probe)


def service_check(name: str, service: str, channel: aio.Channel) -> DependencyCheck:
    """Whether a service says that it serves. Without it the gateway is degraded: restarting it would not help.

    Args:
        name: workload name, for operators.
        service: full name in the contract.
        channel: the way to it.
    """
    check: Any = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )

    async def probe() -> Mapping[str, str | float]:
        answer = await check(health_pb2.HealthCheckRequest(service=service), timeout=2.0)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise ConnectionError(f"{name} is not serving")
        return {"checked_at": time.time()}

    return DependencyCheck(name, probe, required=False)
