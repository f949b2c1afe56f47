"""Following alerts: a dropped connection loses nothing and repeats nothing, several instances, slow readers."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_pb2
from behaviorguard.threat.v1 import threat_service_pb2 as pb
from grpc import aio

from tests.support.threat import Hand, StandInPipeline, alert_for, end_user, ids, running_threat, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.threat import RunningThreat, Stores

NORMAL = threat_pb2.THREAT_LEVEL_NORMAL


async def _send(service: RunningThreat, user: str, count: int, session: str = "") -> list[str]:
    stub, session = service.stub(), session or str(uuid.uuid4())
    hand = Hand(3)
    answers = [await stub.AnalyzeRealtime(hand.event(user, session)) for _ in range(count)]
    return [answer.event_id for answer in answers]


async def test_a_dropped_reader_resumes_without_loss_or_repetition(stores: Stores) -> None:
    anna = stores.person()
    request = pb.WatchAlertsRequest(user_ids=[anna], minimum_level=NORMAL)
    async with running_threat(stores) as service:
        with StandInPipeline(stores.kafka):
            watch = service.stub().WatchAlerts(request)
            begin = dict(await watch.initial_metadata())["x-bg-resume-token"]
            sent = await _send(service, anna, 10)
            first = await take(watch, 4)
            watch.cancel()
            sent += await _send(service, anna, 10)
            # What was cut off is read from the database, what comes then is live.
            again = service.stub().WatchAlerts(
                pb.WatchAlertsRequest(user_ids=[anna], minimum_level=NORMAL, resume_token=first[-1].resume_token)
            )
            sent += await _send(service, anna, 10)
            rest = await take(again, 26)
            assert sorted(ids(first) + ids(rest)) == sorted(sent)
            # Also a reader that got nothing before it was dropped can resume.
            request.resume_token = begin
            everything = await take(service.stub().WatchAlerts(request), 30)
            assert ids(everything) == ids(first) + ids(rest), "the stream has one order"


async def test_readers_get_what_they_ask_for_and_no_other_tenants_alerts(stores: Stores) -> None:
    other = stores.organization()
    anna, bela, stranger, session = stores.person(), stores.person(), stores.person(other), str(uuid.uuid4())
    judge: Callable[[dict[str, Any]], dict[str, Any]] = lambda event: alert_for(  # noqa: E731 - used twice below
        event, 0.95 if event["session_id"] == session else 0.1
    )
    async with running_threat(stores) as service:
        gateway = service.stub("gateway")
        with StandInPipeline(stores.kafka, judge):
            own = gateway.WatchAlerts(pb.WatchAlertsRequest(minimum_level=NORMAL), metadata=end_user(anna))
            severe = gateway.WatchAlerts(pb.WatchAlertsRequest(), metadata=end_user(bela, "analyst"))
            one_session = gateway.WatchAlerts(
                pb.WatchAlertsRequest(minimum_level=NORMAL, session_id=session), metadata=end_user(bela, "analyst")
            )
            elsewhere = gateway.WatchAlerts(
                pb.WatchAlertsRequest(minimum_level=NORMAL), metadata=end_user(stranger, "analyst", other)
            )
            for watch in (own, severe, one_session, elsewhere):
                await watch.initial_metadata()
            quiet = await _send(service, anna, 1)
            await _send(service, bela, 1)
            loud = await _send(service, anna, 1, session)
            theirs = await gateway.AnalyzeRealtime(
                Hand(1).event(stranger, str(uuid.uuid4())), metadata=end_user(stranger, organization_id=other)
            )
            assert sorted(ids(await take(own, 2))) == sorted(quiet + loud)
            assert ids(await take(severe, 1)) == loud
            assert ids(await take(one_session, 1)) == loud
            assert ids(await take(elsewhere, 1)) == [theirs.event_id]


async def test_a_token_of_another_organisation_is_refused(stores: Stores) -> None:
    other = stores.organization()
    anna, stranger = stores.person(), stores.person(other)
    async with running_threat(stores) as service:
        gateway = service.stub("gateway")
        watch = gateway.WatchAlerts(pb.WatchAlertsRequest(), metadata=end_user(anna))
        token = dict(await watch.initial_metadata())["x-bg-resume-token"]
        for bad in (token, "AAAA", "no token", token[:-1]):
            who = end_user(stranger, organization_id=other)
            with pytest.raises(aio.AioRpcError) as refused:
                await gateway.WatchAlerts(pb.WatchAlertsRequest(resume_token=bad), metadata=who).read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_alerts_reach_readers_of_every_instance_in_one_order(stores: Stores) -> None:
    anna = stores.person()
    request = pb.WatchAlertsRequest(user_ids=[anna], minimum_level=NORMAL)
    async with running_threat(stores) as one, running_threat(stores) as two:
        with StandInPipeline(stores.kafka):
            watches = [service.stub().WatchAlerts(request) for service in (one, two)]
            for watch in watches:
                await watch.initial_metadata()
            session = str(uuid.uuid4())
            sent = await _send(one, anna, 20, session) + await _send(two, anna, 20, session)
            seen = [ids(await take(watch, 40, within_s=30)) for watch in watches]
            assert seen[0] == seen[1]
            assert sorted(seen[0]) == sorted(sent)

            async def learnt(service: RunningThreat) -> int:
                profile = await service.stub().GetRiskProfile(pb.GetRiskProfileRequest(user_id=anna))
                return int(profile.profile.baseline.typing_samples)

            async with asyncio.timeout(10):
                while [await learnt(one), await learnt(two)] != [40, 40]:  # noqa: ASYNC110 - only an RPC tells
                    await asyncio.sleep(0.05)
