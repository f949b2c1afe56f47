"""`behaviorguard.monitoring.v1.HealthService`: how a service is, with its figures over the last minute.

Every server offers it about itself, beside the standard `grpc.health.v1`, which knows only serving or not. Nothing here
waits for a dependency: the monitor's last findings are told.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from behaviorguard.monitoring.v1 import health_pb2 as pb
from behaviorguard.monitoring.v1 import health_pb2_grpc

from servers.mesh.health import DependencyStatus, ServiceStatus
from servers.mesh.telemetry import SERVER_FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from grpc import aio

    from servers.mesh.health import DependencyHealth, HealthMonitor
    from servers.mesh.telemetry import RpcTelemetry

HEALTH_REPORT: Final = "behaviorguard.monitoring.v1.HealthService"
WINDOW_SECONDS: Final = 60.0
_SAMPLE_SECONDS: Final = 5.0

_STATUS: Final = {
    ServiceStatus.HEALTHY: pb.SERVICE_STATUS_HEALTHY,
    ServiceStatus.DEGRADED: pb.SERVICE_STATUS_DEGRADED,
    ServiceStatus.UNHEALTHY: pb.SERVICE_STATUS_UNHEALTHY,
}
_CONNECTION: Final = {
    DependencyStatus.CONNECTED: pb.CONNECTION_STATUS_CONNECTED,
    DependencyStatus.SLOW: pb.CONNECTION_STATUS_SLOW,
    DependencyStatus.DISCONNECTED: pb.CONNECTION_STATUS_DISCONNECTED,
}
_REACHABLE: Final = {
    DependencyStatus.CONNECTED: pb.REACHABILITY_STATUS_REACHABLE,
    DependencyStatus.SLOW: pb.REACHABILITY_STATUS_REACHABLE,
    DependencyStatus.DISCONNECTED: pb.REACHABILITY_STATUS_UNREACHABLE,
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What the server's RPCs have done within a stretch of time."""

    seconds: float
    """Length of the stretch: 60 at most, above 0."""
    calls: Mapping[tuple[str, str], int] = field(default_factory=Counter)
    """Calls that ended, by full method name (`/package.Service/Method`) and status code ("OK")."""
    busy: float = 0.0
    """Seconds spent in all of them."""
    cpu: float = 0.0
    """Processor seconds of the process."""

    def count(self, *, prefix: str = "/", codes: frozenset[str] | None = None) -> int:
        """Calls of the methods that begin with `prefix`, with one of the codes (None: any)."""
        found = self.calls.items()
        return sum(
            calls for (method, code), calls in found if method.startswith(prefix) and (codes is None or code in codes)
        )

    def a_minute(self, calls: int) -> float:
        """So many calls in this stretch, as a rate for a minute."""
        return calls * 60.0 / self.seconds


# Adds what only one service knows: `quantum_specific`.
Particulars: TypeAlias = "Callable[[Figures, pb.HealthCheckResponse], None]"


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    calls: Counter[tuple[str, str]]
    busy: float
    cpu: float


class FigureKeeper:
    """Remembers what was counted a minute ago. Run `run` in the background."""

    def __init__(self, telemetry: RpcTelemetry, methods: frozenset[str]) -> None:
        self._telemetry = telemetry
        self._methods = methods
        self._samples: deque[_Sample] = deque([self._sample()], maxlen=int(WINDOW_SECONDS / _SAMPLE_SECONDS))

    async def run(self) -> None:
        """Take a sample every five seconds, until cancelled."""
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            self._samples.append(self._sample())

    def figures(self) -> Figures:
        """What happened since a minute ago, or since the start."""
        before, now = self._samples[0], self._sample()
        return Figures(
            max(now.at - before.at, 1e-3), now.calls - before.calls, now.busy - before.busy, now.cpu - before.cpu
        )

    def _sample(self) -> _Sample:
        calls: Counter[tuple[str, str]] = Counter()
        busy = 0.0
        for method in self._methods:
            totals = self._telemetry.totals[method]
            busy += totals.seconds
            calls.update({(method, code): number for code, number in totals.calls.items()})
        return _Sample(time.monotonic(), calls, busy, time.process_time())


class HealthReportService(health_pb2_grpc.HealthServiceServicer):
    """See the module."""

    def __init__(self, monitor: HealthMonitor, keeper: FigureKeeper, particulars: Particulars | None) -> None:
        self._monitor = monitor
        self._keeper = keeper
        self._particulars = particulars

    async def HealthCheck(  # noqa: N802 -- the contract's name
        self, request: pb.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.HealthCheckResponse:
        """How the service is."""
        del request, context
        report, figures = self._monitor.report(), self._keeper.figures()
        answer = pb.HealthCheckResponse(
            service=report.service,
            status=_STATUS[report.status],
            version=report.version,
            uptime=report.uptime_seconds,
            performance=_performance(figures),
        )
        answer.timestamp.FromDatetime(report.timestamp)
        for found in report.dependencies:
            _add_dependency(answer.dependencies, found)
        if self._particulars is not None:
            self._particulars(figures, answer)
        return answer


def _add_dependency(dependencies: pb.Dependencies, found: DependencyHealth) -> None:
    if found.name == "database":
        dependencies.database.status = _CONNECTION[found.status]
        dependencies.database.latency_ms = found.latency_ms
        pool = dependencies.database.connection_pool
        pool.active, pool.idle, pool.total = (int(found.details.get(name, 0)) for name in ("active", "idle", "total"))
    elif found.name == "redis":
        dependencies.redis.status = _CONNECTION[found.status]
        dependencies.redis.latency_ms = found.latency_ms
        dependencies.redis.memory_usage = str(found.details.get("memory_usage", ""))
    else:
        other = dependencies.external_services[found.name]
        other.status = _REACHABLE[found.status]
        other.latency_ms = found.latency_ms
        other.last_check.FromDatetime(found.last_check)


def _performance(figures: Figures) -> pb.Performance:
    ended = figures.count()
    faults = figures.count(codes=SERVER_FAULTS)
    return pb.Performance(
        requests_per_minute=figures.a_minute(ended),
        average_response_time=1000 * figures.busy / ended if ended else 0.0,
        error_rate_percent=100 * faults / ended if ended else 0.0,
        cpu_usage_percent=100 * figures.cpu / figures.seconds,
        memory_usage_mb=_resident_bytes() / 2**20,
    )


def _resident_bytes() -> int:
    """Resident memory of this process, as Linux tells it; 0 elsewhere."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 -- a system file
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
