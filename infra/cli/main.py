"""The command `behaviorguard`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Final

import click

from infra.stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "up": ("infra.cli.stack:up", "Start everything in the background and return when it is healthy."),
    "down": ("infra.cli.stack:down", "Stop everything; data stays."),
    "status": ("infra.cli.stack:status", "Say what runs and how it is."),
    "doctor": ("infra.cli.doctor:doctor", "Check this machine and say what to do."),
    "serve": ("infra.cli.stack:serve", "Run one service in the foreground with the stack's settings."),
    "replay": ("infra.cli.replay:replay", "Play recorded sessions into the running system."),
    "watch": ("infra.cli.watch:watch", "Follow alerts live in the terminal."),
    "evaluate": ("infra.cli.evaluate:evaluate", "Measure detection on recordings."),
    "keys": ("infra.cli.keys:keys", "Make, read, rotate and end post-quantum keys."),
    "tokens": ("infra.cli.tokens:tokens", "Issue, check and end tokens; sign messages."),
    "crypto": ("infra.cli.crypto:crypto", "Check the cryptographic primitives."),
    "hsm": ("infra.cli.hsm:hsm", "Open, close, back up and restore the HSM."),
    "audit": ("infra.cli.audit:audit", "Read, export and check the audit trail."),
    "identity": ("infra.cli.identity:identity", "See what the biometric extractors see."),
    "bench": ("infra.cli.bench:bench", "Measure speed."),
}
"""Where each command lives and what it does, in the order of `--help`. Nothing is imported before it is needed."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; `--help` reads their summaries from the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order, less those that are not installed."""
        return [name for name, (place, _) in COMMANDS.items() if _exists(place)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or return None when there is none of that name."""
        place, _ = COMMANDS.get(cmd_name, ("", ""))
        if not place or not _exists(place):
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what it cannot do is said in one sentence with what to do next, not as a traceback."""
        try:
            return super().invoke(ctx)
        except StackError as error:
            raise click.ClickException(str(error)) from error
        except PermissionError as error:
            raise click.ClickException(
                f"{error.filename} is not yours\n  -> run as its owner, or set BEHAVIORGUARD_DATA to a folder of yours"
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = [(name, COMMANDS[name][1]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _exists(place: str) -> bool:
    return importlib.util.find_spec(place.partition(":")[0]) is not None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="behaviorguard")
def main() -> None:
    """Notice within milliseconds when somebody else has taken over a session, and say why.

    \b
    Start here:
      behaviorguard up          start everything, then open the address it prints
      behaviorguard status      what runs, and how it is
      behaviorguard down        stop; data stays

    \b
    Exit codes: 0 done; 1 failed, the message says what to do; 2 wrong usage; 3 not running, or not healthy.
    """
