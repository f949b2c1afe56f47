"""`behaviorguard doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.markup import escape

from infra.settings import load_settings
from infra.stack.checks import examine

MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "error": "[red]error[/]  "}


@click.command(
    epilog="""\b
Examples:
  behaviorguard doctor
  behaviorguard doctor --json

\b
Exit codes: 0 nothing stands in the way (there may be warnings); 1 something does, and it says what to do."""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Check this machine and say what to do. Changes nothing."""
    findings = examine(load_settings())
    good = all(finding.verdict != "error" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": good, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            console.print(f"{MARKS[finding.verdict]} {finding.check:<12} {escape(finding.found)}")
            if finding.action:
                console.print(f"        [bold]->[/] {escape(finding.action)}")
    sys.exit(0 if good else 1)
