"""Error rates, and the command that measures them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from infra.cli.main import main
from infra.evaluation.comparisons import error_rates
from tests.support.fingerprints import encoded, finger, impression

SCORES = st.lists(st.one_of(st.floats(0, 1), st.just(float("-inf"))), min_size=1, max_size=30)
_DATA = Path(os.environ.get("BEHAVIORGUARD_EVAL_DATA", "")) / "fingerprints"
_WITHOUT_DATA = not os.environ.get("BEHAVIORGUARD_EVAL_DATA") or not _DATA.is_dir()


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", "fingerprint", *map(str, arguments)])


def test_rates_are_those_counted_by_hand() -> None:
    rates = error_rates([0.9, 0.8, 0.4, 0.3], [0.5, 0.2, 0.1, 0.1])
    assert rates.equal_error_rate() == 0.25
    assert rates.at_false_match(0.01)[0] == 0.5
    assert rates.at_false_match(0.25) == (0.0, 0.3)


def test_failures_to_acquire_are_rejections() -> None:
    lost = float("-inf")
    rates = error_rates([0.9, 0.8, 0.7, lost], [0.1, 0.2, lost, lost])
    assert rates.at_false_match(0.0)[0] == 0.25
    # One impostor of four scores 0.2, and one genuine attempt of four has no template to match with.
    assert rates.equal_error_rate() == 0.25
    nothing = error_rates([lost], [lost])
    assert nothing.at_false_match(0.0)[0] == 1.0
    assert nothing.equal_error_rate() == 0.5


def test_fingers_told_apart_have_no_errors() -> None:
    assert error_rates([0.8, 0.9], [0.1, 0.2]).equal_error_rate() == 0.0


@given(genuine=SCORES, impostor=SCORES)
def test_rates_count_what_each_threshold_lets_through(genuine: list[float], impostor: list[float]) -> None:
    rates = error_rates(genuine, impostor)
    for threshold, matched, refused in zip(rates.thresholds, rates.false_match, rates.false_non_match, strict=True):
        assert matched == pytest.approx(np.mean(np.array(impostor) >= threshold))
        assert refused == pytest.approx(np.mean(np.array(genuine) < threshold))
    assert 0 <= rates.equal_error_rate() <= 1


def test_rates_need_both_kinds() -> None:
    with pytest.raises(ValueError, match="genuine and impostor"):
        error_rates([], [0.1])


@pytest.fixture(scope="module")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("impressions")
    for person in (1, 2, 3):
        for number in (1, 2):
            image = impression(finger(person).image, turn=12 * (number - 1), seed=number)
            (folder / f"{person}_{number}.png").write_bytes(encoded(image))
    (folder / "3_3.png").write_bytes(encoded(np.full((200, 200), 255, dtype=np.uint8)))
    (folder / "notes.txt").write_text("not an impression")
    return folder


def test_the_command_counts_every_comparison(impressions: Path, tmp_path: Path) -> None:
    curve = tmp_path / "det.png"
    result = _run("--images", impressions, "--json", "--out", curve)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    # 1 + 1 + 3 pairs of one finger, two of which have the blank image; 3 pairs of fingers.
    assert (found["genuine"], found["impostor"]) == (5, 3)
    assert found["failure_to_acquire"] == pytest.approx(1 / 7)
    assert list(found["failures"]) == ["3_3.png"]
    assert found["fmr100"] == found["fmr1000"] == pytest.approx(0.4)
    assert 0 < found["eer"] < 0.5
    assert curve.read_bytes().startswith(b"\x89PNG")


def test_the_table_names_what_failed(impressions: Path) -> None:
    result = _run("--images", impressions)
    assert result.exit_code == 0
    assert "equal error rate" in result.stdout
    assert "3_3.png: no finger in the image" in result.stderr


def test_folders_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "missing", "is not a folder"), (tmp_path, "FINGER_IMPRESSION.png")):
        result = _run("--images", folder)
        assert result.exit_code == 1
        assert message in result.stderr
    (tmp_path / "1_1.png").write_bytes(b"")
    result = _run("--images", tmp_path)
    assert result.exit_code == 1
    assert "two fingers" in result.stderr
    assert _run().exit_code == 2


def test_without_matplotlib_the_curve_is_refused_with_advice(impressions: Path, tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", {"matplotlib.figure": None}):
        result = _run("--images", impressions, "--out", tmp_path / "det.png")
    assert result.exit_code == 1
    assert "pip install matplotlib" in result.stderr


def test_explain_draws_what_was_seen(tmp_path: Path) -> None:
    image, out = tmp_path / "finger.png", tmp_path / "seen.png"
    image.write_bytes(encoded(finger(1).image))
    result = CliRunner().invoke(main, ["identity", "explain", str(image), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["pattern"] == "left_loop"
    assert found["endings"] + found["bifurcations"] > 20
    assert out.read_bytes().startswith(b"\x89PNG")


def test_explain_says_why_it_cannot(tmp_path: Path) -> None:
    blank = tmp_path / "blank.png"
    blank.write_bytes(encoded(np.full((200, 200), 255, dtype=np.uint8)))
    for image, message in ((blank, "no finger"), (tmp_path / "missing.png", "No such file"), (tmp_path, "directory")):
        result = CliRunner().invoke(main, ["identity", "explain", str(image), "--out", str(tmp_path / "seen.png")])
        assert result.exit_code == 1
        assert message in result.stderr


@pytest.mark.skipif(_WITHOUT_DATA, reason="BEHAVIORGUARD_EVAL_DATA does not name a folder with fingerprints")
@pytest.mark.parametrize(
    ("folder", "limit"),
    # Half of what NBIS (mindtct and bozorth3) was measured at on the same comparisons.
    [("fvc2002/DB1_B", 0.029), ("fvc2002/DB3_B", 0.043), ("fvc2004/DB1_B", 0.0545)],
)
def test_real_fingers_are_told_apart(folder: str, limit: float) -> None:
    found = json.loads(_run("--images", _DATA / folder, "--json").stdout)
    assert (found["genuine"], found["impostor"]) == (280, 45)
    assert found["eer"] <= limit
    assert found["failure_to_acquire"] <= 0.02
