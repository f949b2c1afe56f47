"""On whose behalf: what the gateway may do for whom, as the contract's scopes say."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat

from servers.mesh.context import EndUser, Scope
from servers.mesh.identity import Origin, on_behalf_of
from servers.mesh.limits import WindowLimiter
from tests.support.mesh import ANNA, BELA, ORGANIZATION, Running, acting_for, event, reason_of, refused


async def test_the_method_sees_the_person_behind_the_call(serve: Any) -> None:
    running: Running = await serve()
    await running.stub("gateway").AnalyzeRealtime(event(ANNA), timeout=5, metadata=acting_for(ANNA))
    seen = running.servicer.calls[0]
    assert seen.caller == "gateway"
    assert seen.end_user is not None
    assert (seen.end_user.user_id, seen.organization_id, seen.only_user_id) == (ANNA, ORGANIZATION, ANNA)


async def test_other_workloads_speak_for_nobody(serve: Any) -> None:
    running: Running = await serve()
    for caller in ("operator", "pipeline"):
        async with refused(grpc.StatusCode.PERMISSION_DENIED) as errors:
            await running.stub(caller).AnalyzeRealtime(event(ANNA), timeout=5, metadata=acting_for(ANNA, "admin"))
        assert reason_of(errors[0]) == "ERROR_REASON_CALLER_NOT_ALLOWED"


async def test_identity_and_mobile_speak_for_people_too(serve: Any) -> None:
    running: Running = await serve()
    await running.stub("mobile").AnalyzeRealtime(event(ANNA), timeout=5, metadata=acting_for(ANNA))
    erase = threat.EraseBehaviorRequest(user_id=ANNA)
    await running.stub("identity").EraseBehavior(erase, timeout=5, metadata=acting_for(ANNA))
    seen = running.servicer.calls[0]
    assert (seen.caller, seen.actor, seen.organization_id) == ("mobile", ANNA, ORGANIZATION)
    for caller, call in (("mobile", "AnalyzeRealtime"), ("identity", "EraseBehavior")):
        request = event(BELA) if call == "AnalyzeRealtime" else threat.EraseBehaviorRequest(user_id=BELA)
        async with refused(grpc.StatusCode.PERMISSION_DENIED) as errors:
            await getattr(running.stub(caller), call)(request, timeout=5, metadata=acting_for(ANNA))
        assert reason_of(errors[0]) == "ERROR_REASON_SCOPE_NOT_ALLOWED"


async def test_where_a_request_came_from_is_told_for_audit_records(serve: Any) -> None:
    running: Running = await serve()
    stub = running.stub("gateway")
    person = EndUser(ANNA, ORGANIZATION, Scope.SCOPE_SELF)
    for origin in (
        Origin("203.0.113.9", "Browser/1 \N{SNOWMAN}"),
        Origin("fe80::1%eth0", "a" * 600),
        Origin("made up"),
    ):
        await stub.AnalyzeRealtime(event(ANNA), timeout=5, metadata=on_behalf_of(person, came_from=origin))
    seen = [(call.source_ip, call.user_agent) for call in running.servicer.calls]
    assert seen == [("203.0.113.9", "Browser/1 ?"), ("fe80::1", "a" * 512), ("", "")]
    async with refused(grpc.StatusCode.PERMISSION_DENIED):
        said = on_behalf_of(None, came_from=Origin("203.0.113.9"))
        await running.stub("operator").AnalyzeRealtime(event(ANNA), timeout=5, metadata=said)


async def test_the_gateway_needs_somebody_who_is_signed_in(serve: Any) -> None:
    running: Running = await serve()
    async with refused(grpc.StatusCode.UNAUTHENTICATED) as errors:
        await running.stub("gateway").AnalyzeRealtime(event(), timeout=5)
    assert reason_of(errors[0]) == "ERROR_REASON_SESSION_REQUIRED"
    await running.stub("gateway").StartTrial(threat.StartTrialRequest(label="demo"), timeout=5)  # SCOPE_ANONYMOUS
    assert running.servicer.calls[0].only_user_id == ""


@pytest.mark.parametrize("scope", ["self", "analyst", "admin"])
async def test_nobody_reports_behaviour_of_somebody_else(serve: Any, scope: str) -> None:
    running: Running = await serve()
    stub = running.stub("gateway")
    async with refused(grpc.StatusCode.PERMISSION_DENIED) as errors:
        await stub.AnalyzeRealtime(event(BELA), timeout=5, metadata=acting_for(ANNA, scope))
    assert reason_of(errors[0]) == "ERROR_REASON_SCOPE_NOT_ALLOWED"
    stream = stub.StreamEvents(
        iter([threat.StreamEventsRequest(event=event(who)) for who in (ANNA, BELA)]),
        timeout=5,
        metadata=acting_for(ANNA, scope),
    )
    async with refused(grpc.StatusCode.PERMISSION_DENIED):
        async for _ in stream:
            pass


async def test_a_person_watches_themself_and_an_analyst_everybody(serve: Any) -> None:
    running: Running = await serve()
    others = threat.WatchAlertsRequest(user_ids=[ANNA, BELA])
    async with refused(grpc.StatusCode.PERMISSION_DENIED):
        await running.stub("gateway").WatchAlerts(others, timeout=5, metadata=acting_for(ANNA)).read()
    for request, scope in ((others, "analyst"), (threat.WatchAlertsRequest(), "self")):
        watch = running.stub("gateway").WatchAlerts(request, timeout=5, metadata=acting_for(ANNA, scope))
        assert (await watch.read()).resume_token == "1"
        watch.cancel()
    assert [call.only_user_id for call in running.servicer.calls] == [None, ANNA]


async def test_analysts_work_needs_an_analyst(serve: Any) -> None:
    running: Running = await serve()
    stub = running.stub("gateway")
    async with refused(grpc.StatusCode.PERMISSION_DENIED):
        await stub.ListThreatEvents(threat.ListThreatEventsRequest(), timeout=5, metadata=acting_for(ANNA))
    for scope in ("analyst", "admin"):
        await stub.ListThreatEvents(threat.ListThreatEventsRequest(), timeout=5, metadata=acting_for(ANNA, scope))


@pytest.mark.parametrize(
    "said",
    [
        (("x-bg-user-id", ANNA),),
        (("x-bg-scope", "self"),),
        acting_for("not-a-uuid"),
        acting_for(ANNA, "root"),
        acting_for(ANNA, organization_id=""),
    ],
)
async def test_half_a_person_is_nobody(serve: Any, said: Any) -> None:
    running: Running = await serve()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await running.stub("gateway").AnalyzeRealtime(event(), timeout=5, metadata=said)
    assert running.servicer.calls == []


async def test_workloads_act_for_the_default_organisation(serve: Any) -> None:
    running: Running = await serve()
    await running.stub("operator").AnalyzeRealtime(event(BELA), timeout=5)
    seen = running.servicer.calls[0]
    assert (seen.caller, seen.end_user, seen.only_user_id, seen.actor) == ("operator", None, None, "operator")


async def test_people_who_are_not_signed_in_are_counted_by_their_client(serve: Any) -> None:
    class One(WindowLimiter):
        async def admit(self, subject: str, method: str, budget: int) -> float | None:
            return await super().admit(subject, method, 1)

    running: Running = await serve(server={"limiter": One()})
    stub = running.stub("gateway")
    for client in ("digest-1", "digest-2"):
        await stub.StartTrial(threat.StartTrialRequest(), timeout=5, metadata=on_behalf_of(None, client=client))
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await stub.StartTrial(threat.StartTrialRequest(), timeout=5, metadata=on_behalf_of(None, client="digest-1"))
