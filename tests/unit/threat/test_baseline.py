from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from servers.threat.baseline import BASELINE_SIZE, HEADER, MEASURES, MEMORY, SAMPLES_NEEDED, Profile, deviations
from servers.threat.behavior import MOUSE, PROMPT, SLOT_INDEX, SLOTS, TYPING, prompt_code


def samples(count: int, shift: float = 0.0, prompt: str = "p", seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    found = (random.normal(3.0, 0.2, (count, len(SLOTS))) + shift).astype(np.float32)
    found[:, PROMPT] = prompt_code(prompt)
    return list(found)


def enrolled(count: int = 20) -> Profile:
    profile = Profile()
    for sample in samples(count):
        profile.learn(sample)
    return profile


def test_enrolment_ends_after_enough_samples() -> None:
    profile = Profile()
    for index, sample in enumerate(samples(SAMPLES_NEEDED)):
        assert profile.enrolling, index
        profile.learn(sample)
    assert not profile.enrolling
    assert profile.typing_samples == profile.mouse_samples == SAMPLES_NEEDED


def test_modalities_count_apart() -> None:
    profile = Profile()
    for sample in samples(3):
        only_mouse = sample.copy()
        only_mouse[: TYPING.stop] = np.nan
        profile.learn(only_mouse)
    assert (profile.typing_samples, profile.mouse_samples) == (0, 3)


def test_vector_holds_mean_and_spread() -> None:
    profile = enrolled(40)
    vector = profile.vector(samples(1)[0])
    assert vector.shape == (BASELINE_SIZE,)
    assert vector.dtype == np.float32
    at = MEASURES.index("hold_01")
    assert vector[len(HEADER) + at] == pytest.approx(3.0, abs=0.15)
    assert vector[len(HEADER) + len(MEASURES) + at] == pytest.approx(0.2, abs=0.1)
    assert vector[HEADER.index("typing_samples")] == 40


def test_vector_is_kept_until_the_next_sample() -> None:
    profile = enrolled()
    sample = samples(1)[0]
    first = profile.vector(sample)
    assert profile.vector(sample) is first
    profile.learn(sample)
    assert profile.vector(sample) is not first


def test_an_empty_profile_knows_nothing() -> None:
    vector = Profile().vector()
    assert np.isnan(vector[len(HEADER) :]).all()
    assert deviations(Profile(), samples(1)[0]) == deviations(Profile(), np.full(len(SLOTS), np.nan, np.float32))


def test_positions_belong_to_their_text() -> None:
    profile = enrolled()
    other = samples(1, prompt="another")[0]
    vector = profile.vector(other)
    assert np.isnan(vector[len(HEADER) + MEASURES.index("hold_01")])
    assert np.isfinite(vector[len(HEADER) + MEASURES.index("hold_mean")])


def test_only_the_last_texts_are_kept() -> None:
    profile = Profile()
    for text in range(30):
        profile.learn(samples(1, prompt=str(text))[0])
    assert len(profile.to_json()["prompts"]) == 4


def test_own_samples_deviate_less_than_somebody_elses() -> None:
    profile = enrolled()
    own = [deviations(profile, sample) for sample in samples(10, seed=5)]
    other = [deviations(profile, sample) for sample in samples(10, shift=1.0, seed=6)]
    assert np.mean([found.overall for found in own]) < 0.3
    assert np.mean([found.overall for found in other]) > 0.8


def test_unobserved_modalities_are_neutral() -> None:
    typed = samples(1, shift=2.0)[0]
    typed[MOUSE] = np.nan
    found = deviations(enrolled(), typed)
    assert found.mouse == 0.5
    assert found.typing > 0.9


def test_json_round_trip() -> None:
    profile = enrolled()
    sample = samples(1)[0]
    again = Profile.from_json(json.loads(json.dumps(profile.to_json())))
    np.testing.assert_array_equal(again.vector(sample), profile.vector(sample))


def test_a_copy_is_independent() -> None:
    profile = enrolled()
    before = profile.vector(samples(1)[0]).copy()
    other = profile.copy()
    other.learn(samples(1, shift=3.0)[0])
    np.testing.assert_array_equal(profile.vector(samples(1)[0]), before)


@pytest.mark.parametrize("damage", [{"version": 99}, {"all": [[1.0], [1.0], [1.0]]}, {"self": None}])
def test_damaged_json_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="profile"):
        Profile.from_json({**enrolled().to_json(), **damage})
    with pytest.raises(ValueError, match="damaged"):
        Profile.from_json({})


def test_one_wild_sample_moves_the_mean_little() -> None:
    profile = enrolled()
    at = len(HEADER) + MEASURES.index("hold_mean")
    before = profile.vector(samples(1)[0])[at]
    wild = samples(1)[0].copy()
    wild[SLOT_INDEX["hold_mean"]] = 1e6
    profile.learn(wild)
    assert abs(profile.vector(samples(1)[0])[at] - before) < 0.1


def test_the_mean_follows_a_lasting_change() -> None:
    profile = enrolled()
    for sample in samples(int(3 * MEMORY), shift=0.3, seed=9):
        profile.learn(sample)
    assert profile.vector(samples(1)[0])[len(HEADER) + MEASURES.index("hold_mean")] == pytest.approx(3.3, abs=0.1)


@settings(max_examples=80, deadline=None)
@given(st.lists(arrays.arrays(np.float32, len(SLOTS), elements=st.floats(width=32)), min_size=1, max_size=8))
def test_no_sample_breaks_a_profile(found: list[np.ndarray]) -> None:
    profile = Profile()
    for sample in found:
        with np.errstate(all="ignore"):
            profile.learn(sample)
            result = deviations(profile, sample)
            profile.vector(sample)
        assert all(0 <= value <= 1 for value in (result.typing, result.mouse, result.overall))
    with np.errstate(all="ignore"):
        for sample in samples(6):
            profile.learn(sample)
        json.dumps(profile.to_json(), allow_nan=False)
