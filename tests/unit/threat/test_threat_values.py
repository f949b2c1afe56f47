"""Tokens, recent events, alerts from the broker, records to it, column rules."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.threat.alerts import Level, UnusableAlertError, parse_alert
from servers.threat.behavior import KeystrokeRun, MousePath
from servers.threat.observations import clock_skew, keystroke_problem, stroke_problem
from servers.threat.recent import Accepted, EventIdReusedError, RecentEvents
from servers.threat.records import Origin, dead_letter, iso_time
from servers.threat.rows import from_microseconds, microseconds
from servers.threat.tokens import (
    InvalidTokenError,
    PageStart,
    page_start,
    page_token,
    resume_position,
    resume_token,
)

ORGANIZATION = str(uuid.uuid4())


@given(st.integers(0, 2**63 - 1), st.uuids())
def test_resume_tokens_name_a_place_in_one_organisations_stream(position: int, organization: uuid.UUID) -> None:
    token = resume_token(str(organization), position)
    assert len(token) <= 128
    assert resume_position(token, str(organization)) == position
    with pytest.raises(InvalidTokenError):
        resume_position(token, ORGANIZATION)


@given(st.text(max_size=128))
def test_made_up_tokens_are_refused(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        resume_position(text, ORGANIZATION)
    with pytest.raises(InvalidTokenError):
        page_start(text, ORGANIZATION)


@given(st.integers(-(2**60), 2**60), st.uuids(), st.text(max_size=50))
def test_page_tokens_belong_to_one_list(at_us: int, event: uuid.UUID, issued_for: str) -> None:
    start = PageStart(at_us, str(event))
    token = page_token(start, ORGANIZATION, issued_for)
    assert len(token) <= 256
    assert page_start(token, ORGANIZATION, issued_for) == start
    with pytest.raises(InvalidTokenError):
        page_start(token, ORGANIZATION, issued_for + "x")


@given(st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001 - the zone is added below
def test_microseconds_are_exact(moment: datetime) -> None:
    there = moment.replace(tzinfo=UTC)
    assert from_microseconds(microseconds(there)) == there


def test_recent_events_are_bounded_and_tell_copies_from_reuse() -> None:
    recent = RecentEvents(3)
    first = Accepted(b"a")
    recent.add("1", first)
    assert recent.find("1", b"a") is first
    with pytest.raises(EventIdReusedError):
        recent.find("1", b"b")
    for name in ("2", "3", "4"):
        recent.add(name, Accepted(b"a"))
    assert len(recent) == 3
    assert recent.find("1", b"b") is None
    recent.forget("2", Accepted(b"a"))
    assert recent.find("2", b"a") is not None, "only the one that failed is forgotten"


def test_clock_skew() -> None:
    assert clock_skew(1000.0, 1300.0) == 0
    assert clock_skew(1000.0, 1301.0) == 1
    assert clock_skew(float("nan"), 1000.0) > 0


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        (([0, 1], [0, 1], [0, 1], [1, 1]), None),
        (([1, 2], [0, 1], [0, 1], [1, 1]), "start"),
        (([0, 5, 4], [0, 1, 1], [0, 1, 1], [1, 1, 1]), "fall"),
        (([0, 600_001], [0, 1], [0, 1], [1, 1]), "600000"),
        (([0, 1], [0, 100_001], [0, 1], [1, 1]), "100000"),
        (([0, 1], [0, 1], [0, -100_001], [1, 1]), "100000"),
        (([0, 1], [0, 1], [0, 1], [1, 8]), "actions"),
        (([0, 1], [0, 1], [0], [1, 1]), "number of items"),
    ],
)
def test_strokes(columns: Any, word: str | None) -> None:
    time, x, y, actions = (np.array(column, np.float64) for column in columns)
    problem = stroke_problem(MousePath(time, x, y, actions.astype(np.int64)))
    assert (problem is None) if word is None else (problem is not None and word in problem)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        (([1], [90.0], [0.0], ([], [])), None),
        (([1], [90.0], [0.0], ([0.5], [0.1])), None),
        (([10], [90.0], [0.0], ([], [])), "key_classes"),
        (([1], [float("nan")], [0.0], ([], [])), "hold_ms"),
        (([1], [90.0], [float("inf")], ([], [])), "flight_ms"),
        (([1], [90.0], [0.0], ([1.5], [])), "pressure"),
        (([1, 2], [90.0], [0.0], ([], [])), "number of items"),
    ],
)
def test_keystrokes(columns: Any, word: str | None) -> None:
    classes, holds, flights, touch = columns
    numbers = [np.array(column, np.float32) for column in (holds, flights, *touch)]
    problem = keystroke_problem(KeystrokeRun("", np.array(classes, np.int64), *numbers))
    assert (problem is None) if word is None else (problem is not None and word in problem)


def alert(**changes: Any) -> dict[str, Any]:
    record = {
        "event_id": str(uuid.uuid4()),
        "user_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "organization_id": ORGANIZATION,
        "threat_score": 0.2,
        "threat_level": "normal",
        "anomaly_score": 0.1,
        "sequence_threat_score": 0.2,
        "pattern_anomaly_score": 0.3,
        "ml_confidence": 0.9,
        "processing_time_ms": 12,
        "timestamp": "2030-01-01T00:00:00.5Z",
        "sample": base64.b64encode(np.zeros(3, np.float32).tobytes()).decode(),
        "evidence_version": 1,
    }
    return record | changes


def test_an_alert_is_read() -> None:
    read = parse_alert(orjson.dumps(alert(threat_level="THREAT_LEVEL_CRITICAL")))
    assert read.level is Level.CRITICAL
    assert read.scored_at == datetime(2030, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert read.accepted_at_s == pytest.approx(read.scored_at.timestamp() - 0.012)
    assert read.occurred_at == read.scored_at


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_id": ""}, "missing_field"),
        ({"event_id": "{00000000-0000-0000-0000-000000000000}"}, "out_of_range"),
        ({"user_id": 7}, "out_of_range"),
        ({"threat_score": "0.5"}, "out_of_range"),
        ({"threat_score": True}, "out_of_range"),
        ({"threat_score": 1.0001}, "out_of_range"),
        ({"threat_level": None}, "missing_field"),
        ({"processing_time_ms": -1}, "out_of_range"),
        ({"features": [0.5] * 14}, "wrong_size"),
        ({"features": ["x"] * 15}, "out_of_range"),
        ({"reasons": [7]}, "out_of_range"),
        ({"recommendations": "text"}, "out_of_range"),
        ({"sample": "***"}, "out_of_range"),
        ({"sample": 7}, "out_of_range"),
        ({"timestamp": "0001-01-01T00:00:00Z"}, "out_of_range"),
        ({"timestamp": 5}, "out_of_range"),
    ],
)
def test_unusable_alerts_say_why(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableAlertError) as error:
        parse_alert(orjson.dumps(alert(**changes)))
    assert error.value.reason == reason


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(sorted(alert())), JSON)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    try:
        read = parse_alert(orjson.dumps(alert(**{field: value})))
    except UnusableAlertError as error:
        assert error.reason in {"missing_field", "not_finite", "out_of_range", "wrong_size"}  # noqa: PT017 - reading is right as well
    else:
        assert 0 <= read.threat_score <= 1


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(UnusableAlertError):
        parse_alert(data)


def test_dead_letters_say_where_from_and_why_and_are_bounded() -> None:
    record = dead_letter(Origin("t", 3, 9, None, b"x" * 100_000), "out_of_range", "too much", 0.0)
    letter = orjson.loads(record.value)
    assert (letter["topic"], letter["partition"], letter["offset"], letter["reason"]) == ("t", 3, 9, "out_of_range")
    assert len(base64.b64decode(letter["original"])) == 65_536
    assert letter["timestamp"] == iso_time(0.0) == "1970-01-01T00:00:00.000Z"
