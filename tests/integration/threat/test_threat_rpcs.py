"""Every RPC of the threat service: answers, refusals, walls between tenants."""

from __future__ import annotations

import math
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import redis
from behaviorguard.api.v1 import errors_pb2
from behaviorguard.threat.v1 import threat_pb2
from behaviorguard.threat.v1 import threat_service_pb2 as pb
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from tests.support.threat import (
    ORGANIZATION,
    Hand,
    StandInPipeline,
    alert_for,
    end_user,
    eventually,
    ids,
    running_threat,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.threat import Stores

NORMAL = threat_pb2.THREAT_LEVEL_NORMAL


@contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[list[Any]]:
    """The call inside is refused; the list holds the fields that the error names."""
    fields: list[Any] = []
    with pytest.raises(aio.AioRpcError) as caught:
        yield fields
    error = caught.value
    assert error.code() is code, error.details()
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        if detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
            fields.extend(violation.field for violation in request.field_violations)
    assert info.reason == reason
    assert errors_pb2.ErrorReason.Value(info.reason)


async def test_an_event_sent_twice_counts_once_and_an_id_is_not_reused(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    async with running_threat(stores) as service:
        stub = service.stub()
        request = Hand(1).event(anna, session)
        first = await stub.AnalyzeRealtime(request)
        again = await stub.AnalyzeRealtime(request)
        assert again.event_id == first.event_id
        assert again.preliminary_risk == first.preliminary_risk
        assert again.processing_status == pb.PROCESSING_STATUS_ALREADY_QUEUED
        other = Hand(1).event(anna, session, event_id=first.event_id)
        other.event_data.behavioral_metrics.session_duration = 61
        with refused(grpc.StatusCode.ALREADY_EXISTS, "ERROR_REASON_DUPLICATE_EVENT"):
            await stub.AnalyzeRealtime(other)


async def test_what_the_contract_cannot_express_is_refused_with_its_field(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    async with running_threat(stores) as service:
        stub = service.stub()
        request = Hand(1).event(anna, session)
        request.event_data.behavioral_metrics.mouse_dynamics[0].time_ms[3] = 0
        request.event_data.contextual_data.authentication.failed_attempts = 3
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_INVALID_FIELD") as fields:
            await stub.AnalyzeRealtime(request)
        assert fields == [
            "event_data.behavioral_metrics.mouse_dynamics[0]",
            "event_data.contextual_data.authentication.failed_attempts",
        ]
        request = Hand(1).event(anna, session)
        request.event_data.behavioral_metrics.keystroke_dynamics[0].hold_ms[0] = math.nan
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_INVALID_FIELD"):
            await stub.AnalyzeRealtime(request)
        for skew in (-301, 301):
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_CLOCK_SKEW"):
                await stub.AnalyzeRealtime(Hand(1).event(anna, session, at_s=time.time() + skew))
        assert (await stub.AnalyzeRealtime(Hand(1).event(anna, session, at_s=time.time() - 290))).event_id


async def test_unknown_people_and_other_tenants_people_are_equally_unknown(stores: Stores) -> None:
    other = stores.organization()
    anna, stranger, session = stores.person(), stores.person(other), str(uuid.uuid4())
    async with running_threat(stores) as service:
        gateway = service.stub("gateway")
        for user in (str(uuid.uuid4()), stranger):
            with refused(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_UNKNOWN_USER"):
                await service.stub().AnalyzeRealtime(Hand(1).event(user, session))
            with refused(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_UNKNOWN_USER"):
                await service.stub().GetRiskProfile(pb.GetRiskProfileRequest(user_id=user))
        with refused(grpc.StatusCode.PERMISSION_DENIED, "ERROR_REASON_SCOPE_NOT_ALLOWED"):
            await gateway.AnalyzeRealtime(Hand(1).event(stranger, session), metadata=end_user(anna))
        with refused(grpc.StatusCode.PERMISSION_DENIED, "ERROR_REASON_SCOPE_NOT_ALLOWED"):
            await gateway.WatchAlerts(pb.WatchAlertsRequest(user_ids=[stranger]), metadata=end_user(anna)).read()
        assert await gateway.AnalyzeRealtime(
            Hand(1).event(stranger, session), metadata=end_user(stranger, organization_id=other)
        )


async def test_a_stream_answers_in_order_and_survives_refused_events(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    async with running_threat(stores, stream_window=8) as service:
        hand = Hand(1)
        events = [hand.event(anna, session) for _ in range(60)]
        events[10].user_id = str(uuid.uuid4())
        events[20].event_data.session_id = "not a uuid"
        events[30].CopyFrom(events[5])
        stream = service.stub().StreamEvents(pb.StreamEventsRequest(event=event) for event in events)
        answers = [answer async for answer in stream]
        assert len(answers) == 60
        for index, (event, answer) in enumerate(zip(events, answers, strict=True)):
            if index in (10, 20):
                assert answer.refused.event_id == event.event_data.event_id
                assert answer.refused.suggested_action
            else:
                assert answer.accepted.event_id == event.event_data.event_id
        assert answers[10].refused.reason == "ERROR_REASON_UNKNOWN_USER"
        assert answers[20].refused.reason == "ERROR_REASON_INVALID_FIELD"
        assert answers[30].accepted.processing_status == pb.PROCESSING_STATUS_ALREADY_QUEUED


async def test_events_are_listed_by_page_and_read_one_by_one(stores: Stores) -> None:
    other = stores.organization()
    anna, bela, stranger = stores.person(), stores.person(), stores.person(other)
    scores = {anna: 0.95, bela: 0.1, stranger: 0.95}
    async with running_threat(stores) as service:
        stub = service.stub("gateway")
        analyst, elsewhere = end_user(bela, "analyst"), end_user(stranger, "analyst", other)
        with StandInPipeline(stores.kafka, lambda event: alert_for(event, scores.get(event["user_id"], 0.1))):
            sent = []
            for user, organization in ((anna, ORGANIZATION), (bela, ORGANIZATION), (stranger, other)):
                for _ in range(5):
                    answer = await stub.AnalyzeRealtime(
                        Hand(2).event(user, str(uuid.uuid4())), metadata=end_user(user, organization_id=organization)
                    )
                    sent.append(answer.event_id)
            await eventually(
                lambda: (
                    stores.rows("SELECT count(*) FROM ai_services.threat_events WHERE event_id = ANY(%s)", sent)
                    == [(15,)]
                )
            )
        found: list[str] = []
        page = pb.ListThreatEventsRequest(page_size=4)
        while True:
            answer = await stub.ListThreatEvents(page, metadata=analyst)
            found += [event.event_id for event in answer.events]
            if not answer.next_page_token:
                break
            page.page_token = answer.next_page_token
        assert len(found) == len(set(found))
        assert set(sent[:10]) <= set(found)
        assert not set(sent[10:]) & set(found)
        wanted = pb.ListThreatEventsRequest(user_id=anna, minimum_level=threat_pb2.THREAT_LEVEL_CRITICAL, page_size=3)
        first = await stub.ListThreatEvents(wanted, metadata=analyst)
        assert len(first.events) == 3
        assert first.events[0].reasons[0].text
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_INVALID_TOKEN"):
            changed = pb.ListThreatEventsRequest(user_id=bela, page_token=first.next_page_token)
            await stub.ListThreatEvents(changed, metadata=analyst)
        one = await stub.GetThreatEvent(pb.GetThreatEventRequest(event_id=sent[0]), metadata=analyst)
        assert one.event.threat_level == threat_pb2.THREAT_LEVEL_CRITICAL
        assert len(one.event.features) == 15
        for event_id, who in ((sent[0], elsewhere), (str(uuid.uuid4()), analyst)):
            with refused(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_NOT_FOUND"):
                await stub.GetThreatEvent(pb.GetThreatEventRequest(event_id=event_id), metadata=who)
            with refused(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_NOT_FOUND"):
                verdict = threat_pb2.Verdict(kind=threat_pb2.VERDICT_KIND_TAKEOVER)
                await stub.RecordVerdict(pb.RecordVerdictRequest(event_id=event_id, verdict=verdict), metadata=who)


async def test_only_a_genuine_verdict_teaches_and_only_once(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    async with running_threat(stores) as service:
        stub = service.stub("gateway")
        # The pipeline hands samples back of normal events only.
        with StandInPipeline(stores.kafka, lambda event: alert_for(event, 0.95, sample="")):
            watch = stub.WatchAlerts(pb.WatchAlertsRequest(), metadata=end_user(anna))
            await watch.initial_metadata()
            answer = await stub.AnalyzeRealtime(Hand(1).event(anna, session), metadata=end_user(anna))
            await take(watch, 1)

        async def learnt() -> int:
            profile = await stub.GetRiskProfile(pb.GetRiskProfileRequest(user_id=anna), metadata=end_user(anna))
            return int(profile.profile.baseline.typing_samples)

        async def judge(kind: threat_pb2.VerdictKind.ValueType) -> Any:
            said = threat_pb2.Verdict(kind=kind, note="looked at", analyst="somebody else")
            request = pb.RecordVerdictRequest(event_id=answer.event_id, verdict=said)
            return (await stub.RecordVerdict(request, metadata=end_user(anna, "analyst"))).event

        assert await learnt() == 0
        event = await judge(threat_pb2.VERDICT_KIND_TAKEOVER)
        assert event.verdict.analyst == anna, "the server says who it was"
        assert await learnt() == 0
        await judge(threat_pb2.VERDICT_KIND_GENUINE)
        await judge(threat_pb2.VERDICT_KIND_GENUINE)
        assert await learnt() == 1
    async with running_threat(stores) as service:
        profile = await service.stub().GetRiskProfile(pb.GetRiskProfileRequest(user_id=anna))
        assert profile.profile.baseline.typing_samples == 1, "what a verdict taught is stored at once"


async def test_trials_live_for_a_while_and_leave_nothing(stores: Stores) -> None:
    async with running_threat(stores) as service:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "ERROR_REASON_WRONG_STATE"):
            await service.stub("gateway").StartTrial(pb.StartTrialRequest(label="try"))
    async with running_threat(stores, trials_enabled=True, trial_minutes=0.05) as service:
        stub = service.stub("gateway")
        trial = await stub.StartTrial(pb.StartTrialRequest(label="try"))
        with redis.Redis.from_url(stores.redis) as cache:
            assert cache.exists(f"session:{trial.session_id}")
        with StandInPipeline(stores.kafka):
            answer = await stub.AnalyzeRealtime(
                Hand(1).event(trial.user_id, trial.session_id), metadata=end_user(trial.user_id)
            )
            await eventually(
                lambda: stores.rows("SELECT 1 FROM ai_services.threat_events WHERE event_id = %s", answer.event_id)
            )
        left = "SELECT 1 FROM behaviorguard.users WHERE user_id = %s"
        await eventually(lambda: not stores.rows(left, trial.user_id), within_s=20)
        assert not stores.rows("SELECT 1 FROM ai_services.threat_events WHERE user_id = %s", trial.user_id)
        assert not stores.rows("SELECT 1 FROM ai_services.behavioral_profiles WHERE user_id = %s", trial.user_id)
        with refused(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_UNKNOWN_USER"):
            await stub.AnalyzeRealtime(Hand(1).event(trial.user_id, trial.session_id), metadata=end_user(trial.user_id))


async def test_erasing_removes_everything_also_what_is_on_its_way(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    async with running_threat(stores) as service:
        stub = service.stub("gateway")
        hand = Hand(1)
        with StandInPipeline(stores.kafka, lambda event: alert_for(event, 0.95)) as pipeline:
            watch = stub.WatchAlerts(pb.WatchAlertsRequest(minimum_level=NORMAL), metadata=end_user(anna))
            await watch.initial_metadata()
            first = await stub.AnalyzeRealtime(hand.event(anna, session), metadata=end_user(anna))
            assert ids(await take(watch, 1)) == [first.event_id]
            with redis.Redis.from_url(stores.redis, decode_responses=True) as cache:
                await eventually(lambda: cache.zscore("threats:high_risk", f"{anna}:{first.event_id}"))
                held: list[Any] = []
                pipeline.judge = held.append
                late = await stub.AnalyzeRealtime(hand.event(anna, session), metadata=end_user(anna))
                await eventually(lambda: held)
                erased = await stub.EraseBehavior(pb.EraseBehaviorRequest(user_id=anna), metadata=end_user(anna))
                assert erased.events_erased == 1
                assert cache.zscore("threats:high_risk", f"{anna}:{first.event_id}") is None
                assert not [member for member in cache.zrange("threats:recent", 0, -1) if anna in member]
                assert not cache.exists(f"behavior:{anna}")
            # The late event comes back, and one that was sent after the erasure.
            pipeline.judge = lambda event: alert_for(event, 0.95)
            _publish(stores, alert_for(held[0], 0.95))
            fresh = await stub.AnalyzeRealtime(hand.event(anna, session), metadata=end_user(anna))
            assert ids(await take(watch, 1)) == [fresh.event_id]
        assert not stores.rows("SELECT 1 FROM ai_services.threat_events WHERE event_id = %s", late.event_id)


def _publish(stores: Stores, alert: dict[str, Any]) -> None:
    import orjson  # noqa: PLC0415 - only this test speaks to the broker itself
    from confluent_kafka import Producer  # noqa: PLC0415

    producer = Producer({"bootstrap.servers": stores.kafka, "log_level": 0})
    producer.produce("threat-alerts", orjson.dumps(alert), alert["event_id"])
    assert producer.flush(5) == 0


async def test_workloads_that_the_contract_does_not_name_are_refused(stores: Stores) -> None:
    anna = stores.person()
    async with running_threat(stores) as service:
        with refused(grpc.StatusCode.PERMISSION_DENIED, "ERROR_REASON_CALLER_NOT_ALLOWED"):
            await service.stub("pipeline").AnalyzeRealtime(Hand(1).event(anna, str(uuid.uuid4())))
