"""`python -m infra.bench.quantum_node quantum|hsm|echo REPORT [--watch-loop]`: a server under load, as a process.

`quantum` and `hsm` are the services as they are, but for request budgets. `echo` answers EncryptTemplate on the same
server stack by doing the primitives alone: no key look-up, no audit record. At its end the process writes what it saw
to REPORT: seconds that making keys took, processor time, and with `--watch-loop` the longest step of the event loop (on
asyncio's own loop: uvloop's steps cannot be watched).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import threading
import time
import uuid
from asyncio import events
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from behaviorguard.quantum.v1 import template_service_pb2 as pb
from behaviorguard.quantum.v1 import template_service_pb2_grpc as grpc_stubs

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.crypto.sealing import seal
from servers.hsm.app import hsm_app
from servers.hsm.entropy import EntropyPool
from servers.hsm.keystore import KeyStore
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding, spare_collections
from servers.mesh.settings import MeshSettings
from servers.quantum.app import quantum_app
from servers.quantum.key_service import KeyService
from servers.quantum.settings import QuantumSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from servers.hsm.sealed import SealedSeed
    from servers.mesh.audit import Outcome
    from servers.mesh.context import CallContext

TEMPLATES = "behaviorguard.quantum.v1.TemplateService"


@dataclass
class Report:
    """What the process saw."""

    key_seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds that making a key took, by algorithm. In the HSM: from drawing entropy until the key is made and its seed
    sealed. In the quantum service: until all of it is durable, replicas, database and audit record."""
    longest_step: float = 0.0
    """Processor seconds of the event loop's longest step."""

    def write(self, place: Path) -> None:
        """Write it down."""
        found = {"key_seconds": self.key_seconds, "longest_step": self.longest_step}
        place.write_text(json.dumps(found | {"cpu_seconds": time.process_time()}))


class NoAudit:
    """Keeps nothing."""

    async def record(self, call: CallContext, outcome: Outcome) -> None:
        """See `AuditSink`."""


class Echo(grpc_stubs.TemplateServiceServicer):
    """The primitives alone."""

    def __init__(self, provider_name: str) -> None:
        provider = provider_named(provider_name)
        private = provider.kem_private_key(Algorithm.ML_KEM_768, bytes(64))
        self._raw = private.public_bytes
        self._key = provider.kem_public_key(Algorithm.ML_KEM_768, self._raw)
        self._key_id = str(uuid.uuid4())

    async def EncryptTemplate(  # noqa: N802 - gRPC's names are the contract's
        self, request: pb.EncryptTemplateRequest, context: Any
    ) -> pb.EncryptTemplateResponse:
        """Encapsulate, derive, encrypt."""
        del context
        sealed = seal(self._key, b"benchmark", request.user_id.encode(), request.biometric_template)
        return pb.EncryptTemplateResponse(
            encrypted_template=sealed.kem_ciphertext + sealed.nonce + sealed.ciphertext,
            public_key=self._raw,
            key_id=self._key_id,
            security_level=Algorithm.ML_KEM_768.security_level,
            algorithm=Algorithm.ML_KEM_768.value,
            key_version=1,
        )


@asynccontextmanager
async def _quantum(report: Report) -> AsyncIterator[MeshServer]:
    generate = KeyService.GenerateKey

    async def timed(self: KeyService, request: Any, context: Any) -> Any:
        begun = time.perf_counter()
        answer = await generate(self, request, context)
        report.key_seconds[answer.algorithm].append(time.perf_counter() - begun)
        return answer

    KeyService.GenerateKey = timed  # type: ignore[method-assign]  # so that the service stays as it is
    async with quantum_app(limiter=Unlimited()) as server:
        yield server


@asynccontextmanager
async def _hsm(report: Report) -> AsyncIterator[MeshServer]:
    draw, put, begun = EntropyPool.draw, KeyStore.put, threading.local()

    def timed_draw(self: EntropyPool, *arguments: Any) -> Any:
        begun.at = time.perf_counter()
        return draw(self, *arguments)

    def timed_put(self: KeyStore, sealed: SealedSeed, *arguments: Any) -> Any:
        report.key_seconds[sealed.header.algorithm].append(time.perf_counter() - begun.at)
        return put(self, sealed, *arguments)

    EntropyPool.draw = timed_draw  # type: ignore[method-assign, assignment]  # so that the HSM stays as it is
    KeyStore.put = timed_put  # type: ignore[method-assign, assignment]  # see above
    async with hsm_app(limiter=Unlimited()) as server:
        yield server


@asynccontextmanager
async def _echo(_: Report) -> AsyncIterator[MeshServer]:
    settings = MeshSettings()  # type: ignore[call-arg]  # from the environment
    provider_name = QuantumSettings.model_fields["crypto_provider"].default
    echo = Echo(provider_name)  # type: ignore[abstract]  # one RPC is called
    binding = ServiceBinding(TEMPLATES, grpc_stubs.add_TemplateServiceServicer_to_server, echo)
    yield MeshServer(settings, [binding], limiter=Unlimited(), audit=NoAudit())


async def _serve(kind: str, report: Report) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with {"quantum": _quantum, "hsm": _hsm, "echo": _echo}[kind](report) as server:
        spare_collections()  # as `servers.mesh.server.run` does
        await server.start()
        await told.wait()
        await server.drain()


def _watch_steps(report: Report) -> None:
    run = events.Handle._run

    def measured(handle: Any) -> None:
        cpu = time.thread_time()
        run(handle)
        cpu = time.thread_time() - cpu
        report.longest_step = max(report.longest_step, cpu)

    events.Handle._run = measured  # type: ignore[assignment, method-assign]  # the one place that every step passes


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["quantum", "hsm", "echo"])
    parser.add_argument("report", type=Path)
    parser.add_argument("--watch-loop", action="store_true")
    arguments = parser.parse_args()
    report = Report()
    if arguments.watch_loop:
        asyncio.run(_watched(arguments.kind, report))
    else:
        uvloop.run(_serve(arguments.kind, report))
    report.write(arguments.report)


async def _watched(kind: str, report: Report) -> None:
    # Told when the service is warm: putting it together is no step of serving.
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _watch_steps, report)
    await _serve(kind, report)


if __name__ == "__main__":
    main()
