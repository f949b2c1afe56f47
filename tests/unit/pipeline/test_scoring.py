from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.backends.onnx import OnnxBackend
from pipeline.batch import LEVELS
from pipeline.features import layout
from pipeline.features.describe import STEP
from pipeline.features.expand import NAMES
from pipeline.parameters import PARAMETERS_FILE, Parameters
from pipeline.scoring import ANOMALY, PATTERN, SEQUENCE, Scorer
from pipeline.stages.classify import classify
from pipeline.stages.ensemble import combine
from pipeline.stages.recommendations import recommendations_for

if TYPE_CHECKING:
    from pipeline.batch import Scores

MODELS = Path(__file__).parents[3] / "pipeline" / "models"


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return Parameters.load(MODELS)


@pytest.fixture(scope="module")
def scorer(parameters: Parameters) -> Scorer:
    return Scorer(OnnxBackend(MODELS, (ANOMALY, SEQUENCE, PATTERN)), parameters)


def people(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neutral context, samples and mature baselines of made-up values."""
    random = np.random.default_rng(seed)
    context = np.full((count, 15), 0.5, np.float32)
    context[:, [8, 9, 12, 13, 14]] = 0.0
    sample = random.normal(4.0, 0.3, (count, layout.SAMPLE_SIZE)).astype(np.float32)
    sample[:, 0] = 77.0
    sample[:, 1 + layout.GROUP_SLICES[5].start :] = np.nan  # made-up movement would be like nobody's
    header = np.tile(np.array([30, 100, 30, 77] + [0.8] * 6 + [0.25] * 6, np.float32), (count, 1))
    measures = len(layout.MEASURES)
    mean = np.full((count, measures), 4.0, np.float32)
    spread = np.full((count, measures), 0.3, np.float32)
    return context, sample, np.concatenate([header, mean, spread], 1)


def score_alone(scorer: Scorer, events: int, shift: float = 0.0) -> tuple[Scores, np.ndarray]:
    context, sample, vector = people(events)
    sample[:, 1:] += shift
    window = np.zeros((1, 50, layout.STEP_SIZE), np.float32)
    window[0, -events:] = scorer.describe(context, sample, vector)
    return scorer.score(context[-1:], sample[-1:], vector[-1:], window, np.array([events])), window


def test_scores_rise_when_somebody_else_acts(scorer: Scorer) -> None:
    own, _ = score_alone(scorer, 10)
    other, _ = score_alone(scorer, 10, shift=1.2)
    assert own.threat_score[0] < 0.3
    assert other.threat_score[0] > 0.7


def test_a_person_of_whom_nothing_is_known_raises_no_alert(scorer: Scorer) -> None:
    context, sample, vector = people(1)
    vector[:, : len(layout.BASELINE_HEADER)] = 0.0
    window = np.zeros((1, 50, layout.STEP_SIZE), np.float32)
    window[0, -1:] = scorer.describe(context, sample, vector)
    found = scorer.score(context, sample, vector, window, np.array([1]))
    assert LEVELS[found.level[0]] == "normal"
    context[:, layout.CONTEXT.index("privilege_escalation_attempt")] = 1.0
    context[:, layout.CONTEXT.index("location_consistency")] = 0.0
    window[0, -1:] = scorer.describe(context, sample, vector)
    assert scorer.score(context, sample, vector, window, np.array([1])).threat_score[0] > found.threat_score[0]


def test_ensemble_is_the_documented_mean(scorer: Scorer) -> None:
    found, _ = score_alone(scorer, 5, shift=0.4)
    expected = 0.4 * found.anomaly + 0.3 * found.sequence + 0.3 * found.pattern
    np.testing.assert_allclose(found.threat_score, expected, rtol=1e-6)


def test_levels_begin_at_the_documented_thresholds() -> None:
    levels = classify(np.array([0.0, 0.29, 0.3, 0.69, 0.7, 0.89, 0.95, 1.0], np.float32))
    assert [LEVELS[level] for level in levels] == [
        "normal",
        "normal",
        "suspicious",
        "suspicious",
        "threat",
        "threat",
        "critical",
        "critical",
    ]


def test_a_batch_scores_as_its_events_do(scorer: Scorer) -> None:
    context, sample, vector = people(7, seed=4)
    steps = scorer.describe(context, sample, vector)
    window = np.zeros((7, 50, layout.STEP_SIZE), np.float32)
    window[:, -1] = steps
    together = scorer.score(context, sample, vector, window, np.ones(7, np.int64)).threat_score
    alone = [
        scorer.score(context[i : i + 1], sample[i : i + 1], vector[i : i + 1], window[i : i + 1], np.ones(1, np.int64))
        for i in range(7)
    ]
    np.testing.assert_allclose(together, [found.threat_score[0] for found in alone], atol=2e-5)


def test_context_raises_the_score_by_a_fixed_amount(scorer: Scorer) -> None:
    context, sample, vector = people(1)
    suspicious = context.copy()
    suspicious[0, layout.CONTEXT.index("location_consistency")] = 0.0
    found = []
    for values in (context, suspicious):
        window = np.zeros((1, 50, layout.STEP_SIZE), np.float32)
        window[0, -1] = scorer.describe(values, sample, vector)
        result = scorer.score(values, sample, vector, window, np.ones(1, np.int64))
        found.append(np.log(result.sequence[0] / (1 - result.sequence[0])))
    assert found[1] - found[0] == pytest.approx(2.0, abs=0.05)


def test_reasons_are_sentences_about_what_strayed(scorer: Scorer) -> None:
    found, _ = score_alone(scorer, 10, shift=1.2)
    reasons = scorer.explain(found, [0])[0]
    assert 1 <= len(reasons) <= 5
    assert sum(reason.contribution for reason in reasons) <= 1 + 1e-6
    assert len({reason.text for reason in reasons}) == len(reasons)
    for reason in reasons:
        assert reason.feature in NAMES
        assert reason.text.endswith(".")
        assert reason.modality in {"typing", "mouse", "navigation", "context"}
    contributions = [reason.contribution for reason in reasons]
    assert contributions == sorted(contributions, reverse=True)


def test_every_level_has_its_recommendations() -> None:
    assert recommendations_for("normal") == ()
    assert all(recommendations_for(level) for level in LEVELS[1:])


def test_weights_and_thresholds_are_the_documents() -> None:
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.float32)
    assert combine(ones, zeros, zeros) == pytest.approx(0.4)
    assert combine(zeros, ones, zeros) == combine(zeros, zeros, ones) == pytest.approx(0.3)


def test_missing_parameters_say_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model repository"):
        Parameters.load(tmp_path)


def test_parameters_survive_a_round_trip(parameters: Parameters, tmp_path: Path) -> None:
    parameters.save(tmp_path)
    assert (tmp_path / PARAMETERS_FILE).is_file()
    again = Parameters.load(tmp_path)
    np.testing.assert_array_equal(again.typing.project, parameters.typing.project)
    np.testing.assert_array_equal(again.anomaly.raw, parameters.anomaly.raw)
    assert again.model_accuracy == parameters.model_accuracy
    assert again.version == parameters.version


def test_an_empty_window_counts_for_nothing(scorer: Scorer) -> None:
    """Rows of zeros before the first step leave the LSTM's state at zero: windows of any length need no mask."""
    context, sample, vector = people(1)
    window = np.zeros((1, 50, layout.STEP_SIZE), np.float32)
    window[0, -1] = scorer.describe(context, sample, vector)
    found = scorer.score(context, sample, vector, window, np.ones(1, np.int64))
    assert np.isfinite(found.threat_score).all()
    assert window[0, :-1, STEP["present"]].sum() == 0


wild: Any = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_values_break_the_scores(scorer: Scorer, data: st.DataObject) -> None:
    context = data.draw(arrays.arrays(np.float32, (2, 15), elements=wild))
    sample = data.draw(arrays.arrays(np.float32, (2, layout.SAMPLE_SIZE), elements=wild, fill=wild))
    vector = data.draw(arrays.arrays(np.float32, (2, layout.BASELINE_SIZE), elements=wild, fill=wild))
    with np.errstate(all="ignore"):
        window = np.zeros((2, 50, layout.STEP_SIZE), np.float32)
        window[:, -1] = scorer.describe(context, sample, vector)
        found = scorer.score(context, sample, vector, window, np.ones(2, np.int64))
        reasons = scorer.explain(found, [0, 1])
    for values in (found.threat_score, found.anomaly, found.sequence, found.pattern, found.confidence):
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()
    assert all(np.isfinite(reason.deviation) for row in reasons for reason in row)
