"""Fields in headers, as the document's flow 3 has them: over a real gateway before a scripted key service."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.quantum.v1 import key_service_pb2, key_service_pb2_grpc

from infra import pki as authority
from servers.mesh.context import CallContext, call_context
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID, MeshSettings
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


class QuantumStage:
    """A gateway before a scripted key service."""

    def __init__(self, stage: Stage, keys: ScriptedKeyService) -> None:
        self.client = stage.client
        self.keys = keys

    async def keygen(self, body: dict[str, Any], headers: Any = ()) -> Any:
        return await self.client.post(KEYGEN, json=body, headers=[*OPERATOR.items(), *headers])


@pytest.fixture
async def quantum(pki: Path, redis_url: str, tmp_path: Path) -> AsyncIterator[QuantumStage]:
    files = authority.issue(pki, "quantum")
    keys = ScriptedKeyService()  # type: ignore[abstract]  # the RPCs that no test here calls
    settings = MeshSettings(
        service_name="quantum", tls_ca=files.ca, tls_cert=files.cert, tls_key=files.key, drain_seconds=0.5
    )
    binding = ServiceBinding(
        "behaviorguard.quantum.v1.KeyService", key_service_pb2_grpc.add_KeyServiceServicer_to_server, keys
    )
    mesh = MeshServer(settings, [binding], limiter=Unlimited())
    target = f"127.0.0.1:{await mesh.start()}"
    try:
        async with open_stage(pki, redis_url, tmp_path, quantum_target=target) as stage:
            yield QuantumStage(stage, keys)
    finally:
        await mesh.drain()


async def test_the_header_names_the_organisation_and_the_answer_says_key_and_level(quantum: QuantumStage) -> None:
    given = str(uuid.uuid4())
    answer = await quantum.keygen(
        KEY, [("X-Organization-ID", DEFAULT_ORGANIZATION_ID), ("X-Correlation-ID", given), ("User-Agent", "Browser/1")]
    )
    assert answer.status_code == 201, answer.text
    assert answer.headers["x-key-id"] == answer.json()["keyId"] == KEY_ID
    assert answer.headers["x-security-level"] == answer.json()["securityLevel"] == "NIST-L3"
    assert answer.headers["x-correlation-id"] == given
    document = answer.json()
    assert {"keyId", "publicKey", "algorithm", "securityLevel", "keyHandle", "quantumSecured"} <= set(document)
    assert document["quantumSecured"] is True
    assert quantum.keys.requests[-1].organization_id == DEFAULT_ORGANIZATION_ID
    call = quantum.keys.calls[-1]
    assert (call.source_ip, call.user_agent) == ("127.0.0.1", "Browser/1")


async def test_the_body_may_name_the_organisation_alone_or_agree_with_the_header(quantum: QuantumStage) -> None:
    body = KEY | {"organizationId": DEFAULT_ORGANIZATION_ID}
    assert (await quantum.keygen(body)).status_code == 201
    twice = [("X-Organization-ID", DEFAULT_ORGANIZATION_ID)] * 2
    assert (await quantum.keygen(body, twice)).status_code == 201
    assert [request.organization_id for request in quantum.keys.requests] == [DEFAULT_ORGANIZATION_ID] * 2


async def test_a_header_that_contradicts_is_refused(quantum: QuantumStage) -> None:
    other = str(uuid.uuid4())
    answer = await quantum.keygen(KEY | {"organizationId": DEFAULT_ORGANIZATION_ID}, [("X-Organization-ID", other)])
    assert answer.status_code == 400
    document = answer.json()
    assert document["errorCode"] == "invalid_field"
    assert document["fields"][0]["field"] == "organizationId"
    assert "X-Organization-ID" in document["error"]
    assert document["correlationId"] == answer.headers["x-correlation-id"]
    assert document["suggestedAction"]
    two = await quantum.keygen(KEY, [("X-Organization-ID", DEFAULT_ORGANIZATION_ID), ("X-Organization-ID", other)])
    assert (two.status_code, two.json()["fields"][0]["field"]) == (400, "X-Organization-ID")
    assert quantum.keys.requests == []


async def test_an_organisation_that_is_nowhere_or_no_uuid_is_a_field_error(quantum: QuantumStage) -> None:
    for headers in ([], [("X-Organization-ID", "")]):
        answer = await quantum.keygen(KEY, headers)
        assert answer.status_code == 400
        assert answer.json()["fields"][0]["field"] == "organizationId"
    answer = await quantum.keygen(KEY, [("X-Organization-ID", "nobody's")])
    assert (answer.status_code, answer.json()["errorCode"]) == (403, "scope_not_allowed")  # named, and not one's own
    assert quantum.keys.requests == []


async def test_a_refusal_has_the_documents_form(quantum: QuantumStage) -> None:
    quantum.keys.error = MeshError(ErrorReason.ERROR_REASON_HSM_SEALED, "the HSM is sealed")
    answer = await quantum.keygen(KEY, [("X-Organization-ID", DEFAULT_ORGANIZATION_ID)])
    assert answer.status_code == 409
    document = answer.json()
    assert set(document) == {"error", "errorCode", "correlationId", "suggestedAction"}
    assert document["errorCode"] == "hsm_sealed"
    assert "unseal" in document["suggestedAction"]
    assert document["correlationId"] == answer.headers["x-correlation-id"]
    assert "x-key-id" not in answer.headers


async def test_an_answer_that_is_no_header_is_a_fault_of_ours(quantum: QuantumStage) -> None:
    quantum.keys.answer.key_id = "a\r\nSet-Cookie: auth_token=x"
    answer = await quantum.keygen(KEY, [("X-Organization-ID", DEFAULT_ORGANIZATION_ID)])
    assert (answer.status_code, answer.json()["errorCode"]) == (500, "internal")
    assert "set-cookie" not in answer.headers
