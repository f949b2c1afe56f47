"""Start, health, reflection, drain, and the end of a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servers.mesh.health import DependencyCheck, DependencyStatus, HealthMonitor, ServiceStatus
from servers.mesh.health_report import HEALTH_REPORT
from servers.mesh.server import HEALTH, REFLECTION
from servers.mesh.tasks import TaskFailedError, TaskOwner
from tests.support.mesh import ANNA, SERVICE, Identities, Running, event, reason_of, refused

REPOSITORY = Path(__file__).resolve().parents[3]


async def test_draining_finishes_calls_in_progress_and_takes_no_new_ones(serve: Any) -> None:
    running: Running = await serve()
    stub = running.stub("operator")
    call = stub.GetRiskProfile(threat.GetRiskProfileRequest(user_id=ANNA), timeout=10)
    await running.servicer.entered.wait()
    drain = asyncio.create_task(running.server.drain())
    async with refused(grpc.StatusCode.UNAVAILABLE):
        while True:  # new connections are refused as soon as the drain has begun
            await running.stub("mobile").AnalyzeRealtime(event(), timeout=5)
    assert not drain.done()
    running.servicer.release.set()
    assert isinstance(await call, threat.GetRiskProfileResponse)
    await drain


async def test_draining_ends_streams_where_nothing_is_in_progress(serve: Any) -> None:
    running: Running = await serve(drain_seconds=30.0)
    watch = running.stub("operator").WatchAlerts(threat.WatchAlertsRequest(), timeout=20)
    assert (await watch.read()).resume_token == "1"
    stream = running.stub("operator").StreamEvents(timeout=20)
    await stream.write(threat.StreamEventsRequest(event=event()))
    assert (await stream.read()).HasField("accepted")
    async with asyncio.timeout(5):
        await running.server.drain()
    for call in (watch, stream):
        async with refused(grpc.StatusCode.UNAVAILABLE) as errors:
            await call.read()
            await call.read()
        assert reason_of(errors[0]) == "ERROR_REASON_DEPENDENCY_UNAVAILABLE"


async def test_what_does_not_finish_is_cut_off(serve: Any) -> None:
    running: Running = await serve(drain_seconds=0.1)
    call = running.stub("operator").GetRiskProfile(threat.GetRiskProfileRequest(user_id=ANNA), timeout=10)
    await running.servicer.entered.wait()
    async with asyncio.timeout(5):
        await running.server.drain()
    async with refused(grpc.StatusCode.UNAVAILABLE):
        await call


async def test_health_follows_the_dependencies(serve: Any) -> None:
    away = asyncio.Event()

    async def probe() -> dict[str, float]:
        if away.is_set():
            raise ConnectionError
        return {"total": 4.0}

    monitor = HealthMonitor("threat", [DependencyCheck("database", probe)], interval_seconds=600)
    running: Running = await serve(server={"health": monitor})
    stub: Any = health_pb2_grpc.HealthStub(running.channel("gateway"))
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
    answers = aiter(watch)
    status = await anext(answers)
    if status.status != health_pb2.HealthCheckResponse.SERVING:  # asked before the first check
        status = await anext(answers)
    assert status.status == health_pb2.HealthCheckResponse.SERVING
    away.set()
    report = await monitor.check()
    assert report.status is ServiceStatus.UNHEALTHY
    assert report.dependencies[0].status is DependencyStatus.DISCONNECTED
    assert (await anext(answers)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    away.clear()
    await monitor.check()
    assert (await anext(answers)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    async with refused(grpc.StatusCode.NOT_FOUND):
        await stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=5)


async def test_reflection_lists_and_describes_the_services(serve: Any) -> None:
    running: Running = await serve()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel("operator"))  # type: ignore[arg-type]  # grpc's stubs know the synchronous channel only
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked), timeout=5)]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert listed == {SERVICE, HEALTH_REPORT, HEALTH, REFLECTION}
    assert len(answers[1].file_descriptor_response.file_descriptor_proto) >= 1


async def test_buf_curl_lists_and_calls_by_reflection(serve: Any) -> None:
    running: Running = await serve()
    files = running.identities.of("operator")
    arguments = ["--protocol", "grpc", "--reflect-protocol", "grpc-v1alpha"]
    arguments += [
        "--cacert",
        str(files.ca),
        "--cert",
        str(files.cert),
        "--key",
        str(files.key),
        "--servername",
        "threat",
    ]
    address = f"https://127.0.0.1:{running.port}"

    async def buf(*more: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("buf"),
            "curl",
            *arguments,
            *more,
            cwd="/",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        return process.returncode, output.decode()

    status, output = await buf("--list-methods", address)
    assert status == 0, output
    assert f"{SERVICE}/AnalyzeRealtime" in output
    status, output = await buf("--data", '{"label": "demo"}', f"{address}/{SERVICE}/StartTrial")
    assert status == 0, output
    assert json.loads(output)["userId"] == ANNA


async def test_the_death_of_a_background_task_ends_the_service(serve: Any) -> None:
    async def dies() -> None:
        raise RuntimeError

    tasks = TaskOwner()
    running: Running = await serve(server={"tasks": tasks})
    waiting = asyncio.create_task(running.server.wait())
    await asyncio.sleep(0)
    tasks.start("consumer", dies)
    with pytest.raises(TaskFailedError, match="consumer"):
        await asyncio.wait_for(waiting, 5)
    assert running.server.health.status is ServiceStatus.UNHEALTHY


PROGRAM = textwrap.dedent("""
    import sys
    from contextlib import asynccontextmanager
    from behaviorguard.threat.v1 import threat_service_pb2_grpc as rpc
    from servers.mesh.server import MeshServer, ServiceBinding, run
    from servers.mesh.settings import MeshSettings
    from tests.support.mesh import SERVICE, FakeThreat

    @asynccontextmanager
    async def app():
        binding = ServiceBinding(SERVICE, rpc.add_ThreatServiceServicer_to_server, FakeThreat())
        yield MeshServer(MeshSettings(), [binding])

    sys.exit(run(app))
""")


async def test_a_process_drains_on_sigterm(identities: Identities) -> None:
    files = identities.of("threat")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        cwd=REPOSITORY,
        env=os.environ | files.environment() | {"BEHAVIORGUARD_SERVICE_NAME": "threat"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        serving = json.loads(await process.stdout.readline())
        assert (serving["message"], serving["service"]) == ("serving", "threat")
        running = Running(None, None, serving["port"], identities)  # type: ignore[arg-type]  # it runs elsewhere
        channel = running.channel("operator")
        stub = running.stub("operator")
        assert (await stub.AnalyzeRealtime(event(), timeout=5)).preliminary_risk == 0.5
        watch = stub.WatchAlerts(threat.WatchAlertsRequest(), timeout=20)
        await watch.read()
        process.send_signal(signal.SIGTERM)
        async with refused(grpc.StatusCode.UNAVAILABLE):
            await watch.read()
        assert await process.wait() == 0
        said = [json.loads(line)["message"] for line in (await process.stdout.read()).splitlines()]
    assert said[-1] == "stopped"
    await channel.close()


async def fails(identities: Identities, **settings: str) -> str:
    """What a process says that cannot start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        cwd=REPOSITORY,
        env=os.environ | identities.of("threat").environment() | settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    return output.decode()


async def test_a_process_that_cannot_start_says_why(identities: Identities, serve: Any) -> None:
    running: Running = await serve()
    name = {"BEHAVIORGUARD_SERVICE_NAME": "threat"}
    said = await fails(identities, **name, BEHAVIORGUARD_PORT=str(running.port))
    assert "set BEHAVIORGUARD_PORT" in said
    said = await fails(identities, **name, BEHAVIORGUARD_TLS_KEY="/nowhere/threat.key")
    assert "cannot read /nowhere/threat.key" in said
    said = await fails(identities, **name, BEHAVIORGUARD_PORT="sesame")
    assert "BEHAVIORGUARD_PORT" in said
    assert "sesame" not in said
