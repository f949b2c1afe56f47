"""The command line's entry: fast help, commands imported on demand, exit codes said where people look."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from infra.cli.main import COMMANDS, main


def test_help_imports_no_command() -> None:
    script = (
        "import sys; from infra.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "loaded = {'psycopg', 'grpc', 'numpy', 'rich', 'infra.cli.stack'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "Start everything in the background" in done.stdout


@pytest.mark.parametrize("command", ["up", "down", "status", "doctor", "serve"])
def test_each_command_shows_examples_and_exit_codes(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert f"behaviorguard {command}" in result.output
    assert "Exit codes:" in result.output


def test_summaries_agree_with_the_commands_themselves() -> None:
    for name in ("up", "down", "status", "serve"):
        command = main.get_command(None, name)  # type: ignore[arg-type]  # the context is not used
        assert command is not None
        assert command.help is not None
        assert command.help.partition("\n")[0] == COMMANDS[name][1]


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["fly"])
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_a_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIORGUARD_KAFKA_PORT", "many")
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == 1
    assert "BEHAVIORGUARD_KAFKA_PORT cannot be used" in result.output
    assert "Traceback" not in result.output
