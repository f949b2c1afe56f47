"""How a service reports of itself: the contract's health form with the figures of the last minute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from behaviorguard.monitoring.v1 import health_pb2 as pb
from behaviorguard.monitoring.v1 import health_pb2_grpc

from servers.mesh.health import DependencyCheck, HealthMonitor
from tests.support.mesh import SERVICE, event, refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.mesh.health_report import Figures
    from tests.support.mesh import Running


async def here() -> Mapping[str, str | float]:
    return {"active": 1.0, "idle": 2.0, "total": 3.0, "memory_usage": "1M"}


async def away() -> Mapping[str, str | float]:
    raise ConnectionError


def particulars(figures: Figures, answer: pb.HealthCheckResponse) -> None:
    answer.quantum_specific.quantum_operations_per_minute = figures.count(prefix=f"/{SERVICE}/Analyze")


async def test_a_service_tells_how_it_is(serve: Any) -> None:
    checks = [DependencyCheck("database", here), DependencyCheck("redis", here)]
    checks.append(DependencyCheck("hsm", away, required=False))
    monitor = HealthMonitor("threat", checks)
    running: Running = await serve(server={"health": monitor, "particulars": particulars})
    await monitor.check()
    for _ in range(3):
        await running.stub("operator").AnalyzeRealtime(event(), timeout=5)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await running.stub("operator").AnalyzeRealtime(event("bad"), timeout=5)
    stub: Any = health_pb2_grpc.HealthServiceStub(running.channel("monitoring"))
    found = await stub.HealthCheck(pb.HealthCheckRequest(), timeout=5)
    assert (found.service, found.status) == ("threat", pb.SERVICE_STATUS_DEGRADED)
    assert found.dependencies.database.status == pb.CONNECTION_STATUS_CONNECTED
    assert found.dependencies.database.connection_pool.total == 3
    assert found.dependencies.redis.memory_usage == "1M"
    assert found.dependencies.external_services["hsm"].status == pb.REACHABILITY_STATUS_UNREACHABLE
    assert found.quantum_specific.quantum_operations_per_minute == 4
    performance = found.performance
    assert performance.requests_per_minute >= 4
    assert performance.average_response_time > 0
    assert performance.error_rate_percent == 0  # the caller's own faults are not the service's
    assert performance.memory_usage_mb > 1


async def test_those_who_may_not_ask_are_refused(serve: Any) -> None:
    running: Running = await serve()
    stub: Any = health_pb2_grpc.HealthServiceStub(running.channel("pipeline"))
    async with refused(grpc.StatusCode.PERMISSION_DENIED):
        await stub.HealthCheck(pb.HealthCheckRequest(), timeout=5)
