"""Killed processes, changing groups, poison: every accepted event ends as exactly one alert id, with the score it would
have had."""

from __future__ import annotations

import base64
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.integration.pipeline.conftest import Broker, PipelineProcess

    Start = Callable[..., PipelineProcess]
    Make = Callable[..., list[dict[str, Any]]]

POISON = -666.0


def ids(events: Sequence[dict[str, Any]]) -> set[str]:
    return {event["event_id"] for event in events}


def with_first_value(event: dict[str, Any], value: float) -> dict[str, Any]:
    sample = np.frombuffer(base64.b64decode(event["sample"]), "<f4").copy()
    sample[0] = value
    return event | {"sample": base64.b64encode(sample.tobytes()).decode()}


def assert_same_scores(broker: Broker, events: Sequence[dict[str, Any]], *, nodes: set[bytes]) -> None:
    """Every copy of an alert says the same, whoever made it."""
    for event_id in ids(events):
        copies = broker.alerts[event_id]
        for field in ("threat_score", "sequence_threat_score", "pattern_anomaly_score"):
            scores = [copy[field] for copy in copies]
            assert max(scores) - min(scores) < 1e-4, (field, scores)
    assert broker.nodes >= nodes


def test_every_event_survives_sigkill_under_load(pipelines: Start, broker: Broker, events: Make) -> None:
    witness = pipelines(
        BEHAVIORGUARD_PIPELINE_GROUP="witness-kill", BEHAVIORGUARD_PIPELINE_NODE="witness"
    ).wait_healthy()
    sent = events(6000, users=40)
    first = pipelines().wait_healthy()
    for start in range(0, 3000, 500):
        broker.send(sent[start : start + 500])
    broker.wait(lambda seen: len(seen.made_by(b"node-1")) > 500)
    for start in range(3000, 6000, 500):
        broker.send(sent[start : start + 500])
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    broker.collect(0.5)
    assert not ids(sent) <= broker.made_by(b"node-1")
    pipelines().wait_healthy()
    everything = ids(sent)
    broker.wait(lambda seen: everything <= (seen.made_by(b"node-1") | seen.made_by(b"node-2")))
    broker.wait(lambda seen: everything <= seen.made_by(b"witness"))
    assert broker.alerts.keys() & everything == everything
    assert_same_scores(broker, sent, nodes={b"witness", b"node-1", b"node-2"})
    assert witness.end() == 0


def test_a_second_process_takes_over_partitions_with_their_windows(
    pipelines: Start, broker: Broker, events: Make
) -> None:
    pipelines(BEHAVIORGUARD_PIPELINE_GROUP="witness-share", BEHAVIORGUARD_PIPELINE_NODE="witness").wait_healthy()
    sent = events(1200, users=40)
    first = pipelines().wait_healthy()
    broker.send(sent[:400])
    broker.wait_for_alerts(ids(sent[:400]))
    second = pipelines()
    second.wait(lambda status, report: status == 200 and 0 < len(report["partitions"]) < 8)
    first.wait(lambda status, report: status == 200 and 0 < len(report["partitions"]) < 8)
    broker.send(sent[400:800])
    broker.wait_for_alerts(ids(sent[:800]))
    assert first.end() == 0
    second.wait(lambda status, report: status == 200 and len(report["partitions"]) == 8)
    broker.send(sent[800:])
    both = ids(sent)
    broker.wait(lambda seen: both <= (seen.made_by(b"node-1") | seen.made_by(b"node-2")))
    broker.wait(lambda seen: both <= seen.made_by(b"witness"))
    assert_same_scores(broker, sent, nodes={b"witness", b"node-1", b"node-2"})


def test_an_event_that_the_models_cannot_score_is_a_dead_letter(pipelines: Start, broker: Broker, events: Make) -> None:
    pipelines().wait_healthy()
    sent = events(200, users=5)
    poisoned = [with_first_value(event, POISON) for event in sent[50:53]]
    broker.send([*sent[:50], *poisoned, *sent[53:]])
    broker.wait_for_alerts(ids(sent[:50] + sent[53:]))
    broker.wait(lambda seen: sum(letter["reason"] == "not_scorable" for letter in seen.letters) >= 3)
    assert not broker.alerts.keys() & ids(poisoned)


def test_what_cannot_be_delivered_is_not_committed(pipelines: Start, broker: Broker, events: Make) -> None:
    """Alerts do not fit the first process's producer: it gives up, and the next one scores everything."""
    process = pipelines(
        BEHAVIORGUARD_KAFKA_OPTIONS='{"message.max.bytes": "1000"}', BEHAVIORGUARD_PIPELINE_FAILURES="2"
    ).wait_healthy()
    sent = events(20, users=1)
    before = len(broker.letters)
    broker.send_raw(sent[0]["user_id"].encode(), b"{")
    broker.send(sent)
    process.wait_end()
    assert process.end_code() == 1
    assert "MSG_SIZE_TOO_LARGE" in process.log.read_text()
    pipelines().wait_healthy()
    broker.wait_for_alerts(ids(sent)).wait(lambda seen: len(seen.letters) > before)
    assert {len(broker.alerts[event_id]) for event_id in ids(sent)} == {1}


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_finishes_what_it_read(
    pipelines: Start, broker: Broker, events: Make, stop: signal.Signals
) -> None:
    process = pipelines().wait_healthy()
    sent = events(2000, users=20)
    broker.send(sent)
    broker.wait(lambda seen: bool(ids(sent) & seen.alerts.keys()))
    assert process.end(stop) == 0
    pipelines().wait_healthy()
    broker.wait_for_alerts(ids(sent))
    assert {len(broker.alerts[event_id]) for event_id in ids(sent)} == {1}
