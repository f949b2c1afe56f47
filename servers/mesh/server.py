"""The server that every service runs in: mTLS, the mesh's steps around each RPC, health, reflection, graceful drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import uvloop
from behaviorguard.monitoring.v1.health_pb2_grpc import add_HealthServiceServicer_to_server
from google.protobuf import descriptor_pool
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from pydantic import ValidationError

from servers.mesh.audit import AuditSink, LogAudit
from servers.mesh.certificates import ServerCertificate
from servers.mesh.errors import OperatorError
from servers.mesh.handlers import HandlerCollector, MeshHandler
from servers.mesh.health import HealthMonitor
from servers.mesh.health_report import HEALTH_REPORT, FigureKeeper, HealthReportService
from servers.mesh.health_service import HealthService
from servers.mesh.interceptors import Mesh, MethodPlan
from servers.mesh.limits import RateLimiter, WindowLimiter
from servers.mesh.logs import LogOutput, start_logging
from servers.mesh.policy import read_policies
from servers.mesh.streams import StreamGate
from servers.mesh.tasks import TaskFailedError, TaskOwner
from servers.mesh.telemetry import RpcTelemetry, Telemetry
from servers.mesh.validation import MessageValidator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from servers.mesh.health_report import Particulars
    from servers.mesh.settings import MeshSettings

_log = logging.getLogger(__name__)

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION: Final = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
_INFRASTRUCTURE: Final = (HEALTH, REFLECTION)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_REFUSED_BYTES: Final = 4
"""How many times the largest message gRPC reads before it gives up without a reason."""


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """A service of the contract and the object that implements it."""

    full_name: str
    """`behaviorguard.threat.v1.ThreatService`."""
    add_to_server: Callable[[Any, Any], None]
    """The generated `add_..._to_server`."""
    servicer: object
    """The implementation: coroutine functions, async generators where the RPC answers with a stream."""
    self_checked: frozenset[str] = field(default=frozenset())
    """Names of RPCs with a request stream that check each message themselves, right after reading it, with
    `await call_context().check(message)`: those in which a refused message must not end the stream. Reading on
    without having checked a
    message ends the call as INTERNAL."""


class MeshServer:
    """One gRPC server; see `run` for a whole process.

    Args:
        settings: where to listen, who we are, limits.
        bindings: what to serve.
        health: checks of what the service depends on; None: it depends on nothing.
        telemetry: the process's instruments; the server starts and closes them. None makes some from the settings.
        limiter: counts requests against budgets; None counts in this process.
        tasks: owner of the service's background tasks; when one dies for good the server becomes unhealthy and `wait`
            raises.
        audit: takes the records of audited calls; None writes them to the log.
        particulars: adds to the service's health report what only it knows.

    Raises:
        LookupError: a binding names a service that the contract does not know, or an RPC that the service does not
            have.
        TypeError: a method is not asynchronous.
    """

    def __init__(
        self,
        settings: MeshSettings,
        bindings: Sequence[ServiceBinding],
        *,
        health: HealthMonitor | None = None,
        telemetry: Telemetry | None = None,
        limiter: RateLimiter | None = None,
        tasks: TaskOwner | None = None,
        audit: AuditSink | None = None,
        particulars: Particulars | None = None,
    ) -> None:
        self.settings = settings
        self.services = tuple(binding.full_name for binding in bindings)
        self.tasks = tasks or TaskOwner()
        self.telemetry = telemetry or Telemetry(settings)
        self.health = health or HealthMonitor(settings.service_name, interval_seconds=settings.health_interval_seconds)
        self._health_service = HealthService(self.services)
        self._gate = StreamGate()
        self._server: aio.Server | None = None
        self._stopped = asyncio.Event()
        self._particulars = particulars
        self._handler = self._build(bindings, limiter or WindowLimiter(), audit or LogAudit())

    async def start(self) -> int:
        """Listen and serve; returns the port. The server is ready once the first check of its dependencies has passed.

        Raises:
            OperatorError: the address is taken, or a certificate file cannot be read.
        """
        settings = self.settings
        self.telemetry.start()
        self.health.on_change(self._health_service.set)
        # Calls are counted in the mesh's admission: gRPC's own limit costs every call 30 us and refuses without a
        # reason.
        self._server = aio.server(options=_options(settings))
        self._server.add_generic_rpc_handlers((self._handler,))
        credentials = ServerCertificate(settings).credentials()
        try:
            port = self._server.add_secure_port(f"{settings.host}:{settings.port}", credentials)
        except RuntimeError as error:
            raise OperatorError(
                f"cannot listen on {settings.host}:{settings.port}: stop what else uses it, or set BEHAVIORGUARD_PORT"
            ) from error
        await self._server.start()
        self.tasks.start("health", self.health.watch)
        self.tasks.start("figures", self._figures.run)
        _log.info("serving", extra={"host": settings.host, "port": port, "services": " ".join(self.services)})
        return port

    async def wait(self) -> None:
        """Return when the server has stopped.

        Raises:
            TaskFailedError: a background task died for good: drain, and end the process.
        """
        stopped = asyncio.create_task(self._stopped.wait())
        failed = asyncio.create_task(self.tasks.failed())
        try:
            await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await self.health.fail("a background task has died")
                raise failed.result()
        finally:
            stopped.cancel()
            failed.cancel()

    async def drain(self) -> None:
        """Take no new calls, let those in progress finish within `settings.drain_seconds`, end streams at their next
        pause, then stop.

        Background tasks keep running until the last call has ended. A second call returns at once.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        _log.info("draining", extra={"seconds": self.settings.drain_seconds})
        await self._health_service.stop()
        self._gate.close()
        await server.stop(self.settings.drain_seconds)
        await self.tasks.stop()
        await asyncio.to_thread(self.telemetry.close)
        self._stopped.set()
        _log.info("stopped")

    def _build(self, bindings: Sequence[ServiceBinding], limiter: RateLimiter, audit: AuditSink) -> MeshHandler:
        policies = read_policies(HEALTH_REPORT)
        for binding in bindings:
            policies |= read_policies(binding.full_name)
            _require_methods(binding)
        own = _methods(self.services)
        beside = _methods((HEALTH_REPORT, *_INFRASTRUCTURE))
        self.calls = RpcTelemetry(self.telemetry, [*own, *beside])
        """What the server's RPCs have done so far."""
        self._figures = FigureKeeper(self.calls, frozenset(own))
        mesh = Mesh(
            self.calls,
            MessageValidator(),
            limiter,
            audit,
            self._gate,
            self.settings.max_concurrent_rpcs,
            self.settings.max_message_bytes,
        )
        handler = MeshHandler(mesh)
        for binding in (*bindings, self._report(), *self._infrastructure()):
            collector = HandlerCollector()
            binding.add_to_server(binding.servicer, collector)
            for name, method in collector.handlers.items():
                plan = MethodPlan(
                    name,
                    policies.get(name),
                    infrastructure=binding.full_name in _INFRASTRUCTURE,
                    self_checked=name.rpartition("/")[2] in binding.self_checked,
                )
                handler.add(plan, method)
        return handler

    def _report(self) -> ServiceBinding:
        reports = HealthReportService(self.health, self._figures, self._particulars)
        return ServiceBinding(HEALTH_REPORT, add_HealthServiceServicer_to_server, reports)

    def _infrastructure(self) -> tuple[ServiceBinding, ...]:
        listed = (*self.services, HEALTH_REPORT, *_INFRASTRUCTURE)
        reflector = reflection.aio.ReflectionServicer(service_names=listed)
        return (
            ServiceBinding(HEALTH, health_pb2_grpc.add_HealthServicer_to_server, self._health_service),
            ServiceBinding(REFLECTION, reflection_pb2_grpc.add_ServerReflectionServicer_to_server, reflector),
        )


def _methods(services: Sequence[str]) -> list[str]:
    pool = descriptor_pool.Default()
    return [f"/{name}/{method.name}" for name in services for method in pool.FindServiceByName(name).methods]


def _require_methods(binding: ServiceBinding) -> None:
    known = descriptor_pool.Default().FindServiceByName(binding.full_name).methods_by_name
    unknown = sorted(binding.self_checked - set(known))
    if unknown:
        raise LookupError(f"{binding.full_name} has no RPC {', '.join(unknown)}: correct ServiceBinding.self_checked")


def _options(settings: MeshSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", _REFUSED_BYTES * settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", 2 * settings.max_concurrent_rpcs),  # a connection
        ("grpc.so_reuseport", 0),  # two servers on one port are a mistake, not a balance
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 4),
    ]


def run(app_factory: Callable[[], AbstractAsyncContextManager[MeshServer]]) -> int:
    """Run a service on uvloop until SIGTERM or SIGINT, or until a background task dies for good.

    Args:
        app_factory: an async context manager that opens what the service needs, yields its server (not started), and
            closes everything
            once the server has drained.

    Returns:
        The exit status: 0 after a signal, 1 after a failure, which is in the log.
    """
    output = start_logging("behaviorguard", "INFO")
    try:
        return uvloop.run(_serve(app_factory, output))
    except ValidationError as error:
        # Without the values: a setting may be a password.
        wrong = [f"BEHAVIORGUARD_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
        _log.error("the settings are wrong: %s", "; ".join(wrong))
        return 1
    except Exception:
        _log.exception("the service could not run")
        return 1
    finally:
        output.close()


def spare_collections() -> None:
    """Have the cycle collector look seldom, and never at what start-up made: it would walk through that again and
    again, up to 100 ms at a time, while calls wait. A call leaves next to no cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def _serve(app_factory: Callable[[], AbstractAsyncContextManager[MeshServer]], output: LogOutput) -> int:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, told.set)
    async with app_factory() as server:
        output.configure(server.settings.service_name, server.settings.log_level, server.services)
        spare_collections()
        await server.start()
        try:
            return await _until_told(server, told)
        finally:
            await server.drain()


async def _until_told(server: MeshServer, told: asyncio.Event) -> int:
    waits = [asyncio.create_task(told.wait()), asyncio.create_task(server.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if told.is_set():
            return 0
        await waits[1]
    except TaskFailedError:
        _log.exception("stopping: the service cannot go on without its background task")
    finally:
        for wait in waits:
            wait.cancel()
    return 1
