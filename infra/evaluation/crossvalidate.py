"""Figures on people never trained on, neither as victim nor as attacker: `python -m infra.evaluation.crossvalidate`.

Typists are split into five folds. Mouse users are taken out two at a time, the two attacking each other; five folds
times three pairs cover all fifteen pairs of six mouse users once. Each of the fifteen runs trains everything anew
(cohorts, discriminants, networks, calibration) on the people left. Needs the extra `train`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from infra.evaluation.dataset import recordings_of
from infra.evaluation.protocol import Plan, Played
from infra.evaluation.recordings import read_keystrokes, read_mouse
from infra.evaluation.threat import People, measure, report
from pipeline.backends.manifest import write
from pipeline.backends.onnx import OnnxBackend
from pipeline.scoring import ANOMALY, PATTERN, SEQUENCE, Scorer

if TYPE_CHECKING:
    from pipeline.training.data import Recordings
    from pipeline.training.train import Settings, Trained

FOLDS: Final = 5
PLANS: Final = {
    "fused": Plan(own=4, attackers=12, pairs=2),
    "typing": Plan(own=6, attackers=14),
    "typing_without_touch": Plan(own=6, attackers=14, touch=False),
    "typing_of_other_text": Plan(own=6, attackers=14, touch=False),
    "mouse": Plan(own=40, attackers=40),
}


def pairings(people: int) -> list[list[tuple[int, int]]]:
    """Rounds of a round robin: every pair of an even number of people once."""
    order = list(range(people))
    rounds = []
    for _ in range(people - 1):
        rounds.append([(order[i], order[people - 1 - i]) for i in range(people // 2)])
        order = [order[0], order[-1], *order[1:-1]]
    return rounds


def scorer_of(trained: Trained, models: Path) -> Scorer:
    """A scorer of freshly trained models, written to a folder first, as they are shipped."""
    from pipeline.training.networks import export  # noqa: PLC0415  torch is an extra

    export(trained.nets, models)
    trained.parameters.save(models)
    source = Path(__file__).parents[2] / "pipeline" / "models"
    for name in (ANOMALY, SEQUENCE, PATTERN):
        (models / name / "config.pbtxt").write_text((source / name / "config.pbtxt").read_text())
    write(models)
    return Scorer(OnnxBackend(models, (ANOMALY, SEQUENCE, PATTERN)), trained.parameters)


def one_run(
    recordings: Recordings, people: People, typists: list[int], pair: tuple[int, int], settings: Settings
) -> dict[str, Played]:
    """Train without these typists and this pair, and play them; indices in the answer are those of all people."""
    from pipeline.training.train import train  # noqa: PLC0415  torch is an extra

    trained = train(
        recordings,
        [person for person in range(len(people.typists)) if person not in typists],
        [person for person in range(len(people.mouse_users)) if person not in pair],
        settings,
    )
    unseen = People(
        [people.typists[person] for person in typists],
        [people.strangers_text[person] for person in typists],
        [people.mouse_users[person] for person in pair],
        [],
        [],
    )
    with tempfile.TemporaryDirectory() as folder:
        played = measure(unseen, scorer_of(trained, Path(folder)), plans=PLANS)
    return {name: _renamed(part, typists, list(pair)) for name, part in played.items()}


def _renamed(played: Played, typists: list[int], users: list[int]) -> Played:
    sessions = played.sessions.copy()
    for column, names in ((0, typists), (1, users), (2, typists), (3, users)):
        known = sessions[:, column] >= 0
        sessions[known, column] = np.array(names)[sessions[known, column]]
    return Played(sessions, played.scores, played.odds, played.simple)


def together(parts: list[Played]) -> Played:
    """All runs as one."""
    columns = ("sessions", "scores", "odds", "simple")
    return Played(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


@click.command()
@click.option("--keystrokes", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--mouse", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="JSON to write.")
@click.option("--played", type=click.Path(path_type=Path), help="Folder for the played sessions, to go on from.")
@click.option("--sessions", default=3200, show_default=True)
@click.option("--epochs", default=8, show_default=True)
def main(keystrokes: Path, mouse: Path, output: Path, played: Path | None, sessions: int, epochs: int) -> None:
    """Cross-validate over people and write the figures."""
    from pipeline.training.train import Settings  # noqa: PLC0415  torch is an extra

    start = time.monotonic()
    typists, users = read_keystrokes(keystrokes), read_mouse(mouse)
    recordings, people = recordings_of(typists, users), People.of(typists, users)
    order = np.random.default_rng(0).permutation(len(people.typists))
    runs = []
    for fold, pairs in enumerate(pairings(len(people.mouse_users))[:FOLDS]):
        for index, pair in enumerate(pairs):
            kept = played / f"{fold}_{index}.npz" if played else None
            if kept is not None and kept.is_file():
                runs.append(_read(kept))
                continue
            settings = Settings(sessions=sessions, epochs=epochs)
            run = one_run(recordings, people, order[fold::FOLDS].tolist(), pair, settings)
            runs.append(run)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                _write(kept, run)
            click.echo(f"[{time.monotonic() - start:6.1f} s] fold {fold + 1}, pair {index + 1}", err=True)
    found: dict[str, Any] = report({name: together([run[name] for run in runs]) for name in PLANS}, people)
    found["cross_validation"] = {"folds": FOLDS, "runs": len(runs), "sessions": sessions, "epochs": epochs}
    output.write_text(json.dumps(found, indent=2) + "\n")
    click.echo(json.dumps({key: found[key] for key in list(found)[:5]}), file=sys.stderr)


def _write(path: Path, run: dict[str, Played]) -> None:
    columns = ("sessions", "scores", "odds", "simple")
    arrays = {f"{name}.{column}": getattr(part, column) for name, part in run.items() for column in columns}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _read(path: Path) -> dict[str, Played]:
    with np.load(path, allow_pickle=False) as data:
        columns = ("sessions", "scores", "odds", "simple")
        return {name: Played(*(data[f"{name}.{column}"] for column in columns)) for name in PLANS}


if __name__ == "__main__":
    main()
