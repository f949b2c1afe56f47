"""Channels to other services: the right workload, deadlines, retries of reads, the breaker, correlation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from behaviorguard.threat.v1 import threat_service_pb2_grpc as threat_grpc
from grpc import aio
from grpc_health.v1 import health_pb2

from servers.mesh.breaker import BreakerState, CircuitBreaker
from servers.mesh.channels import open_channel
from servers.mesh.context import CallContext, EndUser, Scope, enter_call
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.policy import knows_people
from tests.support.mesh import (
    ANNA,
    BELA,
    ORGANIZATION,
    SERVICE,
    FakeThreat,
    Identities,
    Running,
    event,
    refused,
    settings_for,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture
async def connect(identities: Identities) -> AsyncIterator[Callable[..., aio.Channel]]:
    """Opens mesh channels, as `operator` unless told otherwise."""
    opened: list[aio.Channel] = []

    def connect(
        target: str, service: str = "threat", *, caller: str = "operator", call_seconds: float = 10.0, **more: Any
    ) -> aio.Channel:
        settings = settings_for(identities.of(caller), caller, call_seconds=call_seconds)
        opened.append(open_channel(settings, target, service, **more))
        return opened[-1]

    yield connect
    for channel in opened:
        await channel.close()


async def test_calls_carry_on_the_call_that_is_served(serve: Any, connect: Any) -> None:
    running: Running = await serve()
    stub: Any = threat_grpc.ThreatServiceStub(connect(running.target))
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    loop_deadline = CallContext("/x", "gateway", BELA, traceparent=trace)
    enter_call(loop_deadline)
    await stub.AnalyzeRealtime(event())
    seen = running.servicer.calls[0]
    assert (seen.caller, seen.correlation_id, seen.traceparent) == ("operator", BELA, trace)
    remaining = seen.remaining()
    assert remaining is not None
    assert 5 < remaining <= 10  # the default deadline


async def test_a_call_ends_with_the_call_that_is_served(serve: Any, connect: Any) -> None:
    running: Running = await serve()
    stub: Any = threat_grpc.ThreatServiceStub(connect(running.target))
    serving = CallContext("/x", "gateway", BELA)
    serving.deadline = asyncio.get_running_loop().time() + 0.2  # the loop's clock is the monotonic one
    enter_call(serving)
    async with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        await stub.GetRiskProfile(threat.GetRiskProfileRequest(user_id=ANNA), timeout=30)


async def test_the_person_who_is_served_is_carried_on(serve: Any, connect: Any) -> None:
    running: Running = await serve()
    person = EndUser(ANNA, ORGANIZATION, Scope.SCOPE_SELF)
    enter_call(CallContext("/x", "gateway", BELA, end_user=person, source_ip="203.0.113.9", user_agent="Browser/1"))
    stub: Any = threat_grpc.ThreatServiceStub(connect(running.target, caller="mobile"))
    await stub.AnalyzeRealtime(event(ANNA))
    async with refused(grpc.StatusCode.PERMISSION_DENIED):  # the person may not, so mobile may not for them
        await stub.AnalyzeRealtime(event(BELA))
    alone: Any = threat_grpc.ThreatServiceStub(connect(running.target, caller="mobile", own_name=True))
    await alone.AnalyzeRealtime(event(BELA))
    other: Any = threat_grpc.ThreatServiceStub(connect(running.target))
    await other.AnalyzeRealtime(event(BELA))  # the operator speaks for nobody, whoever it serves
    seen = [(call.caller, call.end_user, call.source_ip, call.user_agent) for call in running.servicer.calls]
    assert seen == [
        ("mobile", person, "203.0.113.9", "Browser/1"),
        ("mobile", None, "203.0.113.9", "Browser/1"),
        ("operator", None, "", ""),
    ]


async def test_what_is_for_workloads_alone_is_called_in_the_own_name(serve: Any, connect: Any) -> None:
    running: Running = await serve()
    enter_call(CallContext("/x", "gateway", BELA, end_user=EndUser(ANNA, ORGANIZATION, Scope.SCOPE_ADMIN)))
    check = connect(running.target, caller="mobile").unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert knows_people(f"/{SERVICE}/AnalyzeRealtime")
    assert not knows_people("/behaviorguard.quantum.v1.TemplateService/DecryptTemplate")
    assert not knows_people("/behaviorguard.none.v1.NoService/Nothing")


async def test_another_workload_in_the_right_place_is_refused(serve: Any, connect: Any) -> None:
    running: Running = await serve()
    stub: Any = threat_grpc.ThreatServiceStub(connect(running.target, "quantum"))
    async with refused(grpc.StatusCode.UNAVAILABLE):
        await stub.AnalyzeRealtime(event(), timeout=2)
    assert running.servicer.calls == []


class Flaky(FakeThreat):
    """Away for the first calls."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.attempts = 0
        self.failures = failures

    def _maybe_fail(self) -> None:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise MeshError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the database is away")

    async def ListThreatEvents(self, request: Any, context: Any) -> Any:  # noqa: N802 -- an RPC's name
        self._maybe_fail()
        return threat.ListThreatEventsResponse()

    async def AnalyzeRealtime(self, request: Any, context: Any) -> Any:  # noqa: N802 -- an RPC's name
        self._maybe_fail()
        return threat.AnalyzeRealtimeResponse()


async def test_reads_are_retried_and_changes_are_not(serve: Any, connect: Any) -> None:
    running: Running = await serve(servicer=Flaky(2))
    servicer: Any = running.servicer
    stub: Any = threat_grpc.ThreatServiceStub(connect(running.target, contract=[SERVICE]))
    await stub.ListThreatEvents(threat.ListThreatEventsRequest())
    assert servicer.attempts == 3
    servicer.attempts = 0
    async with refused(grpc.StatusCode.UNAVAILABLE):
        await stub.AnalyzeRealtime(event())
    assert servicer.attempts == 1


async def test_the_breaker_opens_and_tries_again(serve: Any, connect: Any) -> None:
    now = 0.0
    changes: list[BreakerState] = []
    breaker = CircuitBreaker(
        "threat", minimum_calls=4, clock=lambda: now, on_change=lambda _name, state: changes.append(state)
    )
    running: Running = await serve(servicer=Flaky(4))
    servicer: Any = running.servicer
    stub: Any = threat_grpc.ThreatServiceStub(connect(running.target, breaker=breaker))
    for _ in range(4):
        async with refused(grpc.StatusCode.UNAVAILABLE):
            await stub.AnalyzeRealtime(event())
    with pytest.raises(MeshError) as error:
        await stub.AnalyzeRealtime(event())
    assert (error.value.reason, error.value.retry_after_s) == (ErrorReason.ERROR_REASON_CIRCUIT_OPEN, 60.0)
    assert servicer.attempts == 4
    now = 60.0
    await stub.AnalyzeRealtime(event())
    await stub.AnalyzeRealtime(event())
    assert changes == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]


async def test_streams_pass_through_and_count(serve: Any, connect: Any) -> None:
    running: Running = await serve()
    breaker = CircuitBreaker("threat", minimum_calls=1)
    stub: Any = threat_grpc.ThreatServiceStub(connect(running.target, breaker=breaker))
    requests = [threat.StreamEventsRequest(event=event())] * 3
    assert len([answer async for answer in stub.StreamEvents(iter(requests), timeout=5)]) == 3
    watch = stub.WatchAlerts(threat.WatchAlertsRequest())
    assert (await watch.read()).resume_token == "1"
    assert running.servicer.calls[-1].deadline is None  # streams live as long as they are wanted
    watch.cancel()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):  # an answer, not a fault
        await stub.AnalyzeRealtime(event("bad"))
    assert breaker.state is BreakerState.CLOSED
