"""Field rules, and messages that are made to keep the checker busy."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from behaviorguard.threat.v1 import behavior_pb2, threat_pb2
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from hypothesis import given
from hypothesis import strategies as st

from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.validation import MessageValidator
from tests.support.mesh import ANNA, event


def problems(message: threat.AnalyzeRealtimeRequest) -> dict[str, str]:
    with pytest.raises(MeshError) as error:
        MessageValidator().check(message)
    assert error.value.reason == ErrorReason.ERROR_REASON_INVALID_FIELD
    return {problem.field: problem.reason for problem in error.value.fields}


def test_the_largest_event_that_is_allowed_passes() -> None:
    message = event()
    for _ in range(8):
        message.event_data.behavioral_metrics.mouse_dynamics.add(
            time_ms=range(512), x_px=range(512), y_px=range(512), actions=[behavior_pb2.POINTER_ACTION_MOVE] * 512
        )
    MessageValidator().check(message)


def hostile(kind: str) -> threat.AnalyzeRealtimeRequest:
    message = event()
    metrics = message.event_data.behavioral_metrics
    if kind == "empty patterns":
        for _ in range(50_000):
            metrics.mouse_dynamics.add()
    elif kind == "long names":
        metrics.navigation_pattern.views.extend(["x" * 200] * 20_000)
    elif kind == "points":
        metrics.mouse_dynamics.add(time_ms=[1] * 500_000)
    return message


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("empty patterns", "event_data.behavioral_metrics.mouse_dynamics"),
        ("long names", "event_data.behavioral_metrics.navigation_pattern.views"),
        ("points", "event_data.behavioral_metrics.mouse_dynamics[0].time_ms"),
    ],
)
def test_hostile_messages_are_refused_at_once(kind: str, field: str) -> None:
    message = hostile(kind)
    begun = time.thread_time()
    assert problems(message) == {field: "REPEATED_MAX_ITEMS"}
    assert time.thread_time() - begun < 0.1  # the rules engine alone takes seconds to minutes


def test_problems_say_where_and_why() -> None:
    message = event("nobody")
    message.event_data.session_id = ""
    message.event_data.contextual_data.location.latitude = float("nan")
    found = problems(message)
    assert found["user_id"] == "STRING_UUID"
    assert found["event_data.session_id"] == "STRING_UUID_EMPTY"
    assert "event_data.contextual_data.location.latitude" in found


@given(st.binary(max_size=400))
def test_whatever_can_be_parsed_is_accepted_or_refused(noise: bytes) -> None:
    validator = MessageValidator()
    for kind in (threat.AnalyzeRealtimeRequest, threat.WatchAlertsRequest, threat_pb2.Verdict):
        try:
            message = kind.FromString(noise)
        except Exception:  # noqa: S112 -- protobuf's own refusal is not ours to test
            continue
        with suppress(MeshError):
            validator.check(message)


def test_names_of_people_are_never_repeated() -> None:
    with pytest.raises(MeshError) as error:
        MessageValidator().check(threat.GetRiskProfileRequest(user_id=f"{ANNA}-personal"))
    assert "personal" not in f"{error.value} {error.value.fields}"


@pytest.mark.parametrize(("seconds", "nanos"), [(1_800_000_000, -1), (1_800_000_000, 1_000_000_000), (2**60, 0)])
def test_a_time_that_is_none_is_a_bad_field(seconds: int, nanos: int) -> None:
    message = event()
    message.timestamp.seconds, message.timestamp.nanos = seconds, nanos
    assert "timestamp" in problems(message)
    answer = threat.ListThreatEventsResponse()  # deep inside, in a list, without a rule of its own
    answer.events.add().processed_at.nanos = nanos
    answer.events[0].processed_at.seconds = seconds
    with pytest.raises(MeshError) as error:
        MessageValidator().check(answer)
    assert [problem.field for problem in error.value.fields] == ["events[0].processed_at"]
