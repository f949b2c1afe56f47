"""`behaviorguard replay` and `watch` against a scripted threat service on a real mesh server."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import signal
import sys
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.threat.v1 import threat_pb2, threat_service_pb2, threat_service_pb2_grpc

from infra import pki as authority
from infra.cli.watch import lines
from infra.evaluation.recordings import RecordingError, read_keystrokes
from infra.replay.script import Observed, Phase, metrics_of, observations, takeover
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.settings import MeshSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICE = "behaviorguard.threat.v1.ThreatService"
REPOSITORY = Path(__file__).parents[3]


@dataclass
class Scripted(threat_service_pb2_grpc.ThreatServiceServicer):
    """Scores by one rule: somebody who holds keys for over 150 ms is not the person."""

    alerts: list[threat_service_pb2.WatchAlertsResponse] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    watches: list[Any] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)
    drop_after: int = 0
    silent: bool = False

    async def StartTrial(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        answer = threat_service_pb2.StartTrialResponse(user_id=str(uuid.uuid4()), session_id=str(uuid.uuid4()))
        answer.expires_at.GetCurrentTime()
        return answer

    async def AnalyzeRealtime(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        hold = request.event_data.behavioral_metrics.keystroke_dynamics[0].hold_ms[0]
        strange = hold > 150
        alert = threat_service_pb2.WatchAlertsResponse(type="threat_alert", resume_token=str(len(self.alerts) + 1))
        alert.data.user_id, alert.data.event_id = request.user_id, request.event_data.event_id
        alert.data.threat_score = 0.95 if strange else 0.05
        level = threat_pb2.THREAT_LEVEL_CRITICAL if strange else threat_pb2.THREAT_LEVEL_NORMAL
        alert.data.threat_level = level
        if strange:
            alert.data.reasons.add(text="Keys are [held] longer.")
            alert.data.recommendations.append("End the session.")
        if not self.silent:
            async with self.arrived:
                self.alerts.append(alert)
                self.arrived.notify_all()
        return threat_service_pb2.AnalyzeRealtimeResponse(event_id=request.event_data.event_id, preliminary_risk=0.1)

    async def WatchAlerts(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        self.watches.append(request)
        position = int(request.resume_token or 0)
        sent = 0
        while True:
            async with self.arrived:
                while len(self.alerts) <= position:
                    await self.arrived.wait()
            yield self.alerts[position]
            position += 1
            sent += 1
            if sent == self.drop_after:
                self.drop_after = 0
                raise MeshError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "dropped")

    async def GetThreatEvent(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        raise MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "not scored yet")

    async def EraseBehavior(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        self.erased.append(request.user_id)
        return threat_service_pb2.EraseBehaviorResponse()


@asynccontextmanager
async def serving(pki: Path) -> AsyncIterator[tuple[Scripted, int]]:
    files = authority.identity(pki, "threat")
    settings = MeshSettings(
        service_name="threat", tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key, drain_seconds=0.2
    )
    scripted = Scripted()  # type: ignore[abstract]  # the other RPCs are not called
    binding = ServiceBinding(SERVICE, threat_service_pb2_grpc.add_ThreatServiceServicer_to_server, scripted)
    server = MeshServer(settings, [binding], limiter=Unlimited())
    port = await server.start()
    yield scripted, port
    await server.drain()


async def start(pki: Path, *arguments: str) -> asyncio.subprocess.Process:
    """Starts `behaviorguard`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("BEHAVIORGUARD_")}
    environment = inherited | authority.identity(pki, "operator").environment() | {"COLUMNS": "200"}
    run = (sys.executable, "-c", "from infra.cli.main import main; main()", *arguments)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*run, env=environment, cwd=REPOSITORY, stdout=pipe, stderr=pipe)


async def command(pki: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs `behaviorguard`; returns exit code, output and errors."""
    process = await start(pki, *arguments)
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode(), errors.decode()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A keystroke table of two people: "quick" holds keys for about 90 ms, "slow" for about 200 ms."""
    path, source = tmp_path / "table.csv", random.Random(1)  # noqa: S311 -- test data
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Subject", "Hold a", "Hold b", "Hold Enter", "DD a.b", "DD b.Enter"])
        for name, hold in (("quick", 90), ("slow", 200)):
            for _ in range(12):
                writer.writerow([name, *(hold + source.uniform(-5, 5) for _ in range(3)), 150, 160])
    return path


async def test_a_takeover_is_played_noticed_and_erased(pki: Path, table: Path) -> None:
    async with serving(pki) as (scripted, port):
        options = ("--enrol", "5", "--takeover-at", "3", "--events", "4", "--rate", "500", "--json")
        people = ("--victim", "quick", "--attacker", "slow")
        address = ("--address", f"localhost:{port}")
        code, output, errors = await command(pki, "replay", "--keystrokes", str(table), *people, *options, *address)
    assert code == 0, errors
    document = json.loads(output)
    assert document["noticed_after"] == 1
    assert document["false_alarms"] == document["lost"] == 0
    assert document["p50_ms"] is not None
    phases = [each["phase"] for each in document["events"]]
    assert phases == ["enrolling"] * 5 + ["own"] * 3 + ["taken over"] * 4
    assert document["events"][-1]["level"] == "critical"
    assert document["events"][-1]["reasons"] == ["Keys are [held] longer."]
    assert len(scripted.erased) == 1
    assert "attacker" in errors  # the screen, beside the JSON


async def test_the_screen_tells_the_story(pki: Path, table: Path) -> None:
    async with serving(pki) as (scripted, port):
        options = ("--enrol", "2", "--takeover-at", "1", "--events", "2", "--rate", "500", "--keep")
        code, output, errors = await command(
            pki, "replay", "--keystrokes", str(table), *options, "--address", f"localhost:{port}"
        )
    assert code == 0, errors
    assert "The takeover was noticed at the attacker's event 1." in output
    assert "Keys are [held] longer." in output
    assert scripted.erased == []


async def test_a_dropped_stream_loses_nothing(pki: Path, table: Path) -> None:
    async with serving(pki) as (scripted, port):
        scripted.drop_after = 2
        options = ("--enrol", "3", "--takeover-at", "1", "--events", "1", "--rate", "500", "--json")
        code, output, errors = await command(
            pki, "replay", "--keystrokes", str(table), *options, "--address", f"localhost:{port}"
        )
        assert code == 0, errors
        assert json.loads(output)["lost"] == 0
        assert scripted.watches[-1].resume_token == "2"


async def test_watch_prints_what_browsers_get(pki: Path) -> None:
    async with serving(pki) as (scripted, port):
        alert = threat_service_pb2.WatchAlertsResponse(type="threat_alert", resume_token="1")
        alert.data.user_id, alert.data.threat_level = str(uuid.UUID(int=1)), threat_pb2.THREAT_LEVEL_CRITICAL
        alert.data.reasons.add(text="Keys are [held] longer.")
        scripted.alerts.append(alert)
        address = ("--address", f"localhost:{port}")
        code, output, errors = await command(pki, "watch", "--json", "--count", "1", "--level", "threat", *address)
        assert code == 0, errors
        document = json.loads(output)
        assert document["type"] == "threat_alert"
        assert document["data"]["threatLevel"] == "critical"
        assert scripted.watches[-1].minimum_level == threat_pb2.THREAT_LEVEL_THREAT
        code, output, errors = await command(pki, "watch", "--count", "1", *address)
        assert code == 0, errors
        assert "Keys are [held] longer." in output
        assert "behaviorguard watch --resume 1" in output


async def test_ctrl_c_ends_a_watch_and_says_how_to_go_on(pki: Path) -> None:
    async with serving(pki) as (scripted, port):
        alert = threat_service_pb2.WatchAlertsResponse(type="threat_alert", resume_token="1")
        alert.data.threat_level = threat_pb2.THREAT_LEVEL_THREAT
        scripted.alerts.append(alert)
        process = await start(pki, "watch", "--address", f"localhost:{port}")
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while b"person" not in await process.stdout.readline():
                pass
            process.send_signal(signal.SIGINT)
            output, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert b"--resume 1" in output
    assert errors == b""


async def test_what_is_wrong_is_said_with_what_to_do(pki: Path, table: Path, tmp_path: Path) -> None:
    away = ("--address", "localhost:1")
    keystrokes = ("replay", "--keystrokes", str(table))
    for arguments, code, said in (
        ((*keystrokes, "--enrol", "2", "--takeover-at", "1", *away), 3, "behaviorguard up"),
        ((*keystrokes, "--victim", "nobody", *away), 1, "nobody named"),
        ((*keystrokes, "--victim", "quick", "--attacker", "quick", *away), 1, "choose two"),
        ((*keystrokes, "--enrol", "100", *away), 1, "lower --enrol"),
        (("replay",), 2, "--keystrokes"),
        (("replay", "--keystrokes", str(tmp_path / "none.csv")), 2, "does not exist"),
        (("watch", "--level", "loud"), 2, "loud"),
    ):
        found, output, errors = await command(pki, *arguments)
        assert found == code, output + errors
        assert said in errors
        assert "Traceback" not in errors


async def test_a_refusal_names_the_field(pki: Path) -> None:
    async with serving(pki) as (_, port):
        arguments = ("watch", "--user", "not-a-uuid", "--address", f"localhost:{port}")
        code, _, errors = await command(pki, *arguments)
    assert code == 1
    assert "user_ids" in errors
    assert "->" in errors


def test_a_session_is_the_victims_until_it_is_the_attackers(table: Path) -> None:
    own, other = (observations(person, None) for person in read_keystrokes(table))
    steps = takeover(own, other, enrol=4, takeover_at=2, events=3)
    assert [step.phase for step in steps] == [Phase.ENROLLING] * 4 + [Phase.OWN] * 2 + [Phase.TAKEN_OVER] * 3
    assert steps[6].observed is other[0]
    with pytest.raises(RecordingError, match="lower"):
        takeover(own, other, enrol=10, takeover_at=3, events=1)


def test_behaviour_is_sent_as_the_contract_has_it(table: Path) -> None:
    run = read_keystrokes(table)[0].entries[0]
    metrics = metrics_of(Observed(run, None), seconds=7)
    sent = metrics.keystroke_dynamics[0]
    assert len(sent.hold_ms) == len(sent.flight_ms) == len(sent.key_classes) == 3
    assert sent.flight_ms[0] == 0
    assert not sent.pressure
    assert metrics.session_duration == 7


def test_an_alert_on_the_screen_says_why_and_what_to_do() -> None:
    data = threat_service_pb2.AlertData(threat_level=threat_pb2.THREAT_LEVEL_THREAT, threat_score=0.8)
    data.reasons.add(text="Slower [than] usual.")
    data.recommendations.append("Ask again.")
    shown = "\n".join(lines(data))
    assert "threat" in shown
    assert r"Slower \[than] usual." in shown
    assert "Ask again." in shown
