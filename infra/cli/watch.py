"""`behaviorguard watch`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click
from behaviorguard.threat.v1 import threat_pb2, threat_service_pb2
from rich.console import Console
from rich.markup import escape

from infra.cli.connection import address_option, open_client, run
from servers.gateway.transcoding import Codec

if TYPE_CHECKING:
    from behaviorguard.client import AsyncBehaviorGuardClient

LEVELS: Final = ("normal", "suspicious", "threat", "critical")
COLOURS: Final = {"normal": "green", "suspicious": "yellow", "threat": "red", "critical": "bold white on red"}


@click.command(
    epilog="""\b
Examples:
  behaviorguard watch
  behaviorguard watch --level critical --user 8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a42
  behaviorguard watch --json --count 100 > alerts.jsonl
  behaviorguard watch --resume TOKEN        go on where an earlier watch ended

Exit codes: 0 ended by --count or Ctrl-C; 1 refused; 2 wrong usage; 3 the system does not run, or stayed away."""
)
@click.option(
    "--level", type=click.Choice(LEVELS), default="suspicious", show_default=True, help="This level and above."
)
@click.option("--user", "users", multiple=True, metavar="UUID", help="Only this person; can be repeated.")
@click.option("--session", default="", metavar="UUID", help="Only this session.")
@click.option("--resume", default="", metavar="TOKEN", help="First everything after this token of an earlier alert.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many alerts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, as browsers get them over /ws.")
@address_option
def watch(
    level: str,
    users: tuple[str, ...],
    session: str,
    resume: str,
    count: int | None,
    as_json: bool,
    address: str | None,
) -> None:
    """Follow alerts live in the terminal; a dropped connection goes on where it broke off."""
    request = threat_service_pb2.WatchAlertsRequest(
        user_ids=users,
        minimum_level=threat_pb2.ThreatLevel.Value(f"THREAT_LEVEL_{level.upper()}"),
        session_id=session,
        resume_token=resume,
    )
    run(_watch(request, address, count, as_json=as_json), interrupted=0)


async def _watch(
    request: threat_service_pb2.WatchAlertsRequest, address: str | None, count: int | None, *, as_json: bool
) -> int:
    screen = Console(highlight=False)
    async with open_client(address) as client:
        if not as_json:
            screen.print("Following alerts; Ctrl-C ends it.", style="dim")
        last = ""
        try:
            last = await _follow(client, request, screen, count, as_json=as_json)
        finally:
            last = last or request.resume_token
            if last and not as_json:
                screen.print(f"Go on from here: behaviorguard watch --resume {last}", style="dim")
    return 0


async def _follow(
    client: AsyncBehaviorGuardClient,
    request: threat_service_pb2.WatchAlertsRequest,
    screen: Console,
    count: int | None,
    *,
    as_json: bool,
) -> str:
    """Prints alerts; returns the last one's token."""
    seen, codec = 0, Codec()
    async for alert in client.watch_alerts(request):
        request.resume_token = alert.resume_token
        if as_json:
            sys.stdout.write(codec.encode(alert).decode() + "\n")
            sys.stdout.flush()
        else:
            for line in lines(alert.data):
                screen.print(line, soft_wrap=True)
        seen += 1
        if seen == count:
            break
    return request.resume_token


def lines(data: threat_service_pb2.AlertData) -> list[str]:
    """An alert as lines of rich's markup: what and who, then the reasons, then what to do."""
    level = threat_pb2.ThreatLevel.Name(data.threat_level).removeprefix("THREAT_LEVEL_").lower()
    when = data.timestamp.ToDatetime().strftime("%H:%M:%S")
    head = f"{when} [{COLOURS.get(level, 'white')}]{level:^10}[/] {data.threat_score:.2f}  person {data.user_id}"
    found = [f"{head}  [dim]in {data.processing_time_ms} ms, session {data.session_id}[/]"]
    found += [f"           because  {escape(reason.text)}" for reason in data.reasons[:3]]
    found += [f"           do       {escape(text)}" for text in data.recommendations[:2]]
    return found
