"""Everything that `behaviorguard up` starts works together, comes back when it is killed, and goes when it is told."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from infra import pki
from infra.stack.health import serves_grpc
from infra.stack.ports import LOOPBACK
from infra.stack.services import SERVICES
from tests.support.stack import installed

if TYPE_CHECKING:
    from tests.support.stack import Installation

pytestmark = pytest.mark.end_to_end
WAIT_SECONDS = 60.0


def get(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": "localhost"})
        answer = connection.getresponse()
        assert answer.status == http.HTTPStatus.OK
        return json.loads(answer.read())
    finally:
        connection.close()


def test_every_service_is_healthy_and_sees_what_it_needs(stack: Installation) -> None:
    settings = stack.settings()
    status = stack.status()
    assert status["healthy"], status
    assert {service.name for service in SERVICES} <= set(status["parts"])
    assert get(settings.gateway_port, "/healthz")["status"] == "healthy"
    assert get(settings.pipeline_port, "/health")["status"] == "healthy"
    assert serves_grpc(settings.threat_port, pki.identity(settings.pki, "monitoring"))


@pytest.mark.parametrize("name", [service.name for service in SERVICES])
def test_a_killed_service_comes_back(stack: Installation, name: str) -> None:
    pid = stack.status()["parts"][name]["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        part = stack.status()["parts"][name]
        if part["state"] == "healthy" and part["pid"] not in (pid, None):
            break
        assert time.monotonic() < deadline, part
        time.sleep(0.1)


def test_serve_runs_one_service_beside_the_rest() -> None:
    with installed() as installation:
        started = installation.call("up", "--without", "gateway")
        assert started.returncode == 0, started.stdout + started.stderr
        assert "gateway" not in installation.status()["parts"]
        served = installation.start("serve", "gateway")
        try:
            port = installation.settings().gateway_port
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                try:
                    assert get(port, "/healthz")["service"] == "gateway"
                    break
                except (OSError, AssertionError):
                    assert served.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        finally:
            served.send_signal(signal.SIGTERM)
            # uvicorn drains, then ends by the signal itself.
            assert served.wait(WAIT_SECONDS) in (0, -signal.SIGTERM)
        assert installation.call("down").returncode == 0
        assert installation.processes() == []
