"""`behaviorguard bench`: how fast, as figures and as ratios within one run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from infra.bench.pipeline import BenchFailed, BrokerKind, Plan, StackError
from infra.bench.pipeline import run as run_pipeline
from infra.bench.quantum import Plan as QuantumPlan
from infra.bench.quantum import run as run_quantum

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
"""What the pipeline's figures should be on two cores."""

QUANTUM_TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "encrypt_per_s": ("at least 833", lambda value: value >= 5000 / 60 * 10),
    "encrypt_ratio": ("at least 0.6", lambda value: value >= 0.6),
    "token_per_s": ("at least 333", lambda value: value >= 2000 / 60 * 10),
    "keygen_per_s": ("at least 17", lambda value: value >= 100 / 60 * 10),
    "keygen_p99_ms": ("under 5", lambda value: value < 5),
    "sign_keygen_p99_ms": ("under 10", lambda value: value < 10),
    "loop_block_max_ms": ("under 5", lambda value: value < 5),
}
"""What the quantum service's figures should be on one core: ten times the document's rates, its times to make keys."""

OTHERS = ("threat_analyze", "mesh_overhead", "gateway_http")
"""Measurements that live with the tests: `python -m tests.bench.<name> --json`."""
OTHER_SECONDS = 600


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
    "--backlog", default=600_000, show_default=True, type=click.IntRange(10_000, 5_000_000), help="Events to drain."
)
@click.option("--broker", default="auto", show_default=True, type=click.Choice(["auto", "apache", "embedded"]))
@click.option(
    "--pipelines",
    default=min(8, os.cpu_count() or 1),
    show_default="one a core",
    type=click.IntRange(1, 8),
    help="Processes in the group; there are 8 partitions.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_context
def pipeline(
    context: click.Context,
    rate: int,
    seconds: int,
    users: int,
    backlog: int,
    broker: BrokerKind,
    pipelines: int,
    as_json: bool,
) -> None:
    """Latency at a steady rate, highest rate against a bare relay, time of the models, memory.

    Starts its own broker, load, pipeline and measuring consumer on free ports and ends them. Takes about two minutes.
    Values of the events are synthetic: speed does not depend on them.
    """
    if rate * seconds >= 2**28 or seconds >= 1000:
        raise click.UsageError("rate x seconds must stay under 268 million events")
    plan = Plan(rate, seconds, users, backlog, broker, pipelines)
    result = _measured(context, lambda say: run_pipeline(plan, say))
    if as_json:
        click.echo(json.dumps(result))
    else:
        Console(file=sys.stdout).print(_table(result, "pipeline"))


@bench.command()
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1, 20), help="Rounds of encryption and echo."
)
@click.option(
    "--seconds", default=4.0, show_default=True, type=click.FloatRange(0.5, 120), help="Length of each measurement."
)
@click.option("--callers", default=64, show_default=True, type=click.IntRange(1, 256), help="Calls at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_context
def quantum(context: click.Context, rounds: int, seconds: float, callers: int, as_json: bool) -> None:
    """Rates of encryption and hybrid tokens, times of making keys, longest step of the event loop.

    Starts its own stores, HSM, quantum service and load on free ports and ends them. Takes about a minute.
    encrypt_ratio compares with a bare call that runs the same primitives on the same server stack; records of many
    callers share a transaction, so that with few callers it is the disk that is measured.
    """
    plan = QuantumPlan(rounds, seconds, callers)
    result = _measured(context, lambda say: run_quantum(plan, say))
    if as_json:
        click.echo(json.dumps(result))
    else:
        Console(file=sys.stdout).print(_table(result, "quantum"))


@bench.command(name="all")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def everything(context: click.Context, as_json: bool) -> None:
    """Every measurement in turn: the pipeline, the quantum service, and in a checkout the RPCs and the gateway.

    Takes about six minutes.
    """
    results = {
        "pipeline": _measured(context, lambda say: run_pipeline(Plan(), say)),
        "quantum": _measured(context, lambda say: run_quantum(QuantumPlan(), say)),
    }
    for name in OTHERS:
        if importlib.util.find_spec(f"tests.bench.{name}") is None:
            click.echo(f"{name}: only in a checkout", err=True)
            continue
        click.echo(name, err=True)
        child = [sys.executable, "-m", f"tests.bench.{name}", "--json"]
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False, timeout=OTHER_SECONDS)
        if done.returncode:
            raise click.ClickException(f"{name} failed; run it alone: python -m tests.bench.{name}")
        results[name] = json.loads(done.stdout.splitlines()[-1])
    if as_json:
        click.echo(json.dumps(results))
        return
    for name, result in results.items():
        Console(file=sys.stdout).print(_table(result, name))


def _measured(context: click.Context, measure: Callable[[Callable[[str], None]], dict[str, Any]]) -> dict[str, Any]:
    start = time.monotonic()

    def say(what: str) -> None:
        click.echo(f"[{time.monotonic() - start:5.1f} s] {what}", err=True)

    try:
        return measure(say)
    except (BenchFailed, StackError) as error:
        raise click.ClickException(f"{context.command_path}: {error}") from error


def _table(result: dict[str, Any], title: str) -> Table:
    table = Table("measure", "value", "target", title=title)
    targets = {"pipeline": TARGETS, "quantum": QUANTUM_TARGETS}.get(title, {})
    for name, value in result.items():
        target, holds = targets.get(name, ("", lambda _: True))
        mark = "" if not target else "[green]met[/]" if value is not None and holds(value) else "[red]missed[/]"
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value), f"{target} {mark}".strip())
    return table
