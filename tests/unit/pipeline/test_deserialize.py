"""Bytes to arrays: what is right is read exactly, what is wrong is refused with its reason and alone."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features.layout import CONTEXT
from pipeline.stages.deserialize import CONTEXT_FIELDS, EvidenceLayout, deserialize

LAYOUT = EvidenceLayout(version=3, sample_slots=4, baseline_slots=6)
REASONS = {
    "malformed_json",
    "missing_field",
    "not_finite",
    "out_of_range",
    "wrong_size",
    "unknown_version",
    "too_large",
}


def packed(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


def record(**changes: Any) -> dict[str, Any]:
    ids = {f"{name}_id": str(uuid.uuid4()) for name in ("user", "event", "session", "organization", "correlation")}
    numbers = dict.fromkeys(CONTEXT_FIELDS, 0.25) | {"threat_indicators": 3, "session_duration": 60}
    return {
        **ids,
        **numbers,
        "timestamp": "2026-11-23T00:00:00.5Z",
        "source": "behavioral",
        "evidence_version": 3,
        "sample": packed(1, 2, float("nan"), 4),
        "baseline": packed(*range(6)),
        "simulated_features": ["network_activity"],
        "accepted_at_ms": 1_795_000_000_000,
    } | changes


def message(**changes: Any) -> tuple[bytes, bytes]:
    fields = record(**changes)
    return str(fields["user_id"]).encode(), orjson.dumps(fields)


def test_the_features_are_those_of_the_models_in_their_order() -> None:
    assert CONTEXT_FIELDS == CONTEXT


def test_a_record_is_read_exactly() -> None:
    fields = record()
    events, refusals = deserialize([(fields["user_id"].encode(), orjson.dumps(fields))], LAYOUT)
    assert refusals == []
    assert events.context.tolist() == [[fields[name] for name in CONTEXT_FIELDS]]
    np.testing.assert_array_equal(events.sample, np.array([[1, 2, np.nan, 4]], np.float32))
    np.testing.assert_array_equal(events.baseline, np.arange(6, dtype=np.float32)[None])
    for column, name in (
        (events.user_ids, "user_id"),
        (events.event_ids, "event_id"),
        (events.session_ids, "session_id"),
        (events.organization_ids, "organization_id"),
        (events.correlation_ids, "correlation_id"),
        (events.timestamps, "timestamp"),
        (events.simulated_features, "simulated_features"),
        (events.sample_texts, "sample"),
    ):
        assert list(column) == [fields[name]]
    assert events.accepted_at_ms.tolist() == [1_795_000_000_000]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("malformed_json", {"network_activity": "0.5"}),
        ("malformed_json", {"network_activity": True}),
        ("malformed_json", {"network_activity": None}),
        ("malformed_json", {"network_activity": [0.5]}),
        ("malformed_json", {"threat_indicators": 1.0}),
        ("malformed_json", {"session_duration": "60"}),
        ("malformed_json", {"event_id": "0" * 36}),
        ("malformed_json", {"event_id": 5}),
        ("malformed_json", {"correlation_id": ""}),
        ("malformed_json", {"session_id": "é" * 36}),
        ("malformed_json", {"timestamp": "yesterday"}),
        ("malformed_json", {"timestamp": "2026-11-23T00:00:00"}),
        ("malformed_json", {"timestamp": '2026-11-23"00:00:00Z'}),
        ("malformed_json", {"timestamp": 0}),
        ("malformed_json", {"sample": "not base64!"}),
        ("malformed_json", {"sample": [1.0, 2.0]}),
        ("not_finite", {"sample": packed(1, 2, 3, float("inf"))}),
        ("not_finite", {"baseline": packed(0, 0, 0, 0, 0, float("-inf"))}),
        ("out_of_range", {"network_activity": 1.001}),
        ("out_of_range", {"network_activity": -0.001}),
        ("out_of_range", {"threat_indicators": 11}),
        ("out_of_range", {"session_duration": 604_801}),
        ("out_of_range", {"session_duration": 10**18}),
        ("out_of_range", {"source": "telepathy"}),
        ("out_of_range", {"source": {}}),
        ("out_of_range", {"simulated_features": ["nonsense"]}),
        ("out_of_range", {"simulated_features": "network_activity"}),
        ("out_of_range", {"accepted_at_ms": 0}),
        ("out_of_range", {"accepted_at_ms": "now"}),
        ("out_of_range", {"sample": packed(1, 2, 3, 1e30)}),
        ("wrong_size", {"sample": packed(1, 2, 3)}),
        ("wrong_size", {"baseline": ""}),
        ("unknown_version", {"evidence_version": 2}),
        ("unknown_version", {"evidence_version": True}),
        ("unknown_version", {"evidence_version": "3"}),
    ],
)
def test_what_is_wrong_is_refused_alone(reason: str, changes: dict[str, Any]) -> None:
    neighbours = [message() for _ in range(4)]
    bad = message(**changes)
    events, refusals = deserialize([*neighbours[:2], bad, *neighbours[2:]], LAYOUT)
    assert [(refusal.row, refusal.reason) for refusal in refusals] == [(2, reason)]
    assert events.rows.tolist() == [0, 1, 3, 4]
    alone, _ = deserialize(neighbours, LAYOUT)
    assert list(events.event_ids) == list(alone.event_ids)
    np.testing.assert_array_equal(events.sample, alone.sample)


def test_different_faults_in_one_field_are_each_refused() -> None:
    values = [3, "3", 1.5, 11, None]
    events, refusals = deserialize([message(threat_indicators=value) for value in values], LAYOUT)
    assert events.rows.tolist() == [0]
    assert [(refusal.row, refusal.reason) for refusal in refusals] == [
        (1, "malformed_json"),
        (2, "malformed_json"),
        (3, "out_of_range"),
        (4, "malformed_json"),
    ]


@settings(max_examples=300, deadline=None)
@given(
    st.text("AQgw+/=-_ \n", max_size=28)
    | st.binary(min_size=16, max_size=16).map(lambda b: base64.b64encode(b).decode())
)
def test_evidence_is_read_as_the_standard_library_reads_it(text: str) -> None:
    events, refusals = deserialize([message(sample=text)], LAYOUT)
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError:
        values = np.empty(0, np.float32)
    if refusals:
        assert len(values) != 4 or np.isinf(values).any() or (np.abs(values) > 1e9).any()
    else:
        np.testing.assert_array_equal(events.sample[0], values)


@pytest.mark.parametrize("name", sorted(record()))
def test_every_field_is_needed(name: str) -> None:
    fields = record()
    key = fields["user_id"].encode()
    del fields[name]
    _, (refusal,) = deserialize([(key, orjson.dumps(fields))], LAYOUT)
    assert (refusal.reason, refusal.detail) == ("missing_field", f"{name} is missing")


def test_the_key_must_be_the_user() -> None:
    good, (_, value) = message(), message()
    for key in (None, b"", good[0], b"\xff" * 36):
        _, refusals = deserialize([good, (key, value), good], LAYOUT)
        assert [refusal.row for refusal in refusals] == [1]


def test_a_refusal_never_carries_content() -> None:
    secret = "correct horse battery staple"
    values = [orjson.dumps(record(**{name: secret})) for name in record()] + [
        secret.encode(),
        b'{"%s": 1}' % secret.encode(),
    ]
    _, refusals = deserialize([(b"k", value) for value in values], LAYOUT)
    assert len(refusals) == len(values)
    assert not any(secret in refusal.detail for refusal in refusals)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=1500, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(record())), json_values, min_size=1, max_size=4))
def test_no_change_of_fields_harms_a_neighbour(changes: dict[str, Any]) -> None:
    neighbours = [message(), message()]
    batch = [neighbours[0], (b"key", orjson.dumps(record() | changes)), neighbours[1]]
    events, refusals = deserialize(batch, LAYOUT)
    assert {refusal.reason for refusal in refusals} <= REASONS
    assert {0, 2} <= set(events.rows.tolist())
    assert len(events) + len(refusals) == 3
    assert np.isfinite(events.context).all()
    assert not np.isinf(events.sample).any()


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_no_change_of_bytes_harms_a_neighbour(data: st.DataObject) -> None:
    key, value = message()
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "noise"]))
    at = data.draw(st.integers(0, len(value) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=30))
    broken = {
        "cut": value[:at],
        "flip": value[:at] + bytes([value[at] ^ noise[0]]) + value[at + 1 :],
        "insert": value[:at] + noise + value[at:],
        "noise": noise,
    }[kind]
    events, refusals = deserialize([message(), (key, broken), message()], LAYOUT)
    assert {0, 2} <= set(events.rows.tolist())
    assert len(events) + len(refusals) == 3
    assert {refusal.reason for refusal in refusals} <= REASONS


def test_nothing_valid_gives_an_empty_batch() -> None:
    events, refusals = deserialize([(None, None), (b"k", b"{"), (b"k", b"[" * 100_000)], LAYOUT)
    assert len(events) == 0
    assert [refusal.reason for refusal in refusals] == ["malformed_json", "malformed_json", "too_large"]
    assert events.context.shape == (0, 15)
    assert deserialize([], LAYOUT)[1] == []
