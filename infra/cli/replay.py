"""`behaviorguard replay`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from behaviorguard.client import ServiceError
from behaviorguard.threat.v1 import threat_service_pb2
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra.cli.connection import address_option, fail, open_client, run
from infra.evaluation.recordings import (
    MouseUser,
    RecordingError,
    Typist,
    count_mouse_files,
    read_keystrokes,
    read_mouse,
)
from infra.replay.player import Played, Player, Summary
from infra.replay.script import Phase, Step, observations, takeover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behaviorguard.client import AsyncBehaviorGuardClient

    from infra.replay.script import Observed

Person = TypeVar("Person", Typist, MouseUser)
COLOURS = {"normal": "green", "suspicious": "yellow", "threat": "red", "critical": "bold red"}
_BAR_WIDTH = 20
_EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Choice:
    """Whose recordings are played."""

    keystrokes: Path | None
    mouse: Path | None
    victim: str | None
    attacker: str | None
    mouse_victim: str | None
    mouse_attacker: str | None


@click.command(
    epilog="""\b
Examples:
  behaviorguard replay --keystrokes recordings.csv --victim 3 --attacker 7
  behaviorguard replay --mouse recordings/ --victim user7 --attacker user9 --enrol 30
  behaviorguard replay --keystrokes recordings.csv --victim 3 --attacker 7 \\
      --mouse recordings/ --mouse-victim user7 --mouse-attacker user9 --json > session.json

Exit codes: 0 played (noticed or not: read the summary); 1 failed; 2 wrong usage; 3 the system does not run."""
)
@click.option("--keystrokes", type=_EXISTING_FILE, metavar="CSV", help="Table of typed entries, one column a key.")
@click.option("--mouse", type=_EXISTING_FOLDER, metavar="DIR", help="Folder with training_files/USER/SESSION.")
@click.option("--victim", metavar="ID", help="Whose session it is. Default: the first person in the recordings.")
@click.option("--attacker", metavar="ID", help="Who takes over. Default: the second person.")
@click.option("--mouse-victim", metavar="ID", help="The victim's mouse, where keystrokes are given too.")
@click.option("--mouse-attacker", metavar="ID", help="The attacker's mouse, where keystrokes are given too.")
@click.option("--enrol", type=click.IntRange(min=1), default=25, show_default=True, help="Events learnt first.")
@click.option(
    "--takeover-at", type=click.IntRange(min=0), default=10, show_default=True, help="Own events after learning."
)
@click.option("--events", type=click.IntRange(min=1), default=15, show_default=True, help="Events of the attacker.")
@click.option(
    "--rate", type=click.FloatRange(min=0.01, max=1000), default=10.0, show_default=True, help="Events a second."
)
@click.option("--keep", is_flag=True, help="Do not erase what was learnt; it is erased with the trial's end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@address_option
def replay(  # noqa: PLR0913, PLR0917 -- one parameter an option, given by name
    keystrokes: Path | None,
    mouse: Path | None,
    victim: str | None,
    attacker: str | None,
    mouse_victim: str | None,
    mouse_attacker: str | None,
    enrol: int,
    takeover_at: int,
    events: int,
    rate: float,
    keep: bool,
    as_json: bool,
    address: str | None,
) -> None:
    """Play recorded sessions of real people into the running system.

    The system learns from the victim's first recordings; then the victim goes on, until the attacker takes over. Each
    event's risk is shown as it is scored, and at the end after how many events the takeover was noticed.
    """
    if keystrokes is None and mouse is None:
        raise click.UsageError("Give --keystrokes CSV, --mouse DIR, or both.")
    choice = Choice(keystrokes, mouse, victim, attacker, mouse_victim, mouse_attacker)
    screen = Console(stderr=as_json, highlight=False)
    try:
        own, other = _read(choice, screen)
        steps = takeover(own, other, enrol=enrol, takeover_at=takeover_at, events=events)
    except RecordingError as error:
        fail(1, str(error), "correct the recordings or the options")
    run(_play(steps, screen, address=address, rate=rate, keep=keep, as_json=as_json))


async def _play(
    steps: Sequence[Step], screen: Console, *, address: str | None, rate: float, keep: bool, as_json: bool
) -> int:
    async with open_client(address) as client:
        trial = await client.threat.StartTrial(threat_service_pb2.StartTrialRequest(label="replay"))
        played: list[Played] = []
        try:
            with _progress(screen) as progress:
                task = progress.add_task("playing", total=len(steps))
                async for each in Player(client, trial).play(steps, rate=rate):
                    played.append(each)
                    progress.console.print(_line(each), soft_wrap=True)
                    progress.update(task, advance=1, description=each.phase.value)
        finally:
            if not keep:
                await _erase(client, trial.user_id, screen)
    summary = Summary(tuple(played))
    if as_json:
        click.echo(json.dumps(_document(summary), indent=1))
    else:
        _print_summary(summary, screen)
    return 1 if summary.lost else 0


async def _erase(client: AsyncBehaviorGuardClient, user_id: str, screen: Console) -> None:
    """Erases the throwaway person's data; where that fails the trial's end does it."""
    try:
        await client.threat.EraseBehavior(threat_service_pb2.EraseBehaviorRequest(user_id=user_id))
    except ServiceError as error:
        screen.print(f"[yellow]note[/] not erased yet, the trial's end will do it: {escape(str(error))}")


def _read(choice: Choice, screen: Console) -> tuple[list[Observed], list[Observed]]:
    """The victim's and the attacker's events."""
    typists = read_keystrokes(choice.keystrokes) if choice.keystrokes is not None else []
    users = _read_mouse(choice.mouse, screen) if choice.mouse is not None else []
    both = bool(typists and users)
    of_mouse = (choice.mouse_victim, choice.mouse_attacker) if both else (choice.victim, choice.attacker)
    typing = _pick(typists, (choice.victim, choice.attacker), "the keystroke table")
    moving = _pick(users, of_mouse, "the mouse folder")
    if both:
        screen.print("[yellow]note[/] the two sets hold different people: typing and mouse are of a chimera")
    own, other = zip(typing or (None, None), moving or (None, None), strict=True)
    return observations(own[0], own[1]), observations(other[0], other[1])


def _read_mouse(folder: Path, screen: Console) -> list[MouseUser]:
    with _progress(screen) as progress:
        task = progress.add_task("reading", total=count_mouse_files(folder))
        return read_mouse(folder, lambda: progress.advance(task))


def _pick(people: Sequence[Person], wanted: tuple[str | None, str | None], where: str) -> tuple[Person, Person] | None:
    """The victim and the attacker, by name or the first two; None where there are no such recordings."""
    if not people:
        return None
    names = {person.name: person for person in people}
    if len(names) < 2:
        raise RecordingError(f"{where} holds one person: a takeover needs two")
    for name in wanted:
        if name is not None and name not in names:
            raise RecordingError(f"{where} holds nobody named {name!r}; it holds {', '.join(list(names)[:12])}")
    own = names[wanted[0]] if wanted[0] is not None else next(p for p in people if p.name != wanted[1])
    other = names[wanted[1]] if wanted[1] is not None else next(p for p in people if p.name != own.name)
    if own is other:
        raise RecordingError("victim and attacker are the same person: choose two")
    return own, other


def _progress(screen: Console) -> Progress:
    columns = (TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=screen, transient=True)


def _line(played: Played) -> str:
    """One event on the screen."""
    who = {Phase.ENROLLING: "learning", Phase.OWN: "victim", Phase.TAKEN_OVER: "[bold]attacker[/]"}[played.phase]
    if played.score is None:
        return f"{played.number:4} {who:<8} [red]no result within the time[/]"
    filled = round(played.score * _BAR_WIDTH)
    colour = COLOURS[played.level]
    bar = f"[{colour}]{'█' * filled}[/]{'·' * (_BAR_WIDTH - filled)}"
    took = "" if played.scored_ms is None else f"{played.scored_ms:6.0f} ms"
    padding = " " * (8 - len("attacker" if played.phase is Phase.TAKEN_OVER else who))
    reason = f"  {escape(played.reasons[0])}" if played.reasons else ""
    return f"{played.number:4} {who}{padding} {bar} {played.score:.2f} [{colour}]{played.level:<10}[/] {took}{reason}"


def _print_summary(summary: Summary, screen: Console) -> None:
    noticed = summary.noticed_after
    others = sum(each.phase is Phase.TAKEN_OVER for each in summary.events)
    own = sum(each.phase is Phase.OWN for each in summary.events)
    if noticed is None:
        screen.print(f"\n[red]The takeover was not noticed within {others} events.[/]")
    else:
        screen.print(f"\n[green]The takeover was noticed at the attacker's event {noticed}.[/]")
    screen.print(f"False alarms: {summary.false_alarms} of the victim's {own} events after learning.")
    if summary.lost:
        screen.print(
            f"[red]{summary.lost} events have no result:[/] read the pipeline's and the threat service's logs."
        )
    middle, most, worst = (summary.latency_ms(share) for share in (0.5, 0.9, 0.99))
    if middle is not None and most is not None and worst is not None:
        screen.print(f"From sending to the alert: median {middle:.0f} ms, p90 {most:.0f} ms, p99 {worst:.0f} ms.")


def _document(summary: Summary) -> dict[str, object]:
    """The JSON form: keys are a promise."""
    return {
        "noticed_after": summary.noticed_after,
        "false_alarms": summary.false_alarms,
        "lost": summary.lost,
        "p50_ms": summary.latency_ms(0.5),
        "p90_ms": summary.latency_ms(0.9),
        "p99_ms": summary.latency_ms(0.99),
        "events": [asdict(each) for each in summary.events],
    }
