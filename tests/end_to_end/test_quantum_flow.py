"""Flow 3 of the document over the running stack: keys, templates, tokens and the audit trail, by REST and by stub."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.quantum.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    key_pb2,
    key_service_pb2,
    key_service_pb2_grpc,
    template_service_pb2,
    template_service_pb2_grpc,
)
from websockets.asyncio.client import connect

from infra.stack.ports import LOOPBACK
from servers.gateway.admission import OPERATOR_USER_ID
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from tests.support.quantum_stack import QuantumStack, eventually

if TYPE_CHECKING:
    import httpx

    from tests.support.stack import Installation

pytestmark = pytest.mark.end_to_end

MASTER = {
    "keyType": "master",
    "algorithm": "Kyber768",
    "purpose": "encryption",
    "organizationId": DEFAULT_ORGANIZATION_ID,
    "securityLevel": "NIST-L3",
}


@pytest.fixture
def quantum(stack: Installation) -> QuantumStack:
    return QuantumStack(stack)


def keygen(client: httpx.Client, body: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post(
        "/api/quantum/keygen", json=body, headers={"X-Organization-ID": DEFAULT_ORGANIZATION_ID, **headers}
    )


def test_a_key_is_made_as_the_document_writes_it(quantum: QuantumStack) -> None:
    correlation_id = str(uuid.uuid4())
    with quantum.operator() as client:
        answer = keygen(client, MASTER, **{"X-Correlation-ID": correlation_id, "User-Agent": "Browser/1"})
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert answer.headers["X-Key-ID"] == body["keyId"]
    assert answer.headers["X-Security-Level"] == body["securityLevel"] == "NIST-L3"
    assert answer.headers["X-Correlation-ID"] == correlation_id
    assert body["algorithm"] == "ML-KEM-768"  # the standard's name of what was asked for as Kyber768
    assert len(base64.b64decode(body["publicKey"])) == 1184
    assert body["keyHandle"]
    assert body["quantumSecured"] is True
    expires = datetime.fromisoformat(body["expiresAt"])
    assert timedelta(days=364) < expires - datetime.now(UTC) < timedelta(days=366)

    (row,) = quantum.rows("SELECT * FROM quantum_keys.quantum_key_store WHERE key_id = %s", body["keyId"])
    assert str(row["organization_id"]) == DEFAULT_ORGANIZATION_ID
    assert (row["key_type"], row["purpose"], row["status"]) == ("master", "encryption", "active")
    assert (row["algorithm"], row["security_level"]) == ("ML-KEM-768", "NIST-L3")
    assert bytes(row["public_key"]) == base64.b64decode(body["publicKey"])
    assert row["key_handle"] == body["keyHandle"]

    with quantum.cache() as cache:
        name = f"quantum:key:{body['keyId']}"
        entry = eventually(lambda: cache.hgetall(name))
        assert 0 < cache.ttl(name) <= 3600
    assert entry["publicKey"] == body["publicKey"]
    assert (entry["algorithm"], entry["securityLevel"], entry["keyType"]) == ("ML-KEM-768", "NIST-L3", "master")
    assert entry["organizationId"] == DEFAULT_ORGANIZATION_ID

    (record,) = quantum.audit_of(correlation_id)
    assert (record["operation"], record["result"], str(record["key_id"])) == ("keygen", "success", body["keyId"])
    assert (str(record["user_id"]), str(record["organization_id"])) == (OPERATOR_USER_ID, DEFAULT_ORGANIZATION_ID)
    assert (record["service_id"], str(record["source_ip"]), record["user_agent"]) == (
        "gateway",
        "127.0.0.1",
        "Browser/1",
    )
    assert record["hsm_operation_id"]
    assert record["error_details"] in (None, "")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"securityLevel": "NIST-L5"}, 400, "security_level_not_met"),
        ({"algorithm": "RSA-2048"}, 400, "invalid_field"),
        ({"purpose": "signing"}, 400, None),
        ({"keyType": "service"}, 400, "invalid_field"),  # whose?
        ({"organizationId": str(uuid.uuid4())}, 400, "invalid_field"),  # not what the header says
        ({"unheard": 1}, 400, "invalid_field"),
    ],
)
def test_a_refusal_has_the_documents_form_and_a_record(
    quantum: QuantumStack, change: dict[str, Any], status: int, code: str | None
) -> None:
    with quantum.operator() as client:
        answer = keygen(client, MASTER | change)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert {"error", "errorCode", "correlationId", "suggestedAction"} <= set(body)
    assert code is None or body["errorCode"] == code
    (record,) = quantum.audit_of(body["correlationId"])
    assert record["result"] == "failure"
    assert record["error_details"]


def test_a_key_of_another_organisation_is_out_of_reach(quantum: QuantumStack) -> None:
    other = str(uuid.uuid4())
    with quantum.operator() as client:
        answer = keygen(client, MASTER | {"organizationId": other}, **{"X-Organization-ID": other})
        assert (answer.status_code, answer.json()["errorCode"]) == (403, "scope_not_allowed")
        assert client.get(f"/api/quantum/keys/{uuid.uuid4()}").status_code == 404


def test_templates_and_tokens_go_by_rest_too(quantum: QuantumStack) -> None:
    template = base64.b64encode(b"a template of a face").decode()
    with quantum.operator() as client:
        assert keygen(client, MASTER).status_code == 201
        service_key = MASTER | {"keyType": "service", "serviceId": "identity"}
        assert keygen(client, service_key).status_code == 201
        said: dict[str, Any] = {"userId": OPERATOR_USER_ID, "biometricTemplate": template, "algorithm": "Kyber768"}
        answer = client.post("/api/quantum/encrypt-template", json=said)
        assert answer.status_code == 200, answer.text
        envelope = answer.json()
        assert envelope["securityLevel"] == "NIST-L3"
        assert envelope["keyId"]
        assert len(base64.b64decode(envelope["publicKey"])) == 1184
        assert template not in answer.text

        claims = {
            "organizationId": DEFAULT_ORGANIZATION_ID,
            "sessionId": str(uuid.uuid4()),
            "audience": ["platform"],
            "roles": ["admin"],
        }
        said = {"userId": OPERATOR_USER_ID, "claims": claims, "hybridMode": True}
        answer = client.post("/api/quantum/token/generate", json=said)
        assert answer.status_code == 200, answer.text
        tokens = answer.json()
        assert tokens["expiresIn"] == 3600
        assert len(json.loads(tokens["hybridToken"])["signatures"]) == 2
        assert tokens["classicalToken"].count(".") == 2
        assert tokens["quantumSignature"]["algorithm"] == "ML-DSA-65"
        answer = client.post("/api/quantum/token/verify", json={"token": tokens["hybridToken"], "audience": "platform"})
        assert answer.json()["valid"], answer.text
        assert answer.json()["quantumSecured"]
        revoked = {"sessionId": claims["sessionId"], "organizationId": DEFAULT_ORGANIZATION_ID}
        answer = client.post("/api/quantum/token/revoke", json=revoked)
        assert answer.status_code == 200, answer.text
        answer = client.post("/api/quantum/token/verify", json={"token": tokens["hybridToken"], "audience": "platform"})
        assert not answer.json()["valid"]


def test_the_largest_message_is_signed_and_checked_by_rest(quantum: QuantumStack) -> None:
    message = base64.b64encode(bytes(1024 * 1024)).decode()
    with quantum.operator() as client:
        made = keygen(client, MASTER | {"algorithm": "Dilithium3", "purpose": "signing"})
        assert made.status_code == 201, made.text
        assert made.json()["algorithm"] == "ML-DSA-65"
        key_id = made.json()["keyId"]
        signed = client.post("/api/quantum/sign", json={"keyId": key_id, "message": message})
        assert signed.status_code == 200, signed.text
        signature = signed.json()["quantumSignature"]["signature"]
        said = {"keyId": key_id, "message": message, "signature": signature}
        assert client.post("/api/quantum/verify", json=said).json() == {"valid": True}
        too_large = client.post("/api/quantum/sign", json={"keyId": key_id, "message": "A" * 10_000_000})
    assert (too_large.status_code, too_large.json()["errorCode"]) == (413, "too_large")
    (record,) = quantum.audit_of(too_large.headers["X-Correlation-ID"])
    assert (record["result"], record["service_id"]) == ("failure", "gateway")


def test_the_keys_that_tokens_are_checked_with_are_public(quantum: QuantumStack) -> None:
    with quantum.operator() as client:
        del client.headers["Authorization"]
        answer = client.get("/.well-known/jwks.json")
    assert answer.status_code == 200, answer.text
    keys = answer.json()["keys"]
    assert {key["kty"] for key in keys} == {"OKP", "AKP"}
    assert {key["use"] for key in keys} == {"sig"}
    assert not any({"d", "priv"} & set(key) for key in keys)


def test_the_audit_trail_is_listed_by_rest(quantum: QuantumStack) -> None:
    with quantum.operator() as client:
        made = keygen(client, MASTER)
        correlation_id = made.headers["X-Correlation-ID"]
        answer = client.get("/api/quantum/audit", params={"correlationId": correlation_id})
    assert answer.status_code == 200, answer.text
    (record,) = answer.json()["records"]
    assert (record["operation"], record["result"]) == ("keygen", "success")
    assert record["keyId"] == made.json()["keyId"]
    assert int(record["sequence"]) >= 1


async def test_failed_key_generations_raise_an_alarm_on_the_socket(quantum: QuantumStack) -> None:
    settings = quantum.settings
    token = (settings.secrets / "operator-token").read_text().strip()
    url = f"ws://{LOOPBACK}:{settings.gateway_port}/ws/quantum"
    async with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        await socket.send("{}")
        await asyncio.to_thread(_fail_often, quantum)
        async with asyncio.timeout(30):
            while True:
                event = json.loads(await socket.recv())["event"]
                if event["eventType"] == "key_generation_failures":
                    break
    assert event["organizationId"] == DEFAULT_ORGANIZATION_ID
    with quantum.operator() as client:
        answer = client.get("/api/quantum/security-events", params={"eventType": "key_generation_failures"})
    assert event["eventId"] in {each["eventId"] for each in answer.json()["events"]}


def _fail_often(quantum: QuantumStack) -> None:
    with quantum.operator() as client:
        for _ in range(7):
            assert keygen(client, MASTER | {"securityLevel": "NIST-L5"}).status_code == 400


async def test_the_same_by_the_generated_stubs(quantum: QuantumStack) -> None:
    correlation_id = str(uuid.uuid4())
    metadata = (("x-correlation-id", correlation_id),)
    request = key_service_pb2.GenerateKeyRequest(
        key_type=key_pb2.KEY_TYPE_MASTER,
        algorithm="ML-KEM-1024",
        purpose=key_pb2.KEY_PURPOSE_ENCRYPTION,
        organization_id=DEFAULT_ORGANIZATION_ID,
        security_level="NIST-L5",
    )
    async with quantum.channel("operator") as channel:
        keys: Any = key_service_pb2_grpc.KeyServiceStub(channel)
        made = await keys.GenerateKey(request, timeout=10, metadata=metadata)
        assert (made.algorithm, made.security_level, len(made.public_key)) == ("ML-KEM-1024", "NIST-L5", 1568)
        found = await keys.GetKey(key_service_pb2.GetKeyRequest(key_id=made.key_id), timeout=10)
        assert found.key.public_key == made.public_key
        trail: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        listing = audit_service_pb2.ListAuditRecordsRequest(correlation_id=correlation_id)
        (record,) = (await trail.ListAuditRecords(listing, timeout=10)).records
        assert (record.key_id, record.service_id, record.user_id) == (made.key_id, "operator", "")
        service = key_service_pb2.GenerateKeyRequest(
            key_type=key_pb2.KEY_TYPE_SERVICE,
            service_id="identity",
            algorithm="ML-KEM-768",
            purpose=key_pb2.KEY_PURPOSE_ENCRYPTION,
            organization_id=DEFAULT_ORGANIZATION_ID,
        )
        await keys.GenerateKey(service, timeout=10)
    user_id = str(uuid.uuid4())
    async with quantum.channel("identity") as channel:
        templates: Any = template_service_pb2_grpc.TemplateServiceStub(channel)
        closed = await templates.EncryptTemplate(
            template_service_pb2.EncryptTemplateRequest(user_id=user_id, biometric_template=b"a face"), timeout=10
        )
        assert b"a face" not in closed.encrypted_template
        opened = await templates.DecryptTemplate(
            template_service_pb2.DecryptTemplateRequest(user_id=user_id, encrypted_template=closed.encrypted_template),
            timeout=10,
        )
    assert opened.biometric_template == b"a face"


def test_audited_calls_of_other_services_end_in_the_same_trail(quantum: QuantumStack) -> None:
    with quantum.operator() as client:
        said = {"verdict": {"kind": "genuine"}}
        refused = client.post(f"/api/threat/events/{uuid.uuid4()}/verdict", json=said)
        assert refused.status_code == 404, refused.text
        (record,) = quantum.audit_of(refused.headers["X-Correlation-ID"])
        assert (record["operation"], record["result"], record["service_id"]) == ("call", "failure", "threat")
        assert str(record["user_id"]) == OPERATOR_USER_ID
        trial = client.post("/api/threat/trials", json={"label": "audited"}).json()
        client.cookies.clear()
        erased = client.delete(f"/api/threat/risk-profiles/{trial['userId']}")
        assert erased.status_code == 200, erased.text
        (record,) = quantum.audit_of(erased.headers["X-Correlation-ID"])
        assert (record["operation"], record["result"], record["service_id"]) == ("call", "success", "threat")
        del client.headers["Authorization"]
        unknown = keygen(client, MASTER)
        assert unknown.status_code == 401
        (record,) = quantum.audit_of(unknown.headers["X-Correlation-ID"])
        assert (record["result"], record["service_id"], record["user_id"]) == ("failure", "gateway", None)


def test_the_quantum_service_reports_its_health_in_the_documents_form(quantum: QuantumStack) -> None:
    with quantum.operator() as client:
        assert keygen(client, MASTER).status_code == 201
        answer = client.get("/healthz/quantum")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["service"], document["status"]) == ("quantum", "healthy")
    assert document["dependencies"]["database"]["status"] == "connected"
    assert document["dependencies"]["redis"]["status"] == "connected"
    specific = document["quantum_specific"]
    assert specific["hsm_connection_status"] == "connected"
    assert specific["quantum_operations_per_minute"] > 0
    assert 0 <= specific["key_cache_hit_rate"] <= 1
    assert 0 <= specific["encryption_success_rate"] <= 1
