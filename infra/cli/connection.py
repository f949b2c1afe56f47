"""How the command line reaches the services: as the workload `operator`, with the stack's certificate."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

import click
import grpc
from behaviorguard.client import AsyncBehaviorGuardClient, ServiceError, Tls

from infra import pki
from infra.settings import StackSettings

NOT_RUNNING: Final = 3
OPERATOR: Final = "operator"
_AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_Command = TypeVar("_Command", bound=Callable[..., object])


def address_option(command: _Command) -> _Command:
    """The option `--address`, for commands that call a service."""
    text = "The service, HOST:PORT; its certificate must be known here. Default: this machine's stack."
    return click.option("--address", metavar="HOST:PORT", help=text)(command)


def open_client(address: str | None, service: str = "threat") -> AsyncBehaviorGuardClient:
    """A client for a service.

    Args:
        address: "host:port"; None: where the stack's settings say.
        service: the workload that must be there, one with a port in `StackSettings`.

    Ends the command when there is no certificate to call with.
    """
    settings = StackSettings()
    try:
        if os.environ.get("BEHAVIORGUARD_TLS_CERT"):
            tls = Tls.from_environment()
        else:
            files = pki.identity(settings.pki, OPERATOR)
            tls = Tls.from_files(files.ca, files.cert, files.key)
    except (OSError, ValueError) as error:
        fail(NOT_RUNNING, f"there is no certificate to call with: {error}", "behaviorguard up, on this machine first")
    port: int = getattr(settings, f"{service}_port")
    return AsyncBehaviorGuardClient(address or f"localhost:{port}", service, tls)


def fail(code: int, problem: str, action: str) -> NoReturn:
    """Ends the command with a problem and what to do about it."""
    click.ClickException(f"{problem}\n  -> {action}").show()
    sys.exit(code)


def report(error: ServiceError, service: str = "threat") -> NoReturn:
    """Ends the command with a service's refusal or failure."""
    if error.code in _AWAY:
        fail(
            NOT_RUNNING,
            f"the {service} service does not answer: {error.message}",
            "behaviorguard status; or behaviorguard up",
        )
    fields = "".join(f"\n  {each.field}: {each.description}" for each in error.field_violations)
    action = error.suggested_action or f"read the {service} service's log"
    fail(1, f"{error}{fields}\n  correlation id {error.correlation_id}", action)


def run(work: Coroutine[Any, Any, int], *, interrupted: int = 130, service: str = "threat") -> None:
    """Runs a command's work and ends the process with its exit code; service errors end it in words.

    Args:
        work: the command.
        interrupted: exit code after Ctrl-C.
        service: whom it calls, for messages.
    """
    try:
        sys.exit(asyncio.run(work))
    except ServiceError as error:
        report(error, service)
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
