"""The chain of stages: order, poison, models that fail."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from opentelemetry.metrics import NoOpMeterProvider

from infra.bench.events import record
from pipeline.batch import Reason, Scores
from pipeline.features.layout import BASELINE_SIZE, EVIDENCE_VERSION, SAMPLE_SIZE
from pipeline.runners.chain import Chain, ModelsFailed, Scored
from pipeline.stages.deserialize import EvidenceLayout
from pipeline.stages.monitor import Monitor
from pipeline.stages.serialize import AlertSerializer, ModelVersion
from pipeline.state.windows import UserWindows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOW = datetime(2026, 11, 23, 0, 0, 1, tzinfo=UTC)
WIDTH = 4


class Scorer:
    """Scores by the first feature; fails as its hooks say."""

    def __init__(self) -> None:
        self.bad_step: Callable[[np.ndarray], bool] = lambda _: False
        self.bad_score: Callable[[np.ndarray], bool] = lambda _: False
        self.calls = 0

    def describe(self, context: Any, sample: Any, baseline: Any) -> Any:
        if any(map(self.bad_step, context)):
            raise FloatingPointError("describe")
        return np.repeat(context[:, :1], WIDTH, axis=1).astype(np.float32)

    def score(self, context: Any, sample: Any, baseline: Any, window: Any, lengths: Any) -> Scores:
        self.calls += 1
        if any(map(self.bad_score, context)):
            raise RuntimeError("score")
        score = context[:, 0].astype(np.float32)
        level = np.digitize(score, (0.3, 0.7, 0.9)).astype(np.uint8)
        return Scores(score, level, score, window.mean(axis=(1, 2)), score, score, context, sample)

    def explain(self, scores: Scores, indices: Sequence[int]) -> list[list[Reason]]:
        return [
            [Reason("user_behavior_score", f"{scores.threat_score[i]:.2f}", 1.23456, 0.5, "context")] for i in indices
        ]


def chain_of(scorer: Scorer) -> Chain:
    return Chain(
        scorer,
        UserWindows(users=2048, width=WIDTH, batch=1024),
        EvidenceLayout(EVIDENCE_VERSION, SAMPLE_SIZE, BASELINE_SIZE),
        AlertSerializer("node", [ModelVersion("m", "1", 0.9)]),
        Monitor(NoOpMeterProvider().get_meter("test")),
        65_536,
    )


def run(chain: Chain, scores: Sequence[float], wanted: Sequence[bool] | None = None) -> Scored:
    rng = np.random.default_rng(0)
    messages = []
    for number, score in enumerate(scores):
        event = record(number, str(uuid.uuid4()), 1_795_000_000_000, rng)
        event["user_behavior_score"] = score
        messages.append((event["user_id"].encode(), orjson.dumps(event)))
    events, refusals = chain.read(messages)
    assert refusals == []
    flags = np.ones(len(scores), np.bool_) if wanted is None else np.array(wanted)
    return chain.score(events, np.zeros(len(scores), np.int32), flags, lambda: NOW)


def scores_of(scored: Scored) -> list[float]:
    return sorted(orjson.loads(alert.value)["threat_score"] for alert in scored.alerts)


def test_alerts_come_in_order_with_reasons_where_they_are_due() -> None:
    scored = run(chain_of(Scorer()), [0.1, 0.5, 0.95])
    alerts = [orjson.loads(alert.value) for alert in scored.alerts]
    assert [alert["threat_level"] for alert in alerts] == ["normal", "suspicious", "critical"]
    assert [len(alert["reasons"]) for alert in alerts] == [0, 1, 1]
    assert alerts[1]["reasons"][0] == {
        "feature": "user_behavior_score",
        "text": "0.50",
        "deviation": 1.235,
        "contribution": 0.5,
        "modality": "context",
        "simulated": False,
    }
    assert [bool(alert["sample"]) for alert in alerts] == [True, False, False]
    assert [bool(alert["recommendations"]) for alert in alerts] == [False, True, True]
    assert alerts[0]["timestamp"] == "2026-11-23T00:00:01.000Z"


def test_what_only_rebuilds_gives_no_alert_but_fills_windows() -> None:
    assert scores_of(run(chain_of(Scorer()), [0.1, 0.2, 0.3], [False, True, False])) == [0.2]


@pytest.mark.parametrize("hook", ["bad_step", "bad_score"])
def test_poison_is_refused_and_its_neighbours_are_scored(hook: str) -> None:
    scorer = Scorer()
    setattr(scorer, hook, lambda context: 0.799 < context[0] < 0.801)
    scores = np.linspace(0.0, 0.5, 100).round(3).tolist()
    scores[37] = scores[38] = scores[99] = 0.8
    scored = run(chain_of(scorer), scores)
    assert len(scored.alerts) == 97
    assert 0.8 not in scores_of(scored)
    assert [refusal.row for refusal in scored.refusals] == [37, 38, 99]
    assert {refusal.reason for refusal in scored.refusals} == {"not_scorable"}
    assert scorer.calls < 60


def test_a_score_that_is_no_number_is_refused() -> None:
    scorer = Scorer()
    describe = scorer.describe

    def broken(context: Any, sample: Any, baseline: Any) -> Any:
        steps = describe(context, sample, baseline)
        steps[context[:, 0] > 0.9] = np.nan
        return steps

    scorer.describe = broken  # type: ignore[method-assign] # one step fails to be a number
    scored = run(chain_of(scorer), [0.1, 0.95, 0.2])
    assert [refusal.row for refusal in scored.refusals] == [1]
    assert scores_of(scored) == [0.1, 0.2]


def test_models_that_fail_for_everything_blame_no_event() -> None:
    scorer = Scorer()
    scorer.bad_score = lambda _: True
    with pytest.raises(ModelsFailed):
        chain_of(scorer).warm_up(8)
    with pytest.raises(ModelsFailed):
        run(chain_of(scorer), [0.1, 0.2])


def test_an_empty_batch_is_nothing() -> None:
    assert run(chain_of(Scorer()), []).alerts == []
