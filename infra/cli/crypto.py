"""`behaviorguard crypto`: the primitives, checked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.vectors.outcome import Verdict
from infra.vectors.run import FileReport, check_file, vector_files
from servers.crypto.errors import ProviderUnavailableError
from servers.crypto.provider import provider_named

if TYPE_CHECKING:
    from servers.crypto.provider import CryptoProvider

_SHOWN_FAILURES = 20


@click.group()
def crypto() -> None:
    """Check the cryptographic primitives."""


@crypto.command(name="check-vectors")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--provider",
    default="cryptography",
    show_default=True,
    type=click.Choice(["cryptography", "oqs"]),
    help="Library of primitives to check.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def check_vectors(folder: Path, provider: str, as_json: bool) -> None:
    """Run published vectors through the product's own code.

    DIR is searched for the JSON files of Wycheproof (ML-KEM, ML-DSA), HPKE (RFC 9180 and the post-quantum draft) and
    NIST ACVP (internalProjection.json of ML-KEM keyGen and encapDecap, ML-DSA keyGen, sigGen and sigVer).

    \b
    Examples:
      behaviorguard crypto check-vectors vectors/
      behaviorguard crypto check-vectors vectors/ --provider oqs --json

    Exit codes: 0 all passed, each skipped one with its reason; 1 one failed, a file cannot be read, or nothing was
    checked; 2 wrong options.
    """
    try:
        primitives = provider_named(provider)
    except ProviderUnavailableError as error:
        raise click.ClickException(str(error)) from error
    files = vector_files(folder)
    if not files:
        raise click.ClickException(f"there is no JSON file below {folder}\n  -> give the folder of the vectors")
    reports = _check(files, folder, primitives)
    if as_json:
        click.echo(json.dumps(_summary(reports, provider)))
    else:
        _show(reports)
    if any(report.counts[Verdict.FAILED] for report in reports):
        sys.exit(1)
    if not any(report.counts[Verdict.PASSED] + report.counts[Verdict.IN_PART] for report in reports):
        raise click.ClickException(f"no vector below {folder} could be checked; the reasons are listed")


def _check(files: list[Path], folder: Path, provider: CryptoProvider) -> list[FileReport]:
    reports = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        overall = progress.add_task("files", total=len(files))
        vectors = progress.add_task("vectors", total=None)
        for path in files:
            progress.update(overall, description=path.name)
            reports.append(check_file(path, folder, provider, lambda: progress.advance(vectors)))
            progress.advance(overall)
    return reports


def _summary(reports: list[FileReport], provider: str) -> dict[str, Any]:
    total = {verdict: sum(report.counts[verdict] for report in reports) for verdict in Verdict}
    return {
        "passed": total[Verdict.PASSED] + total[Verdict.IN_PART],
        "failed": total[Verdict.FAILED],
        "skipped": total[Verdict.SKIPPED],
        "files": len(reports),
        "passed_in_part": total[Verdict.IN_PART],
        "provider": provider,
        "by_file": [_file_summary(report) for report in reports],
    }


def _file_summary(report: FileReport) -> dict[str, Any]:
    return {
        "file": report.path,
        "passed": report.counts[Verdict.PASSED] + report.counts[Verdict.IN_PART],
        "passed_in_part": report.counts[Verdict.IN_PART],
        "failed": report.counts[Verdict.FAILED],
        "skipped": report.counts[Verdict.SKIPPED],
        "reasons": [
            {"verdict": verdict, "count": count, "reason": reason}
            for (verdict, reason), count in report.reasons.items()
        ],
        "failures": [{"test": failure.test, "reason": failure.reason} for failure in report.failures],
    }


def _show(reports: list[FileReport]) -> None:
    table = Table("file", title="Test vectors")
    for verdict in Verdict:
        table.add_column(verdict, justify="right")
    for report in reports:
        style = "red" if report.failures else None
        table.add_row(report.path, *(str(report.counts[verdict] or "") for verdict in Verdict), style=style)
    table.add_section()
    table.add_row("all", *(str(sum(report.counts[verdict] for report in reports)) for verdict in Verdict))
    console = Console()
    console.print(table)
    for report in reports:
        for (verdict, reason), count in report.reasons.items():
            console.print(f"{report.path}: {count} {verdict}: {reason}", markup=False, highlight=False)
        for failure in report.failures[:_SHOWN_FAILURES]:
            console.print(f"{report.path}: FAILED {failure.test}: {failure.reason}", markup=False, highlight=False)
        if len(report.failures) > _SHOWN_FAILURES:
            console.print(f"{report.path}: and {len(report.failures) - _SHOWN_FAILURES} more failures")
