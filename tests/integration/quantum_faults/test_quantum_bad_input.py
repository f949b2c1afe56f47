"""Every field of every request of the quantum services, changed in every way: a typed answer and one record, always."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.api.v1 import policy_pb2
from behaviorguard.identity.v1 import biometric_pb2
from behaviorguard.quantum.v1 import (
    audit_service_pb2,
    key_pb2,
    key_service_pb2,
    template_service_pb2,
    token_service_pb2,
)
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from tests.support.mesh import reason_of
from tests.support.mutations import mutations
from tests.support.quantum import (
    ORGANIZATION,
    RunningQuantum,
    master_key,
    running_quantum,
    service_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from tests.support.quantum import QuantumStores

PACKAGE = "behaviorguard.quantum.v1"
SERVICES = ("KeyService", "TemplateService", "TokenService", "AuditService")
PERSON = "11111111-1111-4111-8111-111111111111"
SESSION = "33333333-3333-4333-8333-333333333333"
# Nothing is away here: whatever is refused is refused for what it says.
FAULTS = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DATA_LOSS,
)


class Valid:
    """One valid request for each RPC, on keys that are there."""

    def __init__(self, encrypting: str, signing: str, envelope: bytes, token: str, signature: bytes) -> None:
        self.encrypting = encrypting
        self.signing = signing
        self.envelope = envelope
        self.token = token
        self.signature = signature

    @classmethod
    async def made(cls, running: RunningQuantum) -> Valid:
        """Makes the keys, an envelope, a token and a signature."""
        keys, tokens = running.keys(), running.tokens()
        signing = await keys.GenerateKey(master_key(), timeout=10)
        encrypting = await keys.GenerateKey(service_key(), timeout=10)
        closing = template_service_pb2.EncryptTemplateRequest(
            user_id=PERSON, biometric_template=b"a face", key_id=encrypting.key_id
        )
        closed = await running.templates().EncryptTemplate(closing, timeout=10)
        token = await tokens.GenerateToken(cls.token_request(), timeout=10)
        signed = await tokens.SignMessage(
            token_service_pb2.SignMessageRequest(key_id=signing.key_id, message=b"said"), timeout=10
        )
        return cls(
            encrypting.key_id,
            signing.key_id,
            closed.encrypted_template,
            token.hybrid_token,
            signed.quantum_signature.signature,
        )

    @staticmethod
    def token_request() -> token_service_pb2.GenerateTokenRequest:
        claims = token_service_pb2.UserClaims(
            organization_id=ORGANIZATION,
            session_id=SESSION,
            audience=["platform"],
            roles=["member"],
            authentication_methods=["pwd"],
            device_id="phone-1",
        )
        return token_service_pb2.GenerateTokenRequest(
            user_id=PERSON, claims=claims, hybrid_mode=True, lifetime_seconds=60
        )

    def requests(self) -> dict[str, Message]:
        """By the RPC's name."""
        keys, templates, tokens, audit = key_service_pb2, template_service_pb2, token_service_pb2, audit_service_pb2
        now = Timestamp(seconds=1_800_000_000)
        closing = templates.EncryptTemplateRequest(
            user_id=PERSON,
            biometric_template=b"a face",
            algorithm="ML-KEM-768",
            key_id=self.encrypting,
            device_id="phone-1",
        )
        opening = templates.DecryptTemplateRequest(user_id=PERSON, encrypted_template=self.envelope)
        record = audit.AppendAuditRecordRequest(
            method="behaviorguard.threat.v1.ThreatService/RecordVerdict",
            user_id=PERSON,
            organization_id=ORGANIZATION,
            correlation_id=SESSION,
            operation_timestamp=now,
            result=audit.OPERATION_RESULT_FAILURE,
            reason="ERROR_REASON_NOT_FOUND",
            processing_time_ms=5,
            source_ip="203.0.113.9",
            user_agent="Browser/1",
        )
        biometric = biometric_pb2.BiometricTemplate(data=b"a face")
        rewrap = keys.RewrapEnvelopesRequest(key_id=self.encrypting, envelopes=[self.envelope])
        checked = tokens.VerifySignatureRequest(
            key_id=self.signing, key_version=1, message=b"said", signature=self.signature
        )
        return {
            "GenerateKey": service_key(metadata={"note": "one"}, security_level="NIST-L3", use_limit=5),
            "GetKey": keys.GetKeyRequest(key_id=self.encrypting),
            "ListKeys": keys.ListKeysRequest(organization_id=ORGANIZATION, key_type=key_pb2.KEY_TYPE_SERVICE),
            "RotateKey": keys.RotateKeyRequest(key_id=self.encrypting),
            "UpdateKey": keys.UpdateKeyRequest(key_id=self.encrypting, rotation_days=9, metadata={"note": "two"}),
            "RevokeKey": keys.RevokeKeyRequest(key_id=str(uuid.uuid4()), reason="no longer needed"),
            "RewrapEnvelopes": rewrap,
            "EncryptTemplate": closing,
            "EncryptBiometric": templates.EncryptBiometricRequest(
                user_id=PERSON, device_id="phone-1", biometric_template=biometric, algorithm="X-Wing"
            ),
            "DecryptTemplate": opening,
            "BatchEncryptTemplates": templates.BatchEncryptTemplatesRequest(requests=[closing]),
            "BatchDecryptTemplates": templates.BatchDecryptTemplatesRequest(requests=[opening]),
            "GenerateToken": self.token_request(),
            "VerifyToken": tokens.VerifyTokenRequest(token=self.token, audience="platform"),
            "RevokeTokens": tokens.RevokeTokensRequest(session_id=str(uuid.uuid4()), organization_id=ORGANIZATION),
            "GetVerificationKeys": tokens.GetVerificationKeysRequest(),
            "ListRevocations": tokens.ListRevocationsRequest(since=now, page_size=5),
            "SignMessage": tokens.SignMessageRequest(key_id=self.signing, message=b"said", context=b"here"),
            "VerifySignature": checked,
            "ListAuditRecords": audit.ListAuditRecordsRequest(key_id=self.signing, start_time=now, page_size=5),
            "WatchAuditRecords": audit.WatchAuditRecordsRequest(),
            "GetAuditProof": audit.GetAuditProofRequest(audit_id=str(uuid.uuid4())),
            "ListCheckpoints": audit.ListCheckpointsRequest(page_size=5),
            "ExportAudit": audit.ExportAuditRequest(first_sequence=1),
            "AppendAuditRecord": record,
            "ListSecurityEvents": audit.ListSecurityEventsRequest(open_only=True, page_size=5),
            "WatchSecurityEvents": audit.WatchSecurityEventsRequest(),
            "ResolveSecurityEvent": audit.ResolveSecurityEventRequest(
                event_id=str(uuid.uuid4()), response_action="looked at it"
            ),
        }


def methods() -> list[Any]:
    pool = descriptor_pool.Default()
    return [method for name in SERVICES for method in pool.FindServiceByName(f"{PACKAGE}.{name}").methods]


def caller_of(method: Any) -> str:
    """A workload that may call."""
    callers = list(method.GetOptions().Extensions[policy_pb2.policy].callers)
    return next((name for name in ("operator", "identity") if name in callers), str(callers[0]))


def is_audited(method: Any) -> bool:
    return bool(method.GetOptions().Extensions[policy_pb2.policy].audited)


async def send(call: Callable[..., Any], body: bytes, correlation_id: str, *, streams: bool) -> aio.AioRpcError | None:
    """One call; a stream is ended as soon as it has begun. Returns the refusal, if it was refused."""
    made = call(body, timeout=10, metadata=(("x-correlation-id", correlation_id),))
    try:
        if not streams:
            await made
        elif await made.initial_metadata() is not None and not made.done():
            made.cancel()
    except aio.AioRpcError as error:
        return error
    return None


@pytest.mark.parametrize("method", methods(), ids=lambda method: str(method.name))
async def test_changed_requests_are_answered_and_recorded(stores: QuantumStores, method: Any) -> None:
    async with running_quantum(stores) as running:
        valid = await Valid.made(running)
        channel = running.channel(caller_of(method))
        path = f"/{method.containing_service.full_name}/{method.name}"
        call: Any = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
        request = valid.requests()[method.name]
        assert request.DESCRIPTOR.full_name == method.input_type.full_name
        asked: dict[str, str] = {}
        for path_of_change, body in mutations(request):
            correlation_id = str(uuid.uuid4())
            asked[correlation_id] = path_of_change
            refusal = await send(call, body, correlation_id, streams=method.server_streaming)
            if refusal is not None:
                assert refusal.code() not in FAULTS, f"{path_of_change}: {refusal.code()}: {refusal.details()}"
                assert reason_of(refusal).startswith("ERROR_REASON_"), path_of_change
        if is_audited(method) and not method.server_streaming:
            found = stores.rows(
                "SELECT correlation_id::text, count(*) FROM quantum_audit.quantum_operations_log GROUP BY 1"
            )
            records: dict[str, int] = {str(row[0]): int(row[1]) for row in found}
            wrong = {change: records.get(call_id, 0) for call_id, change in asked.items() if records.get(call_id) != 1}
            assert not wrong, f"another number of records than one: {wrong}"
        assert stores.rows("SELECT key_id FROM quantum_keys.key_intents WHERE NOT abandoned") == []
        # And it lives on.
        answer = await running.keys().GetKey(key_service_pb2.GetKeyRequest(key_id=valid.signing), timeout=10)
        assert answer.key.key_id == valid.signing


def test_every_rpc_has_a_valid_request() -> None:
    requests = Valid("", "", b"", "", b"").requests()
    assert sorted(requests) == sorted(method.name for method in methods())
    for method in methods():
        assert isinstance(requests[method.name], GetMessageClass(method.input_type))
