"""Wiring: settings in, the gateway out."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.asyncio import ConnectionPool, Redis
from starlette.routing import BaseRoute, Route, Router, WebSocketRoute

from servers.gateway.admission import Admission, OperatorToken
from servers.gateway.body_limits import BodyLimits
from servers.gateway.budgets import Budgets
from servers.gateway.calls import Upstream
from servers.gateway.contract import Operation, read_contract
from servers.gateway.edge import Edge, HttpTelemetry
from servers.gateway.exchange import Frontier
from servers.gateway.refusals import RefusalAudit
from servers.gateway.routes.health import HealthEndpoint, ServiceHealthEndpoint, redis_check, service_check
from servers.gateway.routes.pages import OpenApiEndpoint, Pages
from servers.gateway.routes.rest import RestEndpoint
from servers.gateway.routes.session import START_TRIAL, OpenTrialSession, SessionEndpoint
from servers.gateway.routes.sockets import SocketCensus, SocketEndpoint
from servers.gateway.sessions import SessionStore
from servers.gateway.transcoding import Codec
from servers.mesh.audit import LogAudit
from servers.mesh.audit_link import open_audit
from servers.mesh.channels import open_channel
from servers.mesh.health import HealthMonitor
from servers.mesh.tasks import TaskOwner
from servers.mesh.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from grpc import aio
    from starlette.types import ASGIApp

    from servers.gateway.settings import GatewaySettings
    from servers.mesh.audit import AuditSink

_REDIS_SECONDS = 1.0
_SOCKETS_CONNECTIONS = 128


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway whose parts are open."""

    app: ASGIApp
    """The ASGI application."""
    tasks: TaskOwner
    """Owns the background work; its failure ends the process."""
    health: HealthMonitor
    """Knows whether the gateway can do its work."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the application is built over, all open."""

    settings: GatewaySettings
    operations: Sequence[Operation]
    """What browsers may reach."""
    redis: Redis
    """The main Redis."""
    channels: Mapping[str, aio.Channel]
    """Full name of each service that runs, to its channel."""
    health: HealthMonitor
    """Reported at /healthz."""
    telemetry: Telemetry
    """Counts requests."""
    audit: AuditSink = field(default_factory=LogAudit)
    """Takes the records of what the gateway refuses."""


@asynccontextmanager
async def open_gateway(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """Opens everything that the gateway needs, and closes it again.

    Raises:
        ContractError, ValueError, OSError: the settings do not fit the contract or the files.
    """
    async with AsyncExitStack() as stack:
        services = {service for upstream in settings.upstreams for service in upstream.services}
        operations = read_contract(settings.descriptors_file, services)
        telemetry = Telemetry(settings)
        stack.push_async_callback(asyncio.to_thread, telemetry.close)
        redis = _open_redis(settings)
        stack.push_async_callback(redis.aclose)
        channels: dict[str, aio.Channel] = {}
        checks = [redis_check(redis)]
        for upstream in settings.upstreams:
            channel = open_channel(settings, upstream.target, upstream.name, contract=upstream.services)
            stack.push_async_callback(channel.close)
            channels |= dict.fromkeys(upstream.services, channel)
            checks.append(service_check(upstream.name, upstream.services[0], channel))
        health = HealthMonitor(settings.service_name, checks, interval_seconds=settings.health_interval_seconds)
        tasks = await stack.enter_async_context(TaskOwner())
        tasks.start("health", health.watch)
        audit = await stack.enter_async_context(open_audit(settings))
        parts = Parts(settings, operations, redis, channels, health, telemetry, audit)
        telemetry.start()
        yield Gateway(build_app(parts), tasks, health)


def _open_redis(settings: GatewaySettings) -> Redis:
    """A connection for each request in progress, and some for sockets: waiting for one costs more than having it."""
    pool = ConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        max_connections=settings.max_requests + _SOCKETS_CONNECTIONS,
        socket_timeout=_REDIS_SECONDS,
        socket_connect_timeout=_REDIS_SECONDS,
    )
    return Redis.from_pool(pool)


def build_app(parts: Parts) -> ASGIApp:
    """The ASGI application over open parts."""
    settings = parts.settings
    frontier = Frontier(
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
        trusted_proxies=settings.trusted_proxies,
        # Equal in all gateways that share a certificate, unknown to whoever reads the store.
        digest_key=hashlib.sha256(settings.tls_key.read_bytes()).digest(),
    )
    sessions = SessionStore(parts.redis)
    admission = Admission(
        frontier,
        sessions,
        Budgets(parts.redis, settings.global_budget_factor),
        OperatorToken.read(settings.operator_token_file),
        settings.organization_id,
    )
    secure = settings.secure_cookies
    session = SessionEndpoint(frontier, admission, sessions, secure_cookies=secure)
    openapi, probe = OpenApiEndpoint(settings.openapi_file), HealthEndpoint(parts.health)
    open_trial = OpenTrialSession(sessions, settings.organization_id, secure_cookies=secure)
    routes: list[BaseRoute] = [
        *_contract_routes(parts, admission, open_trial),
        Route("/api/session", session, methods=["GET", "DELETE"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        *(Route(path, probe, methods=["GET"]) for path in ("/healthz", "/healthz/live", "/healthz/ready")),
        *_report_routes(parts),
    ]
    # Pages come last, as what is served where no route is, so that a wrong method on a route stays a wrong method.
    router = Router(routes, redirect_slashes=False, default=Pages(settings.web_root))
    return Edge(router, frontier, HttpTelemetry(parts.telemetry), max_requests=settings.max_requests)


def _report_routes(parts: Parts) -> list[BaseRoute]:
    """`/healthz/NAME` for each workload behind the gateway."""
    codec = Codec()
    return [
        Route(
            f"/healthz/{upstream.name}",
            ServiceHealthEndpoint(parts.channels[upstream.services[0]], codec),
            methods=["GET"],
        )
        for upstream in parts.settings.upstreams
    ]


def _contract_routes(parts: Parts, admission: Admission, open_trial: OpenTrialSession) -> list[BaseRoute]:
    settings, codec, refusals = parts.settings, Codec(), RefusalAudit(parts.audit)
    limits = BodyLimits(
        usual=settings.max_body_bytes,
        largest=settings.max_large_body_bytes,
        large_at_once=settings.max_large_bodies,
    )
    census = SocketCensus(total=settings.max_sockets, each=settings.sockets_per_session)

    def route(operation: Operation) -> BaseRoute:
        upstream = Upstream(parts.channels[operation.service], operation, call_seconds=settings.call_seconds)
        if operation.is_socket:
            socket = SocketEndpoint(operation, upstream, admission, codec, census, settings)
            return WebSocketRoute(operation.path, socket)
        rest = RestEndpoint(
            operation,
            upstream,
            admission,
            codec,
            refusals,
            limits,
            body_seconds=settings.body_seconds,
            after=open_trial if operation.rpc == START_TRIAL else None,
        )
        return Route(operation.path, rest, methods=[operation.verb])

    return [route(operation) for operation in parts.operations]
