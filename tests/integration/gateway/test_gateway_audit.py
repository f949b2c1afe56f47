"""What the gateway turns away of audited calls is recorded too, once each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behaviorguard.quantum.v1 import audit_service_pb2 as audit

from servers.gateway.admission import OPERATOR_USER_ID
from servers.gateway.refusals import RECORDED_A_MINUTE
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from tests.integration.gateway.quantum_stage import KEY, KEYGEN

if TYPE_CHECKING:
    from tests.integration.gateway.quantum_stage import QuantumStage

ORGANIZATION = [("X-Organization-ID", DEFAULT_ORGANIZATION_ID)]


async def test_nobody_who_asks_for_a_key_is_recorded(quantum: QuantumStage) -> None:
    answer = await quantum.client.post(KEYGEN, json=KEY, headers={"User-Agent": "Browser/1"})
    assert answer.status_code == 401
    (record,) = quantum.trail.records
    assert record.method == "behaviorguard.quantum.v1.KeyService/GenerateKey"
    assert record.result == audit.OPERATION_RESULT_FAILURE
    assert record.reason == "ERROR_REASON_SESSION_REQUIRED"
    assert (record.user_id, record.organization_id) == ("", DEFAULT_ORGANIZATION_ID)
    assert (record.source_ip, record.user_agent) == ("127.0.0.1", "Browser/1")
    assert record.correlation_id == answer.headers["x-correlation-id"]


async def test_a_person_whose_role_is_too_low_is_named(quantum: QuantumStage) -> None:
    trial = await quantum.stage.sign_in()
    answer = await quantum.client.post(KEYGEN, json=KEY)
    assert (answer.status_code, answer.json()["errorCode"]) == (403, "scope_not_allowed")
    (record,) = quantum.trail.records
    assert (record.user_id, record.reason) == (trial["userId"], "ERROR_REASON_SCOPE_NOT_ALLOWED")


async def test_bad_bodies_are_recorded(quantum: QuantumStage) -> None:
    assert (await quantum.keygen(KEY | {"unheard": 1})).status_code == 400
    assert (await quantum.keygen(KEY | {"metadata": {"a": "b" * 300_000}})).status_code == 413
    reasons = [record.reason for record in quantum.trail.records]
    assert reasons == ["ERROR_REASON_INVALID_FIELD", "ERROR_REASON_TOO_LARGE"]
    assert {record.user_id for record in quantum.trail.records} == {OPERATOR_USER_ID}


async def test_what_the_service_answers_the_service_records(quantum: QuantumStage) -> None:
    assert (await quantum.keygen(KEY, ORGANIZATION)).status_code == 201
    quantum.keys.error = MeshError(ErrorReason.ERROR_REASON_HSM_SEALED, "the HSM is sealed")
    assert (await quantum.keygen(KEY, ORGANIZATION)).status_code == 409
    assert (await quantum.client.get("/api/quantum/audit")).status_code == 401  # not audited
    assert quantum.trail.records == []


async def test_a_refusal_stays_one_when_it_cannot_be_recorded(quantum: QuantumStage) -> None:
    quantum.trail.error = MeshError(ErrorReason.ERROR_REASON_AUDIT_UNAVAILABLE, "the disk is full")
    assert (await quantum.client.post(KEYGEN, json=KEY)).status_code == 401
    await quantum.mesh.drain()
    answer = await quantum.keygen(KEY, ORGANIZATION)
    assert (answer.status_code, answer.json()["errorCode"]) == (503, "dependency_unavailable")


async def test_nobody_fills_the_trail_with_refusals(quantum: QuantumStage) -> None:
    for _ in range(RECORDED_A_MINUTE + 5):
        assert (await quantum.client.post(KEYGEN, json=KEY)).status_code == 401
    assert len(quantum.trail.records) == RECORDED_A_MINUTE
