from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.features import layout
from pipeline.features.describe import STEP, context_odds, describe, regime_of
from pipeline.features.expand import NAMES, expand
from pipeline.parameters import Parameters
from servers.threat import baseline, behavior

MODELS = Path(__file__).parents[3] / "pipeline" / "models"


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return Parameters.load(MODELS)


def test_both_sides_agree_on_the_layout() -> None:
    assert layout.SLOTS == behavior.SLOTS
    assert layout.EVIDENCE_VERSION == behavior.EVIDENCE_VERSION
    assert layout.MEASURES == baseline.MEASURES
    assert layout.BASELINE_HEADER == baseline.HEADER
    assert layout.BASELINE_SIZE == baseline.BASELINE_SIZE
    assert layout.GROUPS == baseline.GROUPS


def test_features_are_named_once() -> None:
    assert len(set(NAMES)) == len(NAMES) == 256


def test_unknown_people_give_a_neutral_step(parameters: Parameters) -> None:
    nothing = np.full((2, layout.SAMPLE_SIZE), np.nan, np.float32)
    empty = np.full((2, layout.BASELINE_SIZE), np.nan, np.float32)
    step = describe(np.full((2, 15), np.nan, np.float32), nothing, empty, parameters)
    assert (step[:, STEP["present"]] == 1).all()
    assert (step[:, STEP["event_odds"]] == 0).all()
    assert (step[:, 1:5] == 0).all()


def test_the_owner_fits_better_than_somebody_else(parameters: Parameters) -> None:
    random = np.random.default_rng(3)
    centre = random.normal(0, 0.3, layout.SAMPLE_SIZE)
    profile = baseline.Profile()

    def event(shift: float) -> np.ndarray:
        sample = (4.0 + centre + shift + random.normal(0, 0.15, layout.SAMPLE_SIZE)).astype(np.float32)
        sample[0] = behavior.prompt_code("something-else")
        return sample

    for _ in range(20):
        profile.learn(event(0.0))
    samples = np.stack([event(0.0) for _ in range(10)] + [event(0.8) for _ in range(10)])
    vectors = np.stack([profile.vector(sample) for sample in samples])
    odds = describe(np.zeros((20, 15), np.float32), samples, vectors, parameters)[:, STEP["typing_odds"]]
    assert odds[:10].mean() > odds[10:].mean() + 0.5


def test_context_moves_the_odds_only_away_from_neutral() -> None:
    neutral = np.full((1, 15), 0.5, np.float32)
    for name in ("api_usage_anomaly", "data_access_risk", "navigation_anomaly", "privilege_escalation_attempt"):
        neutral[0, layout.CONTEXT.index(name)] = 0
    neutral[0, layout.CONTEXT.index("failed_auth_ratio")] = 0
    assert context_odds(neutral) == 0
    far = neutral.copy()
    far[0, layout.CONTEXT.index("location_consistency")] = 0
    assert context_odds(far) == pytest.approx(2)
    unknown = np.full((1, 15), np.nan, np.float32)
    assert context_odds(unknown) == 0


def test_an_identifier_is_not_read(parameters: Parameters) -> None:
    window = np.zeros((1, 50, layout.STEP_SIZE), np.float32)
    deviation = np.zeros((1, len(layout.MEASURES)), np.float32)
    one, other = (np.full((1, 15), 0.5, np.float32) for _ in range(2))
    for name in ("device_fingerprint_hash", "session_duration", "threat_indicators"):
        other[0, layout.CONTEXT.index(name)] = 0.9
    np.testing.assert_array_equal(expand(one, deviation, window), expand(other, deviation, window))


def test_means_are_taken_over_the_latest_observed_steps() -> None:
    window = np.zeros((1, 50, layout.STEP_SIZE), np.float32)
    window[0, -4:, STEP["present"]] = 1
    window[0, -2:, STEP["typing_present"]] = 1
    window[0, -2:, STEP["typing_odds"]] = (1.0, 3.0)
    features = expand(np.zeros((1, 15), np.float32), np.full((1, len(layout.MEASURES)), np.nan, np.float32), window)
    assert features[0, NAMES.index("mean_50.typing_odds")] == pytest.approx(2)
    assert features[0, NAMES.index("window.fill")] == pytest.approx(4 / 50)


def test_regimes_follow_what_was_observed() -> None:
    window = np.zeros((4, 50, layout.STEP_SIZE), np.float32)
    window[:, -1, STEP["present"]] = 1
    window[0, -3, [STEP["typing_present"], STEP["phrase_known"], STEP["touch_present"]]] = 1
    window[1, -1, [STEP["typing_present"], STEP["phrase_known"]]] = 1
    window[2, -1, STEP["typing_present"]] = 1
    assert regime_of(window).tolist() == [0, 1, 2, 3]


wild = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_values_break_the_features(parameters: Parameters, data: st.DataObject) -> None:
    context = data.draw(arrays.arrays(np.float32, (3, 15), elements=wild))
    sample = data.draw(arrays.arrays(np.float32, (3, layout.SAMPLE_SIZE), elements=wild, fill=wild))
    vector = data.draw(arrays.arrays(np.float32, (3, layout.BASELINE_SIZE), elements=wild, fill=wild))
    sample[0, 0] = vector[0, 3] = parameters.typing.prompt
    with np.errstate(all="ignore"):
        step = describe(context, sample, vector, parameters)
    assert np.isfinite(step).all()
    assert (np.abs(step) <= 4).all()
