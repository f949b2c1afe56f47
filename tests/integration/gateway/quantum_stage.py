"""A gateway before a scripted key service and a scripted audit trail, for the tests beside this file."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from behaviorguard.quantum.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
)

from infra import pki as authority
from servers.mesh.context import CallContext, call_context
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.settings import MeshSettings
from tests.integration.gateway.gateway_stage import OPERATOR_TOKEN, open_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.gateway.gateway_stage import Stage

KEYGEN = "/api/quantum/keygen"
OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
KEY = {"keyType": "master", "algorithm": "Kyber768", "purpose": "encryption", "securityLevel": "NIST-L3"}
KEY_ID = "55555555-5555-4555-8555-555555555555"


class ScriptedKeyService(key_service_pb2_grpc.KeyServiceServicer):
    """Answers as told and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.calls: list[CallContext] = []
        self.error: Exception | None = None
        self.answer = key_service_pb2.GenerateKeyResponse(
            key_id=KEY_ID,
            public_key=b"\x00" * 1184,
            algorithm="ML-KEM-768",
            security_level="NIST-L3",
            key_handle="handle",
            quantum_secured=True,
            version=1,
        )

    async def GenerateKey(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        self.requests.append(request)
        self.calls.append(call_context())
        if self.error is not None:
            raise self.error
        return self.answer


class ScriptedTrail(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps records, or fails."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.error: Exception | None = None

    async def AppendAuditRecord(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        if self.error is not None:
            raise self.error
        self.records.append(request)
        return audit_service_pb2.AppendAuditRecordResponse(audit_id=KEY_ID)


class QuantumStage:
    """A gateway before scripted quantum services."""

    def __init__(self, stage: Stage, keys: ScriptedKeyService, trail: ScriptedTrail, mesh: MeshServer) -> None:
        self.stage = stage
        self.client = stage.client
        self.keys = keys
        self.trail = trail
        self.mesh = mesh

    async def keygen(self, body: dict[str, Any], headers: Any = ()) -> Any:
        """Ask for a key as the operator."""
        return await self.client.post(KEYGEN, json=body, headers=[*OPERATOR.items(), *headers])


@asynccontextmanager
async def open_quantum_stage(pki: Path, store: str, folder: Path) -> AsyncIterator[QuantumStage]:
    """A gateway whose refusals go to the scripted trail."""
    files = authority.issue(pki, "quantum")
    keys = ScriptedKeyService()  # type: ignore[abstract]  # the RPCs that no test here calls
    trail = ScriptedTrail()  # type: ignore[abstract]  # the same
    settings = MeshSettings(
        service_name="quantum", tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key, drain_seconds=0.5
    )
    package = "behaviorguard.quantum.v1"
    bindings = [
        ServiceBinding(f"{package}.KeyService", key_service_pb2_grpc.add_KeyServiceServicer_to_server, keys),
        ServiceBinding(f"{package}.AuditService", audit_service_pb2_grpc.add_AuditServiceServicer_to_server, trail),
    ]
    mesh = MeshServer(settings, bindings, limiter=Unlimited())
    target = f"127.0.0.1:{await mesh.start()}"
    try:
        async with open_stage(pki, store, folder, quantum_target=target, audit_target=target) as stage:
            yield QuantumStage(stage, keys, trail, mesh)
    finally:
        await mesh.drain()
