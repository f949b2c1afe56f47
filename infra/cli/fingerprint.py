"""`behaviorguard evaluate fingerprint`: accuracy of the fingerprint matcher on a folder of impressions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.evaluation.comparisons import PlotError, draw_det
from infra.evaluation.fingerprint import ImpressionsError, evaluate


@click.command()
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of FINGER_IMPRESSION.png.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the DET curve here, a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def fingerprint(images: Path, out: Path | None, as_json: bool) -> None:
    """Fingerprint verification: every two impressions of a finger, and the first ones of every two fingers.

    Rates are parts of one, in the terms of ISO/IEC 19795-1. An image that gives no template is a rejection in each of
    its comparisons and is counted in failure_to_acquire. fmr100 and fmr1000 are the false non-match rates with at most
    1 in 100 and 1 in 1,000 false matches.

    \b
    Examples:
      behaviorguard evaluate fingerprint --images impressions/
      behaviorguard evaluate fingerprint --images impressions/ --json --out det.png > figures.json

    Exit codes: 0 measured; 1 the images cannot be used or the curve cannot be drawn; 2 wrong options.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not sys.stderr.isatty()) as progress:
        tasks: dict[str, Any] = {}

        def step(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        try:
            found = evaluate(images, step)
            if out is not None:
                draw_det(found.rates, f"{images.name}: EER {100 * found.figures['eer']:.1f} %", out)
        except (ImpressionsError, PlotError, OSError) as error:
            progress.stop()
            raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(found.figures, indent=2))
    else:
        _show(images.name, found.figures)
    if "note" in found.figures:
        click.echo(f"note: {found.figures['note']}", err=True)


def _show(name: str, figures: dict[str, Any]) -> None:
    table = Table(
        title=f"{name}: {figures['fingers']} fingers, {figures['impressions']} impressions", show_header=False
    )
    for heading, value in (
        ("genuine comparisons", f"{figures['genuine']}"),
        ("impostor comparisons", f"{figures['impostor']}"),
        ("equal error rate", f"{100 * figures['eer']:.2f} %"),
        ("FNMR at FMR 1 %", f"{100 * figures['fmr100']:.2f} %"),
        ("FNMR at FMR 0.1 %", f"{100 * figures['fmr1000']:.2f} %"),
        ("failure to acquire", f"{100 * figures['failure_to_acquire']:.2f} %"),
        ("extraction, median", f"{figures['extract_ms']['median']:.1f} ms"),
        ("comparison, median", f"{figures['match_ms']['median']:.2f} ms"),
    ):
        table.add_row(heading, value)
    Console().print(table)
    for image, reason in figures["failures"].items():
        click.echo(f"{image}: {reason}", err=True)
