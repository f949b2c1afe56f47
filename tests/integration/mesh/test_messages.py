"""What becomes of messages: validated one by one, counted, limited in size; faults leave without their inner text."""

from __future__ import annotations

import asyncio
import json
import logging
from io import StringIO
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from google.rpc import error_details_pb2

from servers.mesh.context import call_context
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.limits import WindowLimiter
from servers.mesh.logs import start_logging
from tests.support.loop import loop_never_blocked
from tests.support.mesh import (
    ANNA,
    BELA,
    SERVICE,
    FakeThreat,
    Running,
    acting_for,
    detail_of,
    event,
    reason_of,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def test_invalid_fields_are_named_with_their_rules(serve: Any) -> None:
    running: Running = await serve()
    request = event("nobody")
    request.event_data.behavioral_metrics.mouse_dynamics.add(time_ms=[1, 2], x_px=[1], y_px=[1, 2], actions=[1, 1])
    async with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        await running.stub("operator").AnalyzeRealtime(request, timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_INVALID_FIELD"
    problems = detail_of(errors[0], error_details_pb2.BadRequest()).field_violations
    by_field = {problem.field: problem for problem in problems}
    assert by_field["user_id"].reason == "STRING_UUID"
    assert "event_data.behavioral_metrics.mouse_dynamics[0].x_px" in by_field
    assert by_field["event_data.behavioral_metrics.mouse_dynamics[0]"].reason == "MOUSE_PATTERN_COLUMNS"
    assert "nobody" not in str(errors[0])
    assert "Correct the fields" in detail_of(errors[0], error_details_pb2.LocalizedMessage()).message
    assert running.servicer.calls == []


async def test_many_problems_still_fit_into_an_answer(serve: Any) -> None:
    running: Running = await serve()
    request = event()
    request.event_data.behavioral_metrics.navigation_pattern.views.extend(["x" * 200] * 64)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        await running.stub("operator").AnalyzeRealtime(request, timeout=5)
    assert 5 < len(detail_of(errors[0], error_details_pb2.BadRequest()).field_violations) < 64


async def test_each_message_of_a_stream_is_validated(serve: Any) -> None:
    running: Running = await serve()
    good, bad = threat.StreamEventsRequest(event=event()), threat.StreamEventsRequest(event=event("bad"))
    answers = 0
    async with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        async for _ in running.stub("operator").StreamEvents(iter([good, good, bad, good]), timeout=5):
            answers += 1
    assert answers == 2
    assert detail_of(errors[0], error_details_pb2.BadRequest()).field_violations[0].field == "event.user_id"


class SelfChecking(FakeThreat):
    """Goes on after a refused message, as `StreamEvents` promises."""

    checks = True

    async def StreamEvents(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 -- an RPC's name
        async for request in request_iterator:
            try:
                if self.checks:
                    await call_context().check(request)
            except MeshError as error:
                yield threat.StreamEventsResponse(
                    refused=threat.EventRefusal(reason=error.reason_name, message=error.message)
                )
            else:
                yield threat.StreamEventsResponse(accepted=threat.AnalyzeRealtimeResponse(event_id="x"))


async def test_a_stream_that_checks_itself_goes_on_after_a_refusal(serve: Any) -> None:
    running: Running = await serve(servicer=SelfChecking(), self_checked=frozenset({"StreamEvents"}))
    people = (ANNA, "bad", BELA, ANNA)
    requests = [threat.StreamEventsRequest(event=event(who)) for who in people]
    stream = running.stub("gateway").StreamEvents(iter(requests), timeout=5, metadata=acting_for(ANNA))
    reasons = [answer.refused.reason async for answer in stream]
    assert reasons == ["", "ERROR_REASON_SCOPE_NOT_ALLOWED", "ERROR_REASON_SCOPE_NOT_ALLOWED", ""]
    stream = running.stub("operator").StreamEvents(iter(requests), timeout=5)
    assert [answer.refused.reason async for answer in stream] == ["", "ERROR_REASON_INVALID_FIELD", "", ""]


async def test_a_stream_that_forgets_to_check_itself_fails(serve: Any) -> None:
    servicer = SelfChecking()
    servicer.checks = False
    running: Running = await serve(servicer=servicer, self_checked=frozenset({"StreamEvents"}))
    requests = [threat.StreamEventsRequest(event=event())] * 3
    answers = 0
    async with refused(grpc.StatusCode.INTERNAL):
        async for _ in running.stub("operator").StreamEvents(iter(requests), timeout=5):
            answers += 1
    assert answers == 1


async def test_an_oversized_message_is_refused(serve: Any) -> None:
    running: Running = await serve(max_message_bytes=2048)
    request = event()
    request.event_data.contextual_data.user_agent = "x" * 4096
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as errors:
        await running.stub("operator").AnalyzeRealtime(request, timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_TOO_LARGE"
    request.event_data.contextual_data.user_agent = "x" * 10_000  # gRPC itself stops reading
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await running.stub("operator").AnalyzeRealtime(request, timeout=5)
    await running.stub("operator").AnalyzeRealtime(event(), timeout=5)  # and the server lives on


async def test_the_budget_is_each_persons_own(serve: Any) -> None:
    class Small(WindowLimiter):
        async def admit(self, subject: str, method: str, budget: int) -> float | None:
            assert budget == 6000
            return await super().admit(subject, method, 2)

    running: Running = await serve(server={"limiter": Small()})
    stub = running.stub("gateway")
    for _ in range(2):
        await stub.AnalyzeRealtime(event(), timeout=5, metadata=acting_for(ANNA))
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as errors:
        await stub.AnalyzeRealtime(event(), timeout=5, metadata=acting_for(ANNA))
    assert reason_of(errors[0]) == "ERROR_REASON_RATE_LIMITED"
    assert 0 < detail_of(errors[0], error_details_pb2.RetryInfo()).retry_delay.ToSeconds() <= 60
    await stub.AnalyzeRealtime(event(BELA), timeout=5, metadata=acting_for(BELA))
    # A workload that acts for nobody draws on the budget of whom it names.
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await running.stub("operator").AnalyzeRealtime(event(ANNA), timeout=5)


async def test_more_calls_than_there_is_room_for_are_refused(serve: Any) -> None:
    running: Running = await serve(max_concurrent_rpcs=1)
    stub = running.stub("operator")
    profile = stub.GetRiskProfile(threat.GetRiskProfileRequest(user_id=ANNA), timeout=10)
    await running.servicer.entered.wait()
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as errors:
        await stub.AnalyzeRealtime(event(), timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_OVERLOADED"
    running.servicer.release.set()
    await profile
    await stub.AnalyzeRealtime(event(), timeout=5)


async def test_a_refusal_of_the_domain_keeps_its_reason(serve: Any) -> None:
    running: Running = await serve()
    running.servicer.failure = MeshError(
        ErrorReason.ERROR_REASON_CLOCK_SKEW, "the event is 9 minutes old", retry_after_s=1.5
    )
    async with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
        await running.stub("operator").AnalyzeRealtime(event(), timeout=5, metadata=(("x-correlation-id", ANNA),))
    assert reason_of(errors[0]) == "ERROR_REASON_CLOCK_SKEW"
    assert detail_of(errors[0], error_details_pb2.RetryInfo()).retry_delay.ToMilliseconds() == 1500
    assert detail_of(errors[0], error_details_pb2.RequestInfo()).request_id == ANNA


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NotImplementedError("secret-inside"), grpc.StatusCode.UNIMPLEMENTED),
        (TimeoutError("secret-inside"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (ValueError("secret-inside"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_faults_leave_without_their_text(serve: Any, failure: Exception, code: grpc.StatusCode) -> None:
    running: Running = await serve()
    running.servicer.failure = failure
    async with refused(code) as errors:
        await running.stub("operator").AnalyzeRealtime(event(), timeout=5)
    assert "secret-inside" not in str(errors[0])
    assert reason_of(errors[0]).startswith("ERROR_REASON_")


async def test_what_the_server_does_not_implement_says_so(serve: Any) -> None:
    running: Running = await serve()
    async with refused(grpc.StatusCode.UNIMPLEMENTED) as errors:
        await running.stub("operator").GetThreatEvent(threat.GetThreatEventRequest(event_id=ANNA), timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_NOT_IMPLEMENTED"


async def test_the_log_has_the_trace_and_no_personal_data(serve: Any) -> None:
    stream = StringIO()
    output = start_logging("threat", "INFO", services=[SERVICE], stream=stream)
    try:
        running: Running = await serve()
        personal = event()
        personal.event_data.contextual_data.ip_address = "203.0.113.77"
        personal.event_data.contextual_data.user_agent = "PersonalBrowser/1.0"
        personal.event_data.contextual_data.location.latitude = 48.2082
        running.servicer.failure = ValueError(f"could not store {personal}")
        async with refused(grpc.StatusCode.INTERNAL):
            await running.stub("operator").AnalyzeRealtime(personal, timeout=5, metadata=(("x-correlation-id", ANNA),))
        personal.event_data.contextual_data.ip_address = "not-an-address"
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await running.stub("operator").AnalyzeRealtime(personal, timeout=5)
        logging.getLogger("servers.threat").warning("odd", extra={"ip_address": "203.0.113.77", "event": personal})
        await running.server.drain()
    finally:
        output.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    failed = next(line for line in lines if line["message"] == "call failed")
    assert failed["correlation_id"] == ANNA
    assert failed["caller"] == "operator"
    assert "builtins.ValueError" in failed["exception"]
    assert "in AnalyzeRealtime" in failed["exception"]
    odd = next(line for line in lines if line["message"] == "odd")
    assert (odd["ip_address"], odd["event"]) == ("[withheld]", "AnalyzeRealtimeRequest")
    for said in ("203.0.113.77", "PersonalBrowser", "48.2082", "not-an-address", "could not store"):
        assert said not in stream.getvalue()


async def test_a_deadline_ends_the_method(serve: Any) -> None:
    running: Running = await serve()
    async with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        await running.stub("operator").GetRiskProfile(threat.GetRiskProfileRequest(user_id=ANNA), timeout=0.2)
    seen = running.servicer.calls[0]
    assert seen.deadline is not None
    assert (seen.remaining() or 0) < 0.2


async def test_calls_do_not_see_each_other(serve: Any) -> None:
    class Slow(FakeThreat):
        async def AnalyzeRealtime(self, request: Any, context: Any) -> Any:  # noqa: N802 -- an RPC's name
            before = call_context()
            await asyncio.sleep(0)
            assert call_context() is before
            assert before.end_user is not None
            return threat.AnalyzeRealtimeResponse(event_id=before.end_user.user_id + before.correlation_id)

    running: Running = await serve(servicer=Slow())
    stub = running.stub("gateway")

    async def one(number: int) -> None:
        who = f"00000000-0000-4000-8000-{number:012d}"
        said = (*acting_for(who), ("x-correlation-id", f"{number:08d}-0000-4000-8000-000000000000"))
        answer = await stub.AnalyzeRealtime(event(who), timeout=20, metadata=said)
        assert answer.event_id == f"{who}{number:08d}-0000-4000-8000-000000000000"

    await asyncio.gather(*(one(number) for number in range(200)))


@pytest.mark.parametrize("sent", [(), (("x-correlation-id", "not-a-uuid"),)])
async def test_the_answer_tells_an_id_that_the_caller_did_not_choose(serve: Any, sent: Any) -> None:
    running: Running = await serve()
    call = running.stub("operator").AnalyzeRealtime(event(), timeout=5, metadata=sent)
    await call
    told = dict((await call.trailing_metadata()) or ())
    assert told["x-correlation-id"] == running.servicer.calls[0].correlation_id
    assert len(told["x-correlation-id"]) == 36


async def test_a_body_that_is_no_message_is_refused(serve: Any) -> None:
    running: Running = await serve()
    channel = running.channel("operator")
    unary: Any = channel.unary_unary(f"/{SERVICE}/AnalyzeRealtime")
    stream: Any = channel.stream_stream(f"/{SERVICE}/StreamEvents")
    noise = b"\xff\xff\xff\xff personal"
    for call in (unary(noise, timeout=5), aiter(stream(iter([noise]), timeout=5))):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
            await (call if hasattr(call, "__await__") else anext(call))
        assert reason_of(errors[0]) == "ERROR_REASON_MALFORMED_BODY"
        assert "personal" not in str(errors[0])


async def test_callers_that_vanish_leave_nothing_behind(serve: Any) -> None:
    running: Running = await serve()
    stub = running.stub("operator")
    for _ in range(30):
        watch = stub.WatchAlerts(threat.WatchAlertsRequest(), timeout=30)
        await watch.read()
        stream = stub.StreamEvents(timeout=30)
        await stream.write(threat.StreamEventsRequest(event=event()))
        await stream.read()
        watch.cancel()
        stream.cancel()
    async with asyncio.timeout(5):
        while running.server.calls.active:
            await stub.AnalyzeRealtime(event(), timeout=5)
            await asyncio.sleep(0)
    totals = running.server.calls.totals[f"/{SERVICE}/WatchAlerts"]
    assert totals.calls["CANCELLED"] == 30


async def test_the_loop_is_never_blocked(serve: Any) -> None:
    running: Running = await serve()
    stub = running.stub("operator")
    await stub.AnalyzeRealtime(event(), timeout=5)  # rules are compiled with the first message
    full = event()
    full.event_data.behavioral_metrics.keystroke_dynamics.add(
        key_classes=[1] * 60, hold_ms=[90] * 60, flight_ms=[9] * 60
    )
    with loop_never_blocked():
        await asyncio.gather(*(stub.AnalyzeRealtime(full, timeout=20) for _ in range(100)))
