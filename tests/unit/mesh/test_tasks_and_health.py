"""Background tasks that die, dependencies that go away."""

from __future__ import annotations

import asyncio

import pytest

from servers.mesh.health import DependencyCheck, DependencyStatus, HealthMonitor, ServiceStatus
from servers.mesh.tasks import RestartBudget, TaskOwner
from tests.support.loop import loop_never_blocked


async def test_a_death_is_noticed_and_keeps_its_cause() -> None:
    async def dies() -> None:
        raise ConnectionError("gone")

    async with TaskOwner() as tasks:
        tasks.start("consumer", dies)
        failure = await asyncio.wait_for(tasks.failed(), 5)
    assert "consumer" in str(failure)
    assert isinstance(failure.__cause__, ConnectionError)


async def test_ending_early_is_a_death_too() -> None:
    async def returns() -> None:
        return

    async with TaskOwner() as tasks:
        tasks.start("consumer", returns)
        await asyncio.wait_for(tasks.failed(), 5)


async def test_a_budget_allows_so_many_restarts() -> None:
    runs = 0

    async def dies() -> None:
        nonlocal runs
        runs += 1
        raise ConnectionError

    async with TaskOwner() as tasks:
        tasks.start("consumer", dies, budget=RestartBudget(restarts=3, pause_seconds=0.001))
        await asyncio.wait_for(tasks.failed(), 5)
    assert runs == 4


async def test_stopping_cancels_and_waits() -> None:
    cleaned = asyncio.Event()
    started = asyncio.Event()

    async def runs() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    tasks = TaskOwner()
    tasks.start("consumer", runs)
    with pytest.raises(ValueError, match="runs already"):
        tasks.start("consumer", runs)
    await started.wait()
    await tasks.stop()
    assert cleaned.is_set()
    assert tasks.failure is None


async def fine() -> dict[str, float]:
    return {"active": 1.0}


async def hangs() -> dict[str, float]:
    await asyncio.Event().wait()
    return {}


async def test_the_verdict_weighs_what_is_required() -> None:
    async def verdict(*checks: DependencyCheck) -> ServiceStatus:
        return (await HealthMonitor("threat", checks).check()).status

    away = DependencyCheck("redis", hangs, deadline_seconds=0.01)
    optional = DependencyCheck("redis", hangs, required=False, deadline_seconds=0.01)
    slow = DependencyCheck("kafka", fine, slow_seconds=-1)
    assert await verdict() is ServiceStatus.HEALTHY
    assert await verdict(DependencyCheck("database", fine)) is ServiceStatus.HEALTHY
    assert await verdict(slow) is ServiceStatus.DEGRADED
    assert await verdict(optional) is ServiceStatus.DEGRADED
    assert await verdict(away, DependencyCheck("database", fine)) is ServiceStatus.UNHEALTHY


async def test_a_report_says_what_was_found() -> None:
    monitor = HealthMonitor("threat", [DependencyCheck("database", fine)])
    assert monitor.status is ServiceStatus.UNHEALTHY  # not asked yet
    report = await monitor.check()
    assert (report.service, report.dependencies[0].status) == ("threat", DependencyStatus.CONNECTED)
    assert report.dependencies[0].details == {"active": 1.0}
    assert 0 <= report.dependencies[0].latency_ms < 1000


async def test_listeners_hear_changes_only() -> None:
    heard: list[ServiceStatus] = []
    monitor = HealthMonitor("threat")

    async def hear(status: ServiceStatus) -> None:
        heard.append(status)

    monitor.on_change(hear)
    await monitor.check()
    await monitor.check()
    await monitor.fail("a task died")
    await monitor.check()
    assert heard == [ServiceStatus.HEALTHY, ServiceStatus.UNHEALTHY]


async def test_the_watchdog_finds_what_blocks() -> None:
    async def computes() -> None:
        sum(range(3_000_000))

    with pytest.raises(AssertionError, match="blocked"), loop_never_blocked():
        await asyncio.create_task(computes())
    with loop_never_blocked():
        await asyncio.create_task(asyncio.sleep(0))
