"""Fields in headers, as the document's flow 3 has them: over a real gateway before a scripted key service."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from tests.integration.gateway.quantum_stage import KEY, KEY_ID

if TYPE_CHECKING:
    from tests.integration.gateway.quantum_stage import QuantumStage


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


async def test_a_service_behind_the_gateway_reports_of_itself(quantum: QuantumStage) -> None:
    answer = await quantum.client.get("/healthz/quantum")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["service"], document["status"]) == ("quantum", "healthy")
    assert {"requests_per_minute", "cpu_usage_percent"} <= set(document["performance"])
    assert (await quantum.client.get("/healthz/nobody")).status_code == 404
    await quantum.mesh.drain()
    answer = await quantum.client.get("/healthz/quantum")
    assert (answer.status_code, answer.json()["errorCode"]) == (503, "dependency_unavailable")
