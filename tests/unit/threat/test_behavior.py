from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.threat import behavior
from servers.threat.behavior import SLOT_INDEX, SLOTS, KeystrokeRun, MousePath, prompt_code, sample_of


def run_of(hold: list[float], flight: list[float], prompt: str = "", touch: list[float] | None = None) -> KeystrokeRun:
    touched = np.array(touch or [], np.float32)
    classes = np.array([1 + index % 9 for index in range(len(hold))], np.int64)
    return KeystrokeRun(prompt, classes, np.array(hold, np.float32), np.array(flight, np.float32), touched, touched)


def path_of(points: int = 60, step_ms: int = 60, seed: int = 0) -> MousePath:
    random = np.random.default_rng(seed)
    steps = random.integers(-40, 60, (points, 2)).cumsum(0).astype(np.float64)
    time = np.arange(points, dtype=np.float64) * step_ms
    return MousePath(time, steps[:, 0] - steps[0, 0], steps[:, 1] - steps[0, 1], np.ones(points, np.int64))


def test_nothing_observed_is_nan_throughout() -> None:
    assert np.isnan(sample_of([], [])).all()


def test_known_text_fills_positions_in_log_milliseconds() -> None:
    sample = sample_of([run_of([80, 90, 100], [0, 200, 300], "phrase", [0.2, 0.3, 0.4])], [])
    assert sample[SLOT_INDEX["prompt"]] == prompt_code("phrase")
    assert sample[SLOT_INDEX["hold_02"]] == pytest.approx(np.log(90))
    assert sample[SLOT_INDEX["flight_03"]] == pytest.approx(np.log(300))
    assert sample[SLOT_INDEX["pressure_01"]] == pytest.approx(np.log(0.2))
    assert np.isnan(sample[SLOT_INDEX["hold_04"]])


def test_free_text_has_summaries_and_no_positions() -> None:
    sample = sample_of([run_of([80, 90], [0, 200])], [])
    assert sample[SLOT_INDEX["prompt"]] == 0
    assert np.isnan(sample[behavior.POSITIONS]).all()
    assert sample[SLOT_INDEX["hold_mean"]] == pytest.approx((np.log(80) + np.log(90)) / 2)


def test_only_sixteen_positions_are_kept_and_all_keys_count_in_the_summary() -> None:
    sample = sample_of([run_of([50.0] * 16 + [500.0] * 16, [0.0] + [100.0] * 31, "long")], [])
    assert np.isfinite(sample[SLOT_INDEX["hold_16"]])
    assert sample[SLOT_INDEX["hold_mean"]] == pytest.approx((np.log(50) + np.log(500)) / 2)


def test_two_runs_do_not_make_a_flight_between_them() -> None:
    one = sample_of([run_of([80, 80], [0, 100])], [])
    two = sample_of([run_of([80, 80], [0, 100]), run_of([80, 80], [5000, 100])], [])
    assert two[SLOT_INDEX["flight_mean"]] == pytest.approx(one[SLOT_INDEX["flight_mean"]])


def test_prompt_codes_survive_float32() -> None:
    for name in ("a", "sign-in", "x" * 64):
        assert float(np.float32(prompt_code(name))) == prompt_code(name) > 0


def test_mouse_needs_movement() -> None:
    still = MousePath(np.arange(50.0) * 100, np.zeros(50), np.zeros(50), np.ones(50, np.int64))
    assert np.isnan(sample_of([], [still])[behavior.MOUSE]).all()
    assert np.isfinite(sample_of([], [path_of()])[SLOT_INDEX["speed_mean"]])


def test_direction_shares_add_up_and_follow_the_movement() -> None:
    rightward = MousePath(np.arange(60.0) * 60, np.arange(60.0) * 30, np.zeros(60), np.ones(60, np.int64))
    sample = sample_of([], [rightward])
    shares = [sample[SLOT_INDEX[name]] for name in SLOTS if name.startswith("direction_")]
    assert sum(shares) == pytest.approx(1)
    assert sample[SLOT_INDEX["direction_e"]] == pytest.approx(1)
    assert sample[SLOT_INDEX["horizontal_share"]] == pytest.approx(1, abs=1e-4)


def test_screen_position_does_not_matter() -> None:
    path = path_of()
    moved = MousePath(path.time_ms, path.x_px + 700, path.y_px - 300, path.actions)
    np.testing.assert_allclose(sample_of([], [path]), sample_of([], [moved]), rtol=1e-4, atol=1e-4)


def test_reporting_rate_hardly_matters() -> None:
    time = np.arange(0.0, 12_000.0, 10.0)
    x, y = 400 * np.sin(time / 700), 300 * np.sin(time / 450)
    fast, slow = (
        sample_of([], [MousePath(time[::every], x[::every], y[::every], np.ones(len(time[::every]), np.int64))])
        for every in (1, 6)
    )
    names = ("speed_mean", "speed_high", "turn_mean", "horizontal_share", "stroke_straightness")
    for name in names:
        assert fast[SLOT_INDEX[name]] == pytest.approx(slow[SLOT_INDEX[name]], abs=0.05), name


def test_clicks_are_paired_with_their_release() -> None:
    path = path_of(40)
    actions = path.actions.copy()
    actions[10], actions[12] = behavior.PRESS, behavior.RELEASE
    sample = sample_of([], [MousePath(path.time_ms, path.x_px, path.y_px, actions)])
    assert sample[SLOT_INDEX["click_hold"]] == pytest.approx(np.log(120))
    assert sample[SLOT_INDEX["click_wait"]] == pytest.approx(np.log(60))


def test_a_pause_is_measured_and_not_walked_through() -> None:
    path = path_of(60)
    late = path.time_ms + np.where(np.arange(60) >= 30, 5000, 0)
    paused = sample_of([], [MousePath(late, path.x_px, path.y_px, path.actions)])
    assert paused[SLOT_INDEX["pause_mean"]] == pytest.approx(np.log(5060))
    steady = sample_of([], [path])
    assert paused[SLOT_INDEX["speed_median"]] == pytest.approx(steady[SLOT_INDEX["speed_median"]], abs=0.3)


numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers, st.integers(0, 255)), min_size=1, max_size=40), st.booleans())
def test_any_keys_give_finite_values_or_nan(keys: list[tuple[float, float, float, int]], known: bool) -> None:
    hold, flight, touch, classes = zip(*keys, strict=True)
    run = KeystrokeRun(
        "p" if known else "",
        np.array(classes, np.int64),
        np.array(hold, np.float32),
        np.array(flight, np.float32),
        np.array(touch, np.float32),
        np.array(touch, np.float32),
    )
    sample = sample_of([run], [])
    assert sample.shape == (len(SLOTS),)
    assert not np.isinf(sample).any()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 600_000), st.integers(-100_000, 100_000), st.integers(-100_000, 100_000), st.integers(0, 7)
        ),
        min_size=2,
        max_size=80,
    )
)
def test_any_path_gives_finite_values_or_nan(points: list[tuple[int, int, int, int]]) -> None:
    columns = np.array(sorted(points), np.float64)
    time, x, y, actions = np.ascontiguousarray(columns.T)
    path = MousePath(time - time[0], x, y, actions.astype(np.int64))
    assert not np.isinf(sample_of([], [path])).any()
