"""The shipped models on real recordings, where they are there: a guard against breaking the chain, no measurement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.evaluation import metrics
from infra.evaluation.protocol import Plan
from infra.evaluation.recordings import read_keystrokes
from infra.evaluation.threat import People, measure
from pipeline.backends.onnx import OnnxBackend
from pipeline.parameters import Parameters
from pipeline.scoring import ANOMALY, PATTERN, SEQUENCE, Scorer

MODELS = Path(__file__).parents[3] / "pipeline" / "models"
RECORDINGS = Path(os.environ.get("BEHAVIORGUARD_EVAL_DATA", "")) / "keystroke" / "meu_mobile_subjects_1-40.csv"


@pytest.mark.skipif(
    not os.environ.get("BEHAVIORGUARD_EVAL_DATA") or not RECORDINGS.is_file(),
    reason="BEHAVIORGUARD_EVAL_DATA does not name a folder with keystroke recordings",
)
def test_takeovers_of_real_typists_are_noticed() -> None:
    people = People.of(read_keystrokes(RECORDINGS)[:8], [])
    scorer = Scorer(OnnxBackend(MODELS, (ANOMALY, SEQUENCE, PATTERN)), Parameters.load(MODELS))
    played = measure(people, scorer, plans={"typing": Plan(own=4, attackers=6)})["typing"]
    found = metrics.modality(played)
    assert found["by_events"]["5"]["balanced_accuracy"] > 0.93
    assert found["false_alarms_per_session"] < 0.15
