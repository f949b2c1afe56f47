"""`behaviorguard up`, `down`, `status`, `serve`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from infra.settings import StackSettings, load_settings
from infra.stack.account import reachable_folder, unprivileged_account
from infra.stack.addresses import addresses
from infra.stack.hsm import describe
from infra.stack.leftovers import leftovers, stop_leftovers
from infra.stack.services import OPERATOR_TOKEN, SERVICES, service_command, service_named
from infra.stack.state import StackStatus, is_supervised, read_status

if TYPE_CHECKING:
    from infra.stack.services import Service
    from infra.stack.state import PartStatus

NOT_RUNNING = 3
STOP_SECONDS = 120.0
COLOURS = {"healthy": "green", "starting": "yellow", "restarting": "yellow", "unhealthy": "red"}


@click.command(
    epilog="""\b
Examples:
  behaviorguard up
  BEHAVIORGUARD_GATEWAY_PORT=13000 behaviorguard up
  BEHAVIORGUARD_KAFKA_BOOTSTRAP=broker:9092 behaviorguard up     use a broker that runs elsewhere
  behaviorguard up --without threat                              leave one out, to run it with `serve`

\b
Exit codes: 0 healthy (or it already ran); 1 the start failed, nothing is left running."""
)
@click.option("--without", multiple=True, metavar="NAME", help="Leave this service out; can be repeated.")
def up(without: tuple[str, ...]) -> None:
    """Start everything in the background and return when it is healthy."""
    console = Console(highlight=False, soft_wrap=True)
    settings = load_settings()
    for name in without:
        _known_service(name)
    if is_supervised(settings.run):
        console.print("It already runs.")
        _print_where(console, settings, read_status(settings.run))
        return
    begun = time.monotonic()
    try:
        supervisor = _start_supervisor(settings, without)
    except OSError as error:
        raise click.ClickException(
            f"{settings.data} cannot be written: {error.strerror}\n  -> set BEHAVIORGUARD_DATA to a folder of yours"
        ) from error
    try:
        status = _follow_start(console, settings, supervisor)
    except KeyboardInterrupt:
        supervisor.send_signal(signal.SIGTERM)
        console.print("Stopping what was started ...")
        supervisor.wait(STOP_SECONDS)
        raise
    if status is None or status.phase != "running":
        problem = status.problem if status is not None and status.problem else _supervisor_end(settings)
        action = status.action if status is not None and status.action else f"read {settings.logs / 'supervisor.log'}"
        raise click.ClickException(f"{problem}\n  -> {action}\nNothing is left running.")
    console.print(f"Healthy after {time.monotonic() - begun:.1f} s.")
    _print_where(console, settings, status)


def _start_supervisor(settings: StackSettings, without: tuple[str, ...]) -> subprocess.Popen[bytes]:
    # Others may pass through, because PostgreSQL's account must, but not look around.
    settings.data.mkdir(mode=0o711, parents=True, exist_ok=True)
    settings.logs.mkdir(mode=0o700, exist_ok=True)
    settings.run.mkdir(mode=0o700, exist_ok=True)
    (settings.run / "state.json").touch()
    log = settings.logs / "supervisor.log"
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.stack.supervisor", *without],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # gRPC's fork handlers would run at each start of a child, which needs none of them: it executes at once.
            env={**os.environ, "BEHAVIORGUARD_DATA": str(settings.data), "GRPC_ENABLE_FORK_SUPPORT": "0"},
        )


def _follow_start(console: Console, settings: StackSettings, supervisor: subprocess.Popen[bytes]) -> StackStatus | None:
    """Print what becomes ready until everything is or the start failed."""
    shown: set[str] = set()
    while True:
        ended = supervisor.poll() is not None
        status = read_status(settings.run)
        if status is not None and status.pid == supervisor.pid:
            for line in _news(status):
                if line not in shown:
                    shown.add(line)
                    console.print(line)
            if status.phase == "running":
                return status
        if ended:
            return status if status is not None and status.pid == supervisor.pid else None
        time.sleep(0.05)


def _supervisor_end(settings: StackSettings) -> str:
    lines = (settings.logs / "supervisor.log").read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"the supervisor ended: {last}"


def _news(status: StackStatus) -> list[str]:
    ready = [
        f"  [green]ready[/] {part.name:<17} {part.address:<24} {part.ready_seconds:5.1f} s"
        for part in status.parts.values()
        if part.state == "healthy" and part.ready_seconds is not None
    ]
    return [f"  [yellow]note[/]  {escape(note)}" for note in status.notes] + ready


def _print_where(console: Console, settings: StackSettings, status: StackStatus | None) -> None:
    """Say where to go."""
    names = set(status.parts) if status is not None else set()
    if "gateway" in names:
        console.print(f"\nOpen [bold]http://localhost:{settings.gateway_port}/[/]")
        console.print(f"Operator's token: {settings.secrets / OPERATOR_TOKEN}")
    if "threat" in names:
        pki = settings.pki
        console.print(
            # grpcurl built before Go 1.24 lacks the post-quantum key agreement that the mesh requires; buf has it.
            f"Ask by gRPC: buf curl --protocol grpc --cacert {pki}/ca.crt --cert {pki}/operator.crt"
            f" --key {pki}/operator.key https://localhost:{settings.threat_port} --list-methods"
        )
    console.print("How it is: behaviorguard status    Stop: behaviorguard down")


@click.command(
    epilog="""\b
Examples:
  behaviorguard down
  behaviorguard down --erase        erase databases, messages, certificates and passwords as well

\b
Exit codes: 0 nothing runs any more (or nothing ran); 1 something could not be stopped."""
)
@click.option("--erase", is_flag=True, help="Erase everything in the data folder afterwards.")
@click.option("--yes", is_flag=True, help="Do not ask before erasing.")
def down(erase: bool, yes: bool) -> None:
    """Stop everything; data stays."""
    settings = load_settings()
    if erase and not yes:
        click.confirm(f"Erase everything in {settings.data}?", abort=True)
    ran = is_supervised(settings.run)
    if ran:
        click.echo("Stopping ...")
        _stop_supervisor(settings)
    left = stop_leftovers(settings.run)
    if left:
        click.echo(f"Stopped what an earlier supervisor had left: {', '.join(left)}")
    click.echo("Stopped." if ran or left else "Nothing runs.")
    if erase:
        _erase(settings)
        click.echo(f"Erased {settings.data}")


def _stop_supervisor(settings: StackSettings) -> None:
    status = read_status(settings.run)
    if status is None:
        raise click.ClickException(f"{settings.run}/state.json cannot be read\n  -> end the supervisor yourself")
    deadline = time.monotonic() + STOP_SECONDS
    try:
        supervisor = psutil.Process(status.pid)
        supervisor.terminate()
        supervisor.wait(STOP_SECONDS)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        supervisor.kill()  # its children are found by the state file
    while is_supervised(settings.run):
        if time.monotonic() > deadline + 5:
            raise click.ClickException(f"the supervisor (process {status.pid}) does not end\n  -> end it yourself")
        time.sleep(0.05)


def _erase(settings: StackSettings) -> None:
    account = unprivileged_account()
    for name in ("postgres-main", "postgres-quantum"):
        shutil.rmtree(reachable_folder(account, settings.data / name), ignore_errors=True)
    for part in (
        "postgres-main",
        "postgres-quantum",
        "redis-main",
        "redis-quantum",
        "kafka",
        "hsm",
        "pki",
        "secrets",
        "run",
        "logs",
    ):
        shutil.rmtree(settings.data / part, ignore_errors=True)


@click.command(
    epilog="""\b
Examples:
  behaviorguard status
  behaviorguard status --json

\b
Exit codes: 0 everything is healthy; 3 it does not run, or something is not healthy."""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> None:
    """Say what runs and how it is."""
    settings = load_settings()
    running = is_supervised(settings.run)
    found = read_status(settings.run) or StackStatus(phase="stopped")
    left = {} if running else leftovers(settings.run)
    if not running and found.phase in {"starting", "running", "stopping"}:
        found.phase = "stopped"
    if as_json:
        values = {
            "running": running,
            "healthy": running and found.healthy,
            **asdict(found),
            "left_behind": sorted(left.values()),
        }
        click.echo(json.dumps(values, indent=1))
    else:
        _print_status(Console(highlight=False, soft_wrap=True), settings, found, running=running, left=left)
    sys.exit(0 if running and found.healthy else NOT_RUNNING)


def _print_status(
    console: Console, settings: StackSettings, found: StackStatus, *, running: bool, left: dict[int, str]
) -> None:
    if left:
        console.print(f"The supervisor is gone, and {', '.join(sorted(left.values()))} still run: behaviorguard down")
    if not running:
        if found.problem:
            console.print(f"The last start failed: {escape(found.problem)}\n  -> {escape(found.action)}")
        console.print("It does not run. Start it: behaviorguard up")
        return
    address = Column("address", overflow="fold", min_width=22)
    table = Table("part", "state", address, "process", "restarts", "memory", "detail", box=None)
    for part in found.parts.values():
        colour = COLOURS.get(part.state, "white")
        state, process = f"[{colour}]{part.state}[/]", str(part.pid or "-")
        table.add_row(part.name, state, part.address, process, str(part.restarts), _memory(part), escape(part.detail))
    console.print(table)
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    if "hsm" in found.parts:
        console.print(f"HSM: {escape(describe(settings))}")
    unhealthy = [part.name for part in found.parts.values() if part.state != "healthy"]
    if unhealthy:
        console.print(f"Read {settings.logs}/NAME.log for: {', '.join(unhealthy)}")
    _print_where(console, settings, found)


def _memory(part: PartStatus) -> str:
    """Resident memory of a part's process and its children."""
    if part.pid is None:
        return "-"
    try:
        process = psutil.Process(part.pid)
        total = sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
    except psutil.Error:
        return "-"
    return f"{total / 2**20:.0f} MiB"


@click.command(
    epilog="""\b
Examples:
  behaviorguard up --without threat
  behaviorguard serve threat

\b
Exit codes: those of the service; 1 when it cannot be started."""
)
@click.argument("name")
def serve(name: str) -> None:
    """Run one service in the foreground with the stack's settings.

    The stores and the broker must run: `behaviorguard up --without NAME` starts all but this service.
    """
    settings = load_settings()
    service = _known_service(name)
    found = read_status(settings.run)
    if not is_supervised(settings.run) or found is None:
        raise click.ClickException(f"the stores do not run\n  -> behaviorguard up --without {name}")
    if name in found.parts:
        hint = f"behaviorguard down, then behaviorguard up --without {name}"
        raise click.ClickException(f"{name} runs already, under the supervisor\n  -> {hint}")
    command = service_command(service, settings, addresses(settings))
    # Replaces this process: signals and the exit code are the service's own.
    os.execve(command.argv[0], list(command.argv), dict(command.environment))  # noqa: S606 - a list, no shell


def _known_service(name: str) -> Service:
    try:
        return service_named(name)
    except KeyError:
        names = ", ".join(service.name for service in SERVICES)
        raise click.UsageError(f"there is no service {name!r}; there are: {names}") from None
