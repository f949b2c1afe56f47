"""Real servers over loopback sockets, with identities of an authority made for the test run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from behaviorguard.threat.v1 import threat_service_pb2_grpc as threat_grpc

from infra import pki
from servers.mesh.server import MeshServer, ServiceBinding
from tests.support.mesh import SERVICE, FakeThreat, Identities, Running, settings_for


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    folder = tmp_path_factory.mktemp("pki")
    pki.ensure_authority(folder)
    return Identities(folder)


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """Identities with the right names from an authority that is not ours."""
    folder = tmp_path_factory.mktemp("strangers")
    pki.ensure_authority(folder)
    return Identities(folder)


StartServer = Callable[..., Any]


@pytest.fixture
async def serve(identities: Identities) -> AsyncIterator[StartServer]:
    """Starts servers: `running = await serve(max_message_bytes=..., server={"limiter": ...})`."""
    started: list[Running] = []

    async def start(
        *,
        servicer: FakeThreat | None = None,
        self_checked: frozenset[str] = frozenset(),
        server: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Running:
        fake = servicer or FakeThreat()
        binding = ServiceBinding(SERVICE, threat_grpc.add_ThreatServiceServicer_to_server, fake, self_checked)
        mesh = MeshServer(settings_for(identities.of("threat"), **settings), [binding], **(server or {}))
        running = Running(mesh, fake, await mesh.start(), identities)
        started.append(running)
        return running

    yield start
    for running in started:
        await running.close()
