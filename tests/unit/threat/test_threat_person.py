"""Who may teach a baseline, and who may not."""

from __future__ import annotations

import base64
import uuid
from dataclasses import replace
from typing import Any

import orjson
import pytest

from servers.threat import messages
from servers.threat.alerts import Level
from servers.threat.baseline import SAMPLES_NEEDED, deviations
from servers.threat.behavior import EVIDENCE_VERSION, sample_of
from servers.threat.features import FEATURES, features_of
from servers.threat.person import Evidence, Outcome, PersonState
from servers.threat.places import Addresses
from tests.support.threat import Hand

ADDRESSES = Addresses()
HOME, ELSEWHERE = str(uuid.uuid4()), str(uuid.uuid4())


class Desk:
    """A person's state, and somebody at work."""

    def __init__(self) -> None:
        self.state = PersonState()
        self.position = 0
        self.clock = 1_800_000_000.0

    def event(self, hand: Hand, *, session: str = HOME, score: float = 0.1, **changes: Any) -> bool:
        """One event and its result; returns whether the baseline learnt."""
        self.position += 1
        self.clock += 5
        request = hand.event(str(uuid.uuid4()), session, at_s=self.clock)
        if device := changes.pop("device", ""):
            request.event_data.contextual_data.device_fingerprint = device
        seen = messages.observation_of(request, "")
        sample = sample_of(seen.runs, seen.paths)
        features = features_of(
            seen, deviations(self.state.behavior, sample), self.state.context.score(seen, ADDRESSES, self.clock)
        )
        values = list(features.values)
        for name, value in changes.pop("features", {}).items():
            values[FEATURES.index(name)] = value
        level = (
            Level.NORMAL
            if score < 0.3
            else Level.SUSPICIOUS
            if score <= 0.7
            else Level.THREAT
            if score <= 0.9
            else Level.CRITICAL
        )
        outcome = Outcome(
            position=self.position,
            session_id=session,
            score=score,
            level=level,
            confidence=changes.pop("confidence", 0.9),
            scored_at_s=self.clock,
            features=tuple(values),
            simulated=(),
            sample=base64.b64encode(sample.tobytes()).decode(),
            evidence_version=EVIDENCE_VERSION,
        )
        evidence = Evidence(replace(seen, runs=(), paths=()), self.clock, sample)
        return self.state.apply(replace(outcome, **changes), evidence, ADDRESSES)

    def enrol(self, hand: Hand, **changes: Any) -> None:
        for _ in range(SAMPLES_NEEDED + 8):
            assert self.event(hand, **changes)


def test_an_intruder_cannot_teach_an_enrolled_baseline() -> None:
    desk, owner, intruder = Desk(), Hand(1), Hand(2)
    desk.enrol(owner)
    before = orjson.dumps(desk.state.behavior.to_json())
    assert not any(desk.event(intruder, score=0.95) for _ in range(50))
    # Lucky events in between: the running risk and the tainted session refuse them.
    assert not any(desk.event(intruder, score=0.1) for _ in range(50))
    assert orjson.dumps(desk.state.behavior.to_json()) == before
    # The owner, in a session of their own, is learnt from again.
    assert any(desk.event(owner, session=ELSEWHERE) for _ in range(10))


def test_one_lucky_event_of_an_intruder_in_a_new_session_teaches_nothing() -> None:
    desk, owner, intruder = Desk(), Hand(1), Hand(2)
    desk.enrol(owner)
    desk.event(intruder, session=ELSEWHERE, score=0.6)
    desk.event(intruder, session=ELSEWHERE, score=0.6)
    assert not desk.event(intruder, session=ELSEWHERE, score=0.1)


def test_what_is_far_from_the_baseline_teaches_nothing_even_if_the_models_call_it_normal() -> None:
    desk, owner, intruder = Desk(), Hand(1), Hand(4)
    desk.enrol(owner)
    before = orjson.dumps(desk.state.behavior.to_json())
    assert not any(desk.event(intruder, session=ELSEWHERE, score=0.05) for _ in range(50))
    assert orjson.dumps(desk.state.behavior.to_json()) == before


@pytest.mark.parametrize(
    "against",
    [{"location_consistency": 0.0}, {"failed_auth_ratio": 0.9}, {"privilege_escalation_attempt": 0.9}],
)
def test_what_the_context_speaks_against_teaches_nothing(against: dict[str, float]) -> None:
    desk, owner = Desk(), Hand(1)
    desk.enrol(owner)
    assert not desk.event(owner, features=against)
    assert desk.event(owner)


def test_a_stranger_to_the_enrolling_session_does_not_take_part() -> None:
    desk, owner, intruder = Desk(), Hand(1), Hand(2)
    for _ in range(5):
        assert desk.event(owner, device="hers")
    assert not desk.event(intruder, session=ELSEWHERE, device="his")
    assert not desk.event(intruder, session=ELSEWHERE)
    assert not desk.event(intruder, session=HOME, device="his"), "the session moved to another device"
    assert not desk.event(intruder, device="hers", score=0.95), "confidently somebody else"
    assert desk.event(owner, session=ELSEWHERE, device="hers")
    assert desk.state.behavior.typing_samples == 6


def test_enrolment_that_stopped_is_forgotten_and_not_mixed() -> None:
    desk, owner, other = Desk(), Hand(1), Hand(2)
    for _ in range(5):
        assert desk.event(owner)
    desk.clock += 7200
    assert desk.event(other, session=ELSEWHERE)
    assert desk.state.behavior.typing_samples == 1


def test_a_verdict_of_genuine_teaches_and_clears_the_session() -> None:
    desk, owner = Desk(), Hand(1)
    desk.enrol(owner)
    for _ in range(3):
        assert not desk.event(owner, score=0.95)
    assert desk.event(owner, score=0.95, verified=True)
    for _ in range(6):
        desk.event(owner, score=0.05)
    assert desk.event(owner, score=0.05)


def test_results_are_folded_in_once_and_the_state_survives_storage() -> None:
    desk, owner = Desk(), Hand(1)
    desk.enrol(owner)
    desk.event(owner, score=0.95)
    stored = orjson.loads(orjson.dumps(desk.state.to_json()))
    again = PersonState.from_json(stored)
    assert orjson.dumps(again.to_json()) == orjson.dumps(stored)
    assert again.risk_score == desk.state.risk_score
    assert again.last_anomaly_s == desk.state.last_anomaly_s
    old = Outcome(1, HOME, 0.95, Level.CRITICAL, 0.9, 1.0, (), (), "", EVIDENCE_VERSION)
    assert not again.apply(old, None, ADDRESSES)
    assert again.risk_score == desk.state.risk_score, "a result that is in already changes nothing"


def test_a_baseline_of_another_layout_is_enrolled_anew_and_the_rest_is_kept() -> None:
    desk = Desk()
    desk.enrol(Hand(1))
    stored = orjson.loads(orjson.dumps(desk.state.to_json()))
    stored["behavior"]["version"] = EVIDENCE_VERSION + 1
    again = PersonState.from_json(stored)
    assert again.behavior.enrolling
    assert again.sessions.count == 1
    stored["version"] = 99
    with pytest.raises(ValueError, match="erase"):
        PersonState.from_json(stored)
