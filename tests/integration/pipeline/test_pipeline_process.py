"""The pipeline as a process, on a broker, over sockets."""

from __future__ import annotations

import base64
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.integration.pipeline.conftest import Broker, PipelineProcess

    Start = Callable[..., PipelineProcess]
    Make = Callable[..., list[dict[str, Any]]]


def ids(events: Sequence[dict[str, Any]]) -> set[str]:
    return {event["event_id"] for event in events}


def test_every_event_becomes_an_alert_of_the_contract(pipelines: Start, broker: Broker, events: Make) -> None:
    pipelines().wait_healthy()
    sent = events(300, users=7)
    broker.send(sent)
    broker.wait_for_alerts(ids(sent))
    by_id = {event["event_id"]: event for event in sent}
    for event_id, copies in broker.alerts.items():
        if event_id not in by_id:
            continue
        (alert,) = copies
        event = by_id[event_id]
        for name in (
            "user_id",
            "session_id",
            "organization_id",
            "correlation_id",
            "evidence_version",
            "simulated_features",
        ):
            assert alert[name] == event[name]
        assert alert["occurred_at"] == event["timestamp"]
        assert 0 <= alert["threat_score"] <= 1
        assert len(alert["features"]) == 15
        assert [model["name"] for model in alert["model_versions"]] == [
            "anomaly-detection",
            "sequence-analysis",
            "behavioral-transformer",
        ]
        assert alert["sample"] == (event["sample"] if alert["threat_level"] == "normal" else "")
        headers = broker.headers[event_id]
        assert headers["alert-level"].decode() == alert["threat_level"]
        assert headers["user-id"].decode() == event["user_id"]
        assert headers["correlation-id"].decode() == event["correlation_id"]
        assert headers["processing-node"] == b"node-0"


def test_bad_messages_become_dead_letters_and_harm_no_neighbour(pipelines: Start, broker: Broker, events: Make) -> None:
    pipelines().wait_healthy()
    sent = events(60, users=3)
    infinite = base64.b64encode(
        np.full(len(base64.b64decode(sent[0]["sample"])) // 4, np.inf, "<f4").tobytes()
    ).decode()
    bad: list[tuple[str, bytes | None]] = [
        ("malformed_json", b"{"),
        ("malformed_json", b'{"user_id": NaN}'),
        ("malformed_json", b"\xff\xfe"),
        ("malformed_json", None),
        ("malformed_json", orjson.dumps(sent[0] | {"event_id": "1"})),
        ("missing_field", b"{}"),
        ("missing_field", orjson.dumps({k: v for k, v in sent[0].items() if k != "failed_auth_ratio"})),
        ("not_finite", orjson.dumps(sent[0] | {"sample": infinite})),
        ("out_of_range", orjson.dumps(sent[0] | {"network_activity": 1.5})),
        ("wrong_size", orjson.dumps(sent[0] | {"baseline": sent[0]["sample"]})),
        ("unknown_version", orjson.dumps(sent[0] | {"evidence_version": 99})),
        ("too_large", b" " * 100_000),
    ]
    key = sent[0]["user_id"].encode()
    for number, event in enumerate(sent):
        broker.send_raw(event["user_id"].encode(), orjson.dumps(event))
        if number < len(bad):
            broker.send_raw(key, bad[number][1])
    broker.flush()
    broker.wait_for_alerts(ids(sent)).wait(lambda seen: len(seen.letters) >= len(bad))
    letters = broker.letters
    assert [letter["reason"] for letter in letters] == [reason for reason, _ in bad]
    assert base64.b64decode(letters[0]["original"]) == b"{"
    assert len(base64.b64decode(letters[-1]["original"])) == 65_536
    assert all(letter["topic"] == "threat-events" and letter["detail"] for letter in letters)


def test_the_same_event_twice_is_scored_once(pipelines: Start, broker: Broker, events: Make) -> None:
    pipelines().wait_healthy()
    sent = events(40, users=2)
    last = events(10, users=2)
    broker.send(sent)
    broker.wait_for_alerts(ids(sent))
    broker.send(sent + last)
    broker.wait_for_alerts(ids(last))
    assert {len(broker.alerts[event_id]) for event_id in ids(sent)} == {1}


def test_after_sigterm_the_next_process_goes_on_with_the_same_windows(
    pipelines: Start, broker: Broker, events: Make
) -> None:
    """Scores over a restart equal those of a process that never stopped."""
    sent = events(240, users=4)
    uninterrupted = pipelines(BEHAVIORGUARD_PIPELINE_GROUP="uninterrupted", BEHAVIORGUARD_PIPELINE_NODE="uninterrupted")
    uninterrupted.wait_healthy()
    first = pipelines().wait_healthy()
    broker.send(sent[:150])
    broker.wait(lambda seen: all(len(seen.alerts.get(event, [])) == 2 for event in ids(sent[:150])))
    assert first.end() == 0
    second = pipelines().wait_healthy()
    broker.send(sent[150:])
    broker.wait(lambda seen: all(len(seen.alerts.get(event, [])) == 2 for event in ids(sent)))
    for event_id in ids(sent):
        one, other = broker.alerts[event_id]
        np.testing.assert_allclose(one["threat_score"], other["threat_score"], atol=1e-4)
        np.testing.assert_allclose(one["sequence_threat_score"], other["sequence_threat_score"], atol=1e-4)
    assert 'kind="rebuilt"' in second.metrics()


def test_health_says_when_the_broker_is_away(pipelines: Start) -> None:
    process = pipelines(BEHAVIORGUARD_KAFKA_BOOTSTRAP="127.0.0.1:9")
    process.wait(
        lambda status, report: (
            status == 503 and report["dependencies"]["external_services"]["kafka"]["status"] == "unreachable"
        )
    )
    assert process.end(signal.SIGTERM) == 0
