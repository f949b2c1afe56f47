"""The token service over real sockets and stores."""

from __future__ import annotations

import json
import logging
import time
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.client.tokens import (
    TokenProblem,
    TokenRejectedError,
    TokenVerifier,
    VerificationKeys,
    read_revocations,
    read_token,
)
from behaviorguard.quantum.v1 import key_pb2, key_service_pb2
from behaviorguard.quantum.v1 import token_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from jwcrypto import jwk  # type: ignore[import-untyped]  # it ships no types
from jwcrypto import jws as other

from servers.crypto.algorithms import Algorithm
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.gateway.transcoding import Codec
from servers.mesh.errors import MeshError
from servers.quantum.jwks import TOKEN_SERVICE
from servers.quantum.signatures import MESSAGE_CONTEXT
from tests.support.mesh import reason_of, refused
from tests.support.quantum import ORGANIZATION, StandInHsm, master_key, person, running_quantum, service_key
from tests.support.tokens import AUDIENCE, DEVICE, USER, check, eventually, order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.quantum import QuantumStores, RunningQuantum


@dataclass
class Stage:
    """Stores with an HSM that has the keys in them."""

    stores: QuantumStores
    hsm: StandInHsm


@pytest.fixture(scope="module")
def stage(stores: QuantumStores) -> Stage:
    return Stage(stores, StandInHsm())


@asynccontextmanager
async def service(stage: Stage) -> AsyncIterator[RunningQuantum]:
    """A process of the service; several share stores and HSM."""
    async with running_quantum(stage.stores, stage.hsm) as running:
        yield running
    stage.hsm.failure = None


def audit_of(stores: QuantumStores, rpc: str, since: datetime) -> list[dict[str, Any]]:
    columns = ("operation", "key_id", "user_id", "organization_id", "data", "result", "hsm")
    rows = stores.rows(
        """
        SELECT operation::text, key_id::text, user_id::text, organization_id::text, operation_data, result::text,
            hsm_operation_id
        FROM quantum_audit.quantum_operations_log
        WHERE operation_data->>'rpc' = %s AND operation_timestamp >= %s ORDER BY sequence
        """,
        f"behaviorguard.quantum.v1.TokenService/{rpc}",
        since,
    )
    return [dict(zip(columns, row, strict=True)) for row in rows]


async def test_a_token_from_issue_to_revocation(stage: Stage) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)
    async with service(stage) as running:
        tokens = running.tokens()
        request = order()
        issued = await tokens.GenerateToken(request)
        assert issued.expires_in == 3600
        assert len(issued.quantum_signature.signature) == 3309
        assert issued.quantum_signature.algorithm == "ML-DSA-65"

        found = await tokens.VerifyToken(check(issued.hybrid_token))
        assert found.valid
        assert found.quantum_secured
        assert found.user_id == USER
        assert found.claims == request.claims
        assert abs(found.expires_at.seconds - time.time() - 3600) < 10

        assert not (await tokens.VerifyToken(check(issued.classical_token))).valid
        classical = await tokens.VerifyToken(check(issued.classical_token, accept_classical=True))
        assert classical.valid
        assert not classical.quantum_secured

        session_id = request.claims.session_id
        first = await tokens.RevokeTokens(pb.RevokeTokensRequest(session_id=session_id, reason="signed out"))
        second = await tokens.RevokeTokens(pb.RevokeTokensRequest(session_id=session_id.upper()))
        assert first.revoked_at == second.revoked_at
        for token in (issued.hybrid_token, issued.classical_token):
            ended = await tokens.VerifyToken(check(token, accept_classical=True))
            assert not ended.valid
            assert ended.reason == "ERROR_REASON_TOKEN_REVOKED"
            assert ErrorReason.Value(ended.reason) == ErrorReason.ERROR_REASON_TOKEN_REVOKED
            assert not ended.user_id
            assert not ended.HasField("claims")
        async with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await tokens.GenerateToken(order(session_id))
        assert reason_of(errors[0]) == "ERROR_REASON_WRONG_STATE"

    made, failed = audit_of(stage.stores, "GenerateToken", begun)
    assert (made["operation"], made["user_id"], made["organization_id"]) == ("sign", USER, ORGANIZATION)
    assert made["key_id"] == issued.quantum_signature.key_id
    assert made["data"]["token_id"] == issued.token_id
    assert made["hsm"]
    assert (made["result"], failed["result"]) == ("success", "failure")
    verified = audit_of(stage.stores, "VerifyToken", begun)
    assert [(each["result"], each["data"]["valid"]) for each in verified] == [
        ("success", True),
        ("failure", False),
        ("success", True),
        ("failure", False),
        ("failure", False),
    ]
    revoked = audit_of(stage.stores, "RevokeTokens", begun)
    assert [each["data"]["session_id"] for each in revoked] == [session_id, session_id]
    assert revoked[0]["operation"] == "revoke"


async def test_the_offline_verifier_agrees_and_another_implementation_verifies(stage: Stage) -> None:
    async with service(stage) as running:
        tokens = running.tokens()
        request = order()
        issued = await tokens.GenerateToken(request)
        keys = await tokens.GetVerificationKeys(pb.GetVerificationKeysRequest())
        assert keys.max_age_seconds == 300
        document = Codec().encode(keys)
        verifier = TokenVerifier(VerificationKeys.from_jwks(document), AUDIENCE, accept_classical=True)
        for token, secured in ((issued.hybrid_token, True), (issued.classical_token, False)):
            verified = verifier.verify(token)
            assert verified.quantum_secured is secured
            assert verified.claims.token_id == issued.token_id
        for key in json.loads(document)["keys"]:
            seen = other.JWS()
            seen.allowed_algs = ["EdDSA", "ML-DSA-65"]
            seen.deserialize(issued.hybrid_token)
            seen.verify(jwk.JWK(**{name: value for name, value in key.items() if value}))
            assert json.loads(seen.payload)["sub"] == USER
        await tokens.RevokeTokens(pb.RevokeTokensRequest(session_id=request.claims.session_id))
        listed = Codec().encode(await running.tokens("operator").ListRevocations(pb.ListRevocationsRequest()))
        ended = read_revocations(listed)
        assert request.claims.session_id in ended
        strict = TokenVerifier(VerificationKeys.from_jwks(document), AUDIENCE, revoked_sessions=ended)
        with pytest.raises(TokenRejectedError) as refusal:
            strict.verify(issued.hybrid_token)
        assert refusal.value.problem is TokenProblem.REVOKED


async def test_a_revocation_is_in_force_in_every_process(stage: Stage) -> None:
    async with service(stage) as one, service(stage) as two:
        request = order()
        issued = await one.tokens().GenerateToken(request)
        here, there = one.tokens(), two.tokens()
        assert (await there.VerifyToken(check(issued.hybrid_token))).valid
        await here.RevokeTokens(pb.RevokeTokensRequest(session_id=request.claims.session_id))
        assert not (await here.VerifyToken(check(issued.hybrid_token))).valid

        async def told() -> bool:
            return not (await there.VerifyToken(check(issued.hybrid_token))).valid

        begun = time.monotonic()
        await eventually(told)
        assert time.monotonic() - begun < 1.0


async def test_a_revocation_outlives_the_service(stage: Stage) -> None:
    async with service(stage) as one:
        request = order()
        issued = await one.tokens().GenerateToken(request)
        await one.tokens().RevokeTokens(pb.RevokeTokensRequest(session_id=request.claims.session_id))
    async with service(stage) as later:
        found = await later.tokens().VerifyToken(check(issued.hybrid_token))
        assert found.reason == "ERROR_REASON_TOKEN_REVOKED"


async def test_organisations_end_their_own_sessions_only(stage: Stage) -> None:
    other_organization = str(uuid.uuid4())
    async with service(stage) as running:
        tokens = running.tokens("gateway")
        mine, theirs = person(), person(other_organization)
        request = order(organization_id=other_organization)
        issued = await tokens.GenerateToken(request, metadata=theirs)
        session_id = request.claims.session_id
        await tokens.RevokeTokens(pb.RevokeTokensRequest(session_id=session_id), metadata=mine)
        assert (await tokens.VerifyToken(check(issued.hybrid_token))).valid
        for attempt in (
            tokens.RevokeTokens(
                pb.RevokeTokensRequest(session_id=session_id, organization_id=other_organization), metadata=mine
            ),
            tokens.GenerateToken(request, metadata=mine),
        ):
            async with refused(grpc.StatusCode.PERMISSION_DENIED):
                await attempt
        listed = await tokens.ListRevocations(pb.ListRevocationsRequest(), metadata=theirs)
        assert not listed.revocations
        # A workload that acts for nobody names the organisation itself.
        identity = running.tokens("identity")
        await identity.RevokeTokens(
            pb.RevokeTokensRequest(session_id=session_id, organization_id=other_organization.upper())
        )
        assert not (await tokens.VerifyToken(check(issued.hybrid_token))).valid
        listed = await tokens.ListRevocations(pb.ListRevocationsRequest(), metadata=theirs)
        assert [each.session_id for each in listed.revocations] == [session_id]


async def test_revocations_are_listed_in_pages(stage: Stage) -> None:
    organization = str(uuid.uuid4())
    caller = person(organization)
    sessions = [str(uuid.uuid4()) for _ in range(5)]
    async with service(stage) as running:
        tokens = running.tokens("gateway")
        for session_id in sessions:
            await tokens.RevokeTokens(pb.RevokeTokensRequest(session_id=session_id), metadata=caller)
        found: list[pb.Revocation] = []
        request = pb.ListRevocationsRequest(page_size=2)
        while True:
            page = await tokens.ListRevocations(request, metadata=caller)
            found.extend(page.revocations)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert [each.session_id for each in found] == sessions[::-1]
        assert all(each.expires_at.seconds - each.revoked_at.seconds == 87_000 for each in found)
        since = await tokens.ListRevocations(pb.ListRevocationsRequest(since=found[1].revoked_at), metadata=caller)
        assert [each.session_id for each in since.revocations] == sessions[:2:-1]
        for bad in (
            pb.ListRevocationsRequest(page_token="x"),
            pb.ListRevocationsRequest(page_token=request.page_token, since=Timestamp(seconds=1_700_000_000)),
        ):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
                await tokens.ListRevocations(bad, metadata=caller)
            assert reason_of(errors[0]) == "ERROR_REASON_INVALID_TOKEN"
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await tokens.ListRevocations(request, metadata=person(str(uuid.uuid4())))


async def test_rotation_keeps_old_tokens_and_revocation_of_the_key_ends_them(stage: Stage) -> None:
    async with service(stage) as running, service(stage) as second:
        tokens, keys = running.tokens(), running.keys()
        old = await tokens.GenerateToken(order())
        quantum_id = old.quantum_signature.key_id
        await keys.RotateKey(key_service_pb2.RotateKeyRequest(key_id=quantum_id))
        new = await tokens.GenerateToken(order())
        assert (old.quantum_signature.key_version, new.quantum_signature.key_version) == (1, 2)
        for token in (old, new):
            assert (await tokens.VerifyToken(check(token.hybrid_token))).valid
            assert (await second.tokens().VerifyToken(check(token.hybrid_token))).valid
        published = (await tokens.GetVerificationKeys(pb.GetVerificationKeysRequest())).keys
        assert {key.kid for key in published if key.kty == "AKP"} == {f"{quantum_id}.1", f"{quantum_id}.2"}

        # Versions below the least one count no more; the others do.
        await keys.UpdateKey(key_service_pb2.UpdateKeyRequest(key_id=quantum_id, min_decrypt_version=2))

        async def refuses(where: Any, token: str) -> bool:
            return not (await where.VerifyToken(check(token))).valid

        await eventually(lambda: refuses(tokens, old.hybrid_token))
        assert (await tokens.VerifyToken(check(new.hybrid_token))).valid

        # The key is ended: the next token is by another key.
        await keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=quantum_id, reason="test"))
        assert await refuses(tokens, new.hybrid_token)
        await eventually(lambda: refuses(second.tokens(), new.hybrid_token))
        after = await tokens.GenerateToken(order())
        assert after.quantum_signature.key_id != quantum_id
        assert (await second.tokens().VerifyToken(check(after.hybrid_token))).valid
        published = (await tokens.GetVerificationKeys(pb.GetVerificationKeysRequest())).keys
        assert quantum_id not in {key.kid.partition(".")[0] for key in published}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-40] + ("A" if token[-40] != "A" else "B") + token[-39:],
        lambda token: token.replace('"signatures":[', '"signatures":[],"signatures":['),
        lambda token: json.dumps({**json.loads(token), "signatures": json.loads(token)["signatures"][:1]}),
        lambda token: "x" * 16_384,
        lambda token: "é" * 100,
        lambda token: "[" * 16_000,
        lambda token: " " + token,
    ],
)
async def test_a_bad_token_is_an_answer(stage: Stage, spoil: Callable[[str], str]) -> None:
    async with service(stage) as running:
        token = (await running.tokens().GenerateToken(order())).hybrid_token
        found = await running.tokens("threat").VerifyToken(check(spoil(token)))
        assert not found.valid
        assert found.reason == "ERROR_REASON_TOKEN_MALFORMED"


async def test_requests_that_break_a_rule_are_refused(stage: Stage) -> None:
    async with service(stage) as running:
        tokens = running.tokens()
        for bad in (
            order(lifetime_seconds=59),
            order(lifetime_seconds=86_401),
            order(user_id="anna"),
            order(claims=pb.UserClaims(organization_id=ORGANIZATION, session_id=str(uuid.uuid4()))),
        ):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT):
                await tokens.GenerateToken(bad)
        for unfit in (check(""), check("x" * 16_385), check("x", audience="")):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT):
                await tokens.VerifyToken(unfit)
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await tokens.RevokeTokens(pb.RevokeTokensRequest(session_id=str(uuid.uuid4()), organization_id="x"))
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await running.tokens("threat").GenerateToken(order())


async def test_while_the_hsm_is_sealed_tokens_are_checked_and_none_is_issued(stage: Stage) -> None:
    async with service(stage) as running:
        tokens = running.tokens()
        token = (await tokens.GenerateToken(order())).hybrid_token
        running.hsm.failure = MeshError(ErrorReason.ERROR_REASON_HSM_SEALED, "sealed")
        assert (await tokens.VerifyToken(check(token))).valid
        async with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await tokens.GenerateToken(order())
        assert reason_of(errors[0]) == "ERROR_REASON_HSM_SEALED"


async def _signing_key(running: RunningQuantum, **changes: Any) -> str:
    keys = running.keys()
    await keys.GenerateKey(master_key())
    made = await keys.GenerateKey(
        service_key(algorithm="ML-DSA-65", purpose=key_pb2.KEY_PURPOSE_SIGNING, service_id="documents", **changes)
    )
    return str(made.key_id)


async def test_a_message_is_signed_and_checked_apart_from_it(stage: Stage) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)
    async with service(stage) as running:
        tokens, key_id = running.tokens(), await _signing_key(running)
        message, context = b"contract" * 1000, b"documents/v1"
        made = (
            await tokens.SignMessage(pb.SignMessageRequest(key_id=key_id.upper(), message=message, context=context))
        ).quantum_signature
        assert (made.algorithm, made.key_id, made.key_version) == ("ML-DSA-65", key_id, 1)

        async def valid(**changes: Any) -> bool:
            values = {"key_id": key_id, "message": message, "context": context, "signature": made.signature, **changes}
            return bool((await tokens.VerifySignature(pb.VerifySignatureRequest(**values))).valid)

        assert await valid()
        assert await valid(key_version=1)
        assert not await valid(message=message + b"x")
        assert not await valid(context=b"documents/v2")
        assert not await valid(context=b"")
        assert not await valid(signature=made.signature[:-1] + bytes([made.signature[-1] ^ 1]))
        assert not await valid(signature=b"x")

        # Anybody can check it with the standard alone.
        public = (await running.keys().GetKey(key_service_pb2.GetKeyRequest(key_id=key_id))).versions[0].public_key
        key = CryptographyProvider().verifying_key(Algorithm.ML_DSA_65, public)
        assert key.verify(message, made.signature, MESSAGE_CONTEXT + context)

        await running.keys().RotateKey(key_service_pb2.RotateKeyRequest(key_id=key_id))
        assert await valid(key_version=1)
        assert not await valid()
        for version in (3, 1_000_000):
            async with refused(grpc.StatusCode.NOT_FOUND):
                await valid(key_version=version)
        await running.keys().RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=key_id, reason="test"))
        assert not await valid(key_version=1)
        async with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await tokens.SignMessage(pb.SignMessageRequest(key_id=key_id, message=message))
        assert reason_of(errors[0]) == "ERROR_REASON_KEY_REVOKED"
    signed = audit_of(stage.stores, "SignMessage", begun)
    assert signed[0]["key_id"] == key_id
    assert signed[0]["data"]["message_bytes"] == 8000
    assert audit_of(stage.stores, "VerifySignature", begun)[0]["operation"] == "verify"


async def test_no_message_becomes_a_token(stage: Stage) -> None:
    """The platform's keys sign no messages; and what any key signs for a caller carries a context no token has."""
    async with service(stage) as running:
        tokens = running.tokens("operator")
        token = await tokens.GenerateToken(order())
        part = read_token(token.hybrid_token).signatures[1]
        for ask in (
            tokens.SignMessage(
                pb.SignMessageRequest(key_id=token.quantum_signature.key_id, message=part.signing_input)
            ),
            tokens.VerifySignature(
                pb.VerifySignatureRequest(
                    key_id=token.quantum_signature.key_id, message=part.signing_input, signature=part.signature
                )
            ),
        ):
            async with refused(grpc.StatusCode.NOT_FOUND):
                await ask
        key_id = await _signing_key(running)
        made = (
            await tokens.SignMessage(pb.SignMessageRequest(key_id=key_id, message=part.signing_input))
        ).quantum_signature
        public = (await running.keys().GetKey(key_service_pb2.GetKeyRequest(key_id=key_id))).versions[0].public_key
        key = CryptographyProvider().verifying_key(Algorithm.ML_DSA_65, public)
        assert not key.verify(part.signing_input, made.signature)
        assert key.verify(part.signing_input, made.signature, MESSAGE_CONTEXT)
    assert stage.stores.rows(
        "SELECT 1 FROM quantum_keys.quantum_key_store WHERE platform AND service_id = %s", TOKEN_SERVICE
    )


async def test_keys_of_others_and_keys_that_do_not_sign(stage: Stage) -> None:
    async with service(stage) as running:
        tokens, key_id = running.tokens("gateway"), await _signing_key(running)
        theirs = person(str(uuid.uuid4()))
        async with refused(grpc.StatusCode.NOT_FOUND):
            await tokens.SignMessage(pb.SignMessageRequest(key_id=key_id, message=b"x"), metadata=theirs)
        async with refused(grpc.StatusCode.NOT_FOUND):
            await tokens.VerifySignature(
                pb.VerifySignatureRequest(key_id=key_id, message=b"x", signature=b"x"), metadata=theirs
            )
        kem = (await running.keys().GenerateKey(service_key())).key_id
        async with refused(grpc.StatusCode.INVALID_ARGUMENT) as errors:
            await tokens.SignMessage(pb.SignMessageRequest(key_id=kem, message=b"x"), metadata=person())
        assert reason_of(errors[0]) == "ERROR_REASON_UNSUPPORTED_ALGORITHM"
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await tokens.SignMessage(
                pb.SignMessageRequest(key_id=key_id, message=b"x", context=b"x" * 242), metadata=person()
            )
        made = await tokens.SignMessage(
            pb.SignMessageRequest(key_id=key_id, message=b"x", context=b"x" * 241), metadata=person()
        )
        assert len(made.quantum_signature.signature) == 3309


async def test_use_limits_count_signatures(stage: Stage) -> None:
    async with service(stage) as running:
        tokens, key_id = running.tokens(), await _signing_key(running, use_limit=2)
        for _ in range(2):
            await tokens.SignMessage(pb.SignMessageRequest(key_id=key_id, message=b"x"))
        async with refused(grpc.StatusCode.FAILED_PRECONDITION) as errors:
            await tokens.SignMessage(pb.SignMessageRequest(key_id=key_id, message=b"x"))
        assert reason_of(errors[0]) == "ERROR_REASON_KEY_USES_EXHAUSTED"


async def test_when_the_record_cannot_be_written_nothing_is_revoked(stage: Stage) -> None:
    async with service(stage) as running:
        request = order()
        token = (await running.tokens().GenerateToken(request)).hybrid_token
        with psycopg.connect(stage.stores.owner_dsn, autocommit=True) as owner:
            owner.execute("ALTER TABLE quantum_audit.quantum_operations_log RENAME TO elsewhere")
            try:
                async with refused(grpc.StatusCode.UNAVAILABLE) as errors:
                    await running.tokens().RevokeTokens(
                        pb.RevokeTokensRequest(session_id=request.claims.session_id), timeout=8
                    )
                assert reason_of(errors[0]) == "ERROR_REASON_AUDIT_UNAVAILABLE"
            finally:
                owner.execute("ALTER TABLE quantum_audit.elsewhere RENAME TO quantum_operations_log")
        assert (await running.tokens().VerifyToken(check(token))).valid


async def test_nothing_of_a_token_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    async with service(stage) as running:
        with caplog.at_level(logging.DEBUG):
            issued = await running.tokens().GenerateToken(order())
            await running.tokens().VerifyToken(check(issued.hybrid_token))
            await running.tokens().VerifyToken(check(issued.hybrid_token[:-3]))
    said = caplog.text + " ".join(str(record.__dict__) for record in caplog.records)
    for secret in (DEVICE, USER, issued.token_id, issued.hybrid_token[:40], issued.classical_token[-40:]):
        assert secret not in said
