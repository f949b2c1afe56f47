"""Whether a service can do its work: its dependencies, checked with deadlines."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

_log = logging.getLogger(__name__)


class DependencyStatus(StrEnum):
    """How a dependency answered its last check."""

    CONNECTED = "connected"
    SLOW = "slow"
    """It answered, later than it should."""
    DISCONNECTED = "disconnected"
    """It did not answer within the deadline, or with an error."""


class ServiceStatus(StrEnum):
    """How a service is, all in all."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It works, with a dependency that is slow or that it can do without missing."""
    UNHEALTHY = "unhealthy"
    """It cannot do its work."""


@dataclass(frozen=True, slots=True)
class DependencyCheck:
    """How to find out whether a dependency is there."""

    name: str
    """"database", "redis", "kafka", or a peer's name."""
    probe: Callable[[], Awaitable[Mapping[str, str | float]]]
    """Asks the dependency something cheap; returns details for operators (pool sizes, memory), raises when it is
    away."""
    required: bool = True
    """True when the service cannot work without it: it is then not ready."""
    deadline_seconds: float = 2.0
    """After this the dependency counts as disconnected."""
    slow_seconds: float = 0.25
    """Above this it counts as slow."""


@dataclass(frozen=True, slots=True)
class DependencyHealth:
    """What the last check of a dependency found."""

    name: str
    status: DependencyStatus
    latency_ms: float
    required: bool
    last_check: datetime
    details: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthReport:
    """A service's health, in the document's `HealthCheckResponse` form."""

    service: str
    status: ServiceStatus
    timestamp: datetime
    version: str
    uptime_seconds: float
    dependencies: tuple[DependencyHealth, ...]


class HealthMonitor:
    """Checks the dependencies in the background and tells listeners when the verdict changes."""

    def __init__(
        self,
        service: str,
        checks: Sequence[DependencyCheck] = (),
        *,
        version: str = "0.1.0",
        interval_seconds: float = 30.0,
    ) -> None:
        self._service = service
        self._checks = tuple(checks)
        self._version = version
        self._interval = interval_seconds
        self._started = time.monotonic()
        self._found: dict[str, DependencyHealth] = {}
        self._listeners: list[Callable[[ServiceStatus], Awaitable[None]]] = []
        self._status: ServiceStatus | None = None
        self._forced: str | None = None

    @property
    def status(self) -> ServiceStatus:
        """The verdict: unhealthy until the first check."""
        if self._forced is not None or self._status is None:
            return ServiceStatus.UNHEALTHY
        return self._status

    def on_change(self, listener: Callable[[ServiceStatus], Awaitable[None]]) -> None:
        """Call `listener` with each new verdict."""
        self._listeners.append(listener)

    async def fail(self, reason: str) -> None:
        """Report the service as unhealthy for good: it is about to stop."""
        _log.error("service is unhealthy", extra={"cause": reason})
        self._forced = reason
        await self._tell()

    async def check(self) -> HealthReport:
        """Check all dependencies now, at the same time; each has its own deadline."""
        for found in await asyncio.gather(*(self._probe(check) for check in self._checks)):
            before = self._found.get(found.name)
            self._found[found.name] = found
            if before is None or before.status is not found.status:
                level = logging.INFO if found.status is DependencyStatus.CONNECTED else logging.WARNING
                _log.log(level, "dependency status", extra={"dependency": found.name, "status": found.status.value})
        verdict = self._verdict()
        if verdict is not self._status:
            self._status = verdict
            await self._tell()
        return self.report()

    def report(self) -> HealthReport:
        """What the last check found."""
        return HealthReport(
            service=self._service,
            status=self.status,
            timestamp=datetime.now(UTC),
            version=self._version,
            uptime_seconds=time.monotonic() - self._started,
            dependencies=tuple(self._found.values()),
        )

    async def watch(self) -> None:
        """Check again and again; run it as a background task. While the service is unhealthy it checks every second."""
        while True:
            await self.check()
            await asyncio.sleep(min(1.0, self._interval) if self.status is ServiceStatus.UNHEALTHY else self._interval)

    async def _tell(self) -> None:
        for listener in self._listeners:
            await listener(self.status)

    def _verdict(self) -> ServiceStatus:
        missing = [d for d in self._found.values() if d.status is DependencyStatus.DISCONNECTED]
        if any(dependency.required for dependency in missing):
            return ServiceStatus.UNHEALTHY
        slow = any(d.status is DependencyStatus.SLOW for d in self._found.values())
        return ServiceStatus.DEGRADED if missing or slow else ServiceStatus.HEALTHY

    async def _probe(self, check: DependencyCheck) -> DependencyHealth:
        begun = time.perf_counter()
        details: Mapping[str, str | float] = {}
        try:
            async with asyncio.timeout(check.deadline_seconds):
                details = await check.probe()
        except Exception:
            status = DependencyStatus.DISCONNECTED
            _log.debug("dependency check failed", extra={"dependency": check.name}, exc_info=True)
        else:
            slow = time.perf_counter() - begun > check.slow_seconds
            status = DependencyStatus.SLOW if slow else DependencyStatus.CONNECTED
        latency_ms = (time.perf_counter() - begun) * 1000
        return DependencyHealth(check.name, status, latency_ms, check.required, datetime.now(UTC), details)
