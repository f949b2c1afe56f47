"""`behaviorguard evaluate`: how well the product does its work, on recordings of real people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.cli.fingerprint import fingerprint
from infra.evaluation.recordings import RecordingError, count_mouse_files
from infra.evaluation.threat import evaluate as evaluate_threat
from pipeline.backends.manifest import ModelRepositoryError

if TYPE_CHECKING:
    from collections.abc import Callable

_MODELS = Path(__file__).parents[2] / "pipeline" / "models"


@click.group()
def evaluate() -> None:
    """Measure accuracy."""


evaluate.add_command(fingerprint)


@evaluate.command()
@click.option("--keystrokes", type=click.Path(path_type=Path), help="CSV with the columns of MEU-Mobile KSD.")
@click.option("--mouse", type=click.Path(path_type=Path), help="Folder laid out as the Balabit challenge's archive.")
@click.option(
    "--models", default=_MODELS, show_default=False, type=click.Path(path_type=Path), help="Model repository."
)
@click.option("--quick", is_flag=True, help="Play about a tenth of the sessions: wider intervals.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def threat(keystrokes: Path | None, mouse: Path | None, models: Path, quick: bool, as_json: bool) -> None:
    """Takeover detection on recorded people, at least two of a kind.

    Each person is enrolled on the earlier part of their recordings; the rest is played as their own sessions, and
    other people's recordings as attacks from the first event and in mid-session.

    \b
    Examples:
      behaviorguard evaluate threat --keystrokes recordings.csv --mouse recordings/
      behaviorguard evaluate threat --keystrokes recordings.csv --quick --json > figures.json

    Exit codes: 0 measured; 1 the recordings or models cannot be used; 2 wrong options.
    """
    if keystrokes is None and mouse is None:
        raise click.UsageError("give --keystrokes CSV, --mouse DIR or both")
    with _progress() as progress:
        reading = progress.add_task("reading", total=count_mouse_files(mouse) if mouse is not None else 0)
        tasks: dict[str, Any] = {}

        def step(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name.replace("_", " "), total=total)
            progress.update(tasks[name], completed=done)

        try:
            found = evaluate_threat(keystrokes, mouse, models, _advance(progress, reading), step, quick=quick)
        except (RecordingError, ModelRepositoryError, FileNotFoundError, ValueError) as error:
            progress.stop()
            raise click.ClickException(str(error)) from error
        for task in tasks.values():
            # Attacks are shorter than sessions may be: what is not there to play is done too.
            progress.update(task, completed=progress.tasks[task].total)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    if "warning" in found:
        click.echo(f"note: {found['warning']}", err=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=not sys.stderr.isatty(),
    )


def _advance(progress: Progress, task: Any) -> Callable[[], None]:
    return lambda: progress.advance(task)


def _show(found: dict[str, Any]) -> None:
    table = Table(title="Takeover detection, balanced accuracy in % by events since the takeover")
    table.add_column("")
    lengths = list(next(iter(found["modalities"].values()))["by_events"])
    for length in lengths:
        table.add_column(length, justify="right")
    for heading in ("EER, 1 event", "events to detect", "false alarms a session"):
        table.add_column(heading, justify="right")
    for name, part in found["modalities"].items():
        figures = [f"{100 * part['by_events'][length]['balanced_accuracy']:.1f}" for length in lengths]
        median = part["events_to_detect_median"]
        table.add_row(
            name.replace("_", " "),
            *figures,
            f"{100 * part['eer_event']:.1f}",
            "over 20" if median is None else f"{median:.0f}",
            f"{100 * part['false_alarms_per_session']:.1f} %",
        )
    console = Console()
    console.print(table)
    low, high = found["balanced_accuracy_ci95"]
    people = found["subjects"]
    console.print(
        f"{people['typists']} typists, {people['mouse_users']} mouse users. {found['headline']}:"
        f" {100 * found['balanced_accuracy']:.1f} % after 20 events"
        f" (95 % interval {100 * low:.1f} to {100 * high:.1f})."
    )
    if found["chimeric"]:
        console.print("Fused sessions join a typist and a mouse user by chance: the recordings hold different people.")
