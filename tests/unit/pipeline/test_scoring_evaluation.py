"""The evaluation around the scorer: readers, protocol, figures. People here are made up; accuracy is not the point."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from infra.cli.evaluate import evaluate
from infra.evaluation import metrics
from infra.evaluation.protocol import Plan, plan_sessions
from infra.evaluation.recordings import RecordingError, read_keystrokes, read_mouse, windows_of

if TYPE_CHECKING:
    from pathlib import Path

KEYS = (".", "t", "i", "e", "Shift", "5", "Shift", "Caps", "r", "o", "a", "n", "l", "Enter")


def write_keystrokes(path: Path, people: int, entries: int = 40) -> Path:
    names = ["Subject", *(f"Hold {key}" for key in KEYS)]
    names += [f"DD {a}.{b}" for a, b in pairwise(KEYS)]
    names += [f"{kind} {key}" for kind in ("Pressure", "Size") for key in KEYS]
    random = np.random.default_rng(1)
    lines = [",".join(names)]
    for person in range(people):
        centre = np.concatenate(
            (random.uniform(60, 130, 14), random.uniform(150, 700, 13), random.uniform(0.1, 0.6, 28))
        )
        for _ in range(entries):
            values = centre * np.exp(random.normal(0, 0.12, len(centre)))
            lines.append(",".join([str(person + 1), *(f"{value:.4f}" for value in values)]))
    path.write_text("\n".join(lines))
    return path


def write_mouse(folder: Path, people: int, reports: int = 6000) -> Path:
    random = np.random.default_rng(2)
    for person in range(people):
        for part, count in (("training_files", 2), ("test_files", 1)):
            place = folder / part / f"user{person}"
            place.mkdir(parents=True)
            for session in range(count):
                steps = random.normal(0, 20 + 25 * person, (reports, 2)).cumsum(0) % 1500
                rows = ["record timestamp,client timestamp,button,state,x,y"]
                rows += [f"{i * 0.109},{i * 0.109},NoButton,Move,{int(x)},{int(y)}" for i, (x, y) in enumerate(steps)]
                (place / f"session_{person}_{session}_{part}").write_text("\n".join(rows))
    names = [path.name for path in folder.glob("test_files/*/*")]
    (folder / "public_labels.csv").write_text("filename,is_illegal\n" + "\n".join(f"{name},0" for name in names))
    return folder


def test_typing_alone_can_be_evaluated(tmp_path: Path) -> None:
    table = write_keystrokes(tmp_path / "k.csv", 3)
    result = CliRunner().invoke(evaluate, ["threat", "--keystrokes", str(table), "--quick", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for key in ("balanced_accuracy", "balanced_accuracy_ci95", "eer_event", "events_to_detect_median"):
        assert key in found
    assert found["subjects"] == {"typists": 3, "mouse_users": 0, "skipped": [], "trained_on": 0}
    assert found["headline"] == "typing"
    assert set(found["modalities"]["typing"]["by_events"]) == {"1", "3", "5", "10", "20"}
    assert not found["optimistic"]


def test_both_together_are_fused_and_said_to_be_chimeric(tmp_path: Path) -> None:
    table, folder = write_keystrokes(tmp_path / "k.csv", 2), write_mouse(tmp_path / "m", 2)
    arguments = ["threat", "--keystrokes", str(table), "--mouse", str(folder), "--quick", "--json"]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["chimeric"]
    assert {"fused", "typing", "mouse"} <= set(found["modalities"])
    assert 0 <= found["false_alarms_per_session"] <= 1
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", "needs the columns"),
        ("Subject,Hold a,Hold b,DD a.b\n1,80,90,x\n", "line 2"),
        ("Subject,Hold a,Hold b,DD a.b\n1,80,90\n", "line 2"),
        ("Subject,Hold a,Hold b,DD a.b\n1,80,nan,100\n", "not finite"),
        ("Subject,Hold a,Hold b,DD a.b,Pressure a\n1,80,90,100,0.1\n", "all or none"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(RecordingError, match=message):
        read_keystrokes(path)


def test_missing_recordings_end_with_an_error(tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(evaluate, ["threat"]).exit_code == 2
    missing = runner.invoke(evaluate, ["threat", "--keystrokes", str(tmp_path / "none.csv")])
    assert missing.exit_code == 1
    assert "none.csv" in missing.output
    folder = runner.invoke(evaluate, ["threat", "--mouse", str(tmp_path)])
    assert folder.exit_code == 1
    assert "training_files" in folder.output
    one = runner.invoke(evaluate, ["threat", "--keystrokes", str(write_keystrokes(tmp_path / "one.csv", 1))])
    assert one.exit_code == 1
    assert "at least 2" in one.output


def test_a_mouse_session_without_columns_is_named(tmp_path: Path) -> None:
    place = tmp_path / "training_files" / "user1"
    place.mkdir(parents=True)
    (place / "session_1").write_text("a,b\n1,2\n")
    with pytest.raises(RecordingError, match="session_1"):
        read_mouse(tmp_path)


def test_reports_are_thinned_and_the_wheel_does_not_move_the_pointer(tmp_path: Path) -> None:
    at = np.arange(2500.0)
    reports = np.column_stack((16 * at, at, at, np.ones(2500)))
    for window in windows_of(reports):
        assert len(window.time_ms) == 40
        assert np.diff(window.time_ms).min() >= 100
    folder = write_mouse(tmp_path, 1, 200)
    session = next((folder / "training_files" / "user0").iterdir())
    with session.open("a") as file:
        file.write("\n30.0,30.0,Scroll,Down,0,0")
    assert read_mouse(folder)[0].training


def test_equal_error_rate_of_known_distributions() -> None:
    own, other = np.arange(100.0), np.arange(100.0) + 50
    assert metrics.equal_error_rate(own, other) == pytest.approx(0.25, abs=0.02)
    assert metrics.equal_error_rate(own, own + 1000) == 0
    assert np.isnan(metrics.equal_error_rate(own, np.empty(0)))


def test_detection_counts_from_the_attackers_first_event() -> None:
    score = np.zeros((2, 30))
    score[0, 7], score[1, 3] = 0.8, 0.95
    found = metrics.detection(score, np.array([5, 5]))
    assert found["found_within_20"] == 0.5
    assert metrics.detection(score[:1], np.array([5]))["median"] == 3


def test_every_session_has_another_person_as_attacker() -> None:
    for session in plan_sessions(3, 2, Plan(pairs=2)):
        assert session.typist != session.other_typist
        assert session.mouse != session.other_mouse or session.takeover < 0
    with pytest.raises(ValueError, match="two people"):
        plan_sessions(1, 0, Plan())
