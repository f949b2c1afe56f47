"""`behaviorguard doctor`: what is amiss is named with what to do."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.settings import StackSettings
from infra.stack.checks import Finding, examine
from infra.stack.ports import LOOPBACK, free_port
from infra.stack.secrets import password

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PORTS = (
    "postgres_port",
    "quantum_postgres_port",
    "redis_port",
    "quantum_redis_port",
    "kafka_port",
    "kafka_controller_port",
    "threat_port",
    "pipeline_port",
    "gateway_port",
)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., StackSettings]:
    def make(**values: object) -> StackSettings:
        ports: dict[str, object] = {name: free_port() for name in PORTS}
        return StackSettings(**(ports | {"data": tmp_path / "data", "cache": tmp_path / "cache"} | values))  # type: ignore[arg-type]  # by name

    return make


def found(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def test_a_fresh_machine_has_nothing_in_the_way(settings: Callable[..., StackSettings]) -> None:
    assert [finding for finding in examine(settings()) if finding.verdict == "error"] == []


def test_a_taken_port_is_named_with_the_setting(settings: Callable[..., StackSettings]) -> None:
    with socket.create_server((LOOPBACK, 0)) as holder:
        port = holder.getsockname()[1]
        finding = found(examine(settings(kafka_port=port)), "ports")
    assert finding.verdict == "error"
    assert f"{port} is taken by" in finding.found
    assert "BEHAVIORGUARD_KAFKA_PORT" in finding.action


def test_the_port_of_an_external_part_does_not_matter(settings: Callable[..., StackSettings]) -> None:
    with socket.create_server((LOOPBACK, 0)) as holder:
        port = holder.getsockname()[1]
        findings = examine(settings(kafka_port=port, kafka_bootstrap="broker.example:9092"))
    assert found(findings, "ports").verdict == "ok"


def test_a_secret_that_others_may_read_is_an_error(settings: Callable[..., StackSettings], tmp_path: Path) -> None:
    password(tmp_path / "data" / "secrets", "one")
    (tmp_path / "data" / "secrets" / "one").chmod(0o644)
    finding = found(examine(settings()), "permissions")
    assert finding.verdict == "error"
    assert finding.action.startswith("chmod 600 ")


def test_the_in_memory_broker_is_a_warning(settings: Callable[..., StackSettings]) -> None:
    assert found(examine(settings(broker="embedded")), "broker").verdict == "warning"


def test_apache_kafka_without_java_is_an_error_when_it_was_asked_for(
    settings: Callable[..., StackSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = found(examine(settings(broker="apache")), "broker")
    assert (finding.verdict, "there is no Java" in finding.found) == ("error", True)


def test_the_command_prints_json_and_says_by_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEHAVIORGUARD_DATA", str(tmp_path))
    with socket.create_server((LOOPBACK, 0)) as holder:
        monkeypatch.setenv("BEHAVIORGUARD_REDIS_PORT", str(holder.getsockname()[1]))
        result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output)["ok"] is False


def test_it_says_what_the_hsm_is_and_that_its_share_is_gone(
    settings: Callable[..., StackSettings], tmp_path: Path
) -> None:
    here = settings(data=tmp_path)
    assert found(examine(here), "hsm").verdict == "warning"
    (tmp_path / "hsm" / "module-2").mkdir(parents=True)
    (tmp_path / "hsm" / "module-2" / "journal.log").touch()
    finding = found(examine(here), "hsm")
    assert finding.verdict == "error"
    assert "HSM_UNSEAL" in finding.action
    assert found(examine(settings(data=tmp_path, hsm_unseal="manual")), "hsm").verdict == "ok"
