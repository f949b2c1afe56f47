"""`behaviorguard bench`: how fast, as figures and as ratios within one run."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from infra.bench.pipeline import BenchFailed, BrokerKind, Plan, StackError
from infra.bench.pipeline import run as run_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "rate": ("at least 99 % of what was asked", lambda _: True),
    "p50_ms": ("under 50", lambda value: value < 50),
    "p99_ms": ("under 250", lambda value: value < 250),
    "lost": ("0", lambda value: value == 0),
    "relay_ratio": ("at least 0.333", lambda value: value >= 1 / 3),
    "model_ratio": ("at most 1.5", lambda value: value <= 1.5),
    "rss_mib": ("under 2,048", lambda value: value < 2048),
}
"""What the figures should be on two cores."""


@click.group()
def bench() -> None:
    """Measure speed."""


@bench.command()
@click.option("--rate", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Events a second.")
@click.option(
    "--seconds", default=30, show_default=True, type=click.IntRange(1, 600), help="Length of the steady load."
)
@click.option(
    "--users", default=100_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Users of the events."
)
@click.option(
    "--backlog", default=200_000, show_default=True, type=click.IntRange(10_000, 5_000_000), help="Events to drain."
)
@click.option("--broker", default="auto", show_default=True, type=click.Choice(["auto", "apache", "embedded"]))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def pipeline(rate: int, seconds: int, users: int, backlog: int, broker: BrokerKind, as_json: bool) -> None:
    """Latency at a steady rate, highest rate against a bare relay, time of the models, memory.

    Starts its own broker, load, pipeline and measuring consumer on free ports and ends them. Takes about two minutes.
    Values of the events are synthetic: speed does not depend on them.
    """
    start = time.monotonic()

    def say(what: str) -> None:
        click.echo(f"[{time.monotonic() - start:5.1f} s] {what}", err=True)

    if rate * seconds >= 2**28 or seconds >= 1000:
        raise click.UsageError("rate x seconds must stay under 268 million events")
    try:
        result = run_pipeline(Plan(rate, seconds, users, backlog, broker), say)
    except BenchFailed as error:
        raise click.ClickException(str(error)) from error
    except StackError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(result))
    else:
        Console(file=sys.stdout).print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    table = Table("measure", "value", "target", title="Pipeline, end to end through the broker")
    for name, value in result.items():
        target, holds = TARGETS.get(name, ("", lambda _: True))
        mark = "" if not target else "[green]met[/]" if value is not None and holds(value) else "[red]missed[/]"
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value), f"{target} {mark}".strip())
    return table
