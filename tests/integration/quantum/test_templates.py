"""The template service over real sockets and stores: what opens, what does not, and that refusals look the same."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.identity.v1 import biometric_pb2
from behaviorguard.quantum.v1 import key_service_pb2 as keys_pb
from behaviorguard.quantum.v1 import template_service_pb2 as pb
from behaviorguard.quantum.v1.template_service_pb2_grpc import TemplateServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from servers.quantum.envelope import parse
from tests.support.hsm import running_hsm
from tests.support.loop import loop_never_blocked
from tests.support.mesh import reason_of, refused
from tests.support.quantum import LARGE, master_key, person, running_quantum, service_key

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores, RunningQuantum

INVALID = grpc.StatusCode.INVALID_ARGUMENT
STATE = grpc.StatusCode.FAILED_PRECONDITION
USER = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a42"
SOMEBODY_ELSE = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a43"


@dataclass
class Desk:
    """The services as the identity service and an operator call them."""

    keys: Any
    templates: Any

    @classmethod
    async def of(cls, quantum: RunningQuantum) -> Desk:
        desk = cls(quantum.keys(), quantum.templates())
        await desk.keys.GenerateKey(master_key())
        return desk

    async def key(self, **changes: Any) -> str:
        return str((await self.keys.GenerateKey(service_key(**changes))).key_id)

    async def close(self, template: bytes = b"face", /, **changes: str) -> Any:
        request = pb.EncryptTemplateRequest(user_id=USER, biometric_template=template)
        for name, value in changes.items():
            setattr(request, name, value)
        return await self.templates.EncryptTemplate(request)

    async def open(self, envelope: bytes, user_id: str = USER, device_id: str = "") -> bytes:
        answer = await self.templates.DecryptTemplate(
            pb.DecryptTemplateRequest(user_id=user_id, encrypted_template=envelope, device_id=device_id)
        )
        return bytes(answer.biometric_template)


@pytest.mark.parametrize("algorithm", ["ML-KEM-768", "ML-KEM-1024", "X-Wing"])
async def test_every_suite_closes_and_opens(stores: QuantumStores, algorithm: str) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        key_id = await desk.key(algorithm=algorithm)
        for size in (1, 65_536):
            closed = await desk.close(bytes(size), algorithm=algorithm, device_id="phone")
            assert (closed.key_id, closed.algorithm, closed.key_version) == (key_id, algorithm, 1)
            assert await desk.open(closed.encrypted_template, device_id="phone") == bytes(size)


async def test_a_biometric_is_bound_to_its_device(stores: QuantumStores) -> None:
    template = biometric_pb2.BiometricTemplate(
        template_id=str(uuid.uuid4()),
        biometric_type=biometric_pb2.BIOMETRIC_TYPE_FACE,
        format="face-128.v1",
        transform_id=str(uuid.uuid4()),
        data=b"128 numbers",
    )
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        key_id = await desk.key()
        request = pb.EncryptBiometricRequest(user_id=USER, device_id="phone", biometric_template=template)
        answer = await quantum.templates("mobile").EncryptBiometric(request)
        parts = answer.encrypted_biometric
        envelope = parse(parts.encrypted_template)
        assert (parts.ciphertext, parts.auth_tag) == (envelope.kem_ciphertext, envelope.tag)
        assert (answer.key_id, answer.encryption_algorithm) == (key_id, "ML-KEM-768+HKDF-SHA256+AES-256-GCM")
        assert await desk.open(parts.encrypted_template, device_id="phone") == b"128 numbers"
        for device in ("", "tablet"):
            async with refused(INVALID) as caught:
                await desk.open(parts.encrypted_template, device_id=device)
            assert reason_of(caught[0]) == "ERROR_REASON_ENVELOPE_INVALID"
        request.security_level = "NIST-L5"
        async with refused(INVALID) as caught:
            await quantum.templates("mobile").EncryptBiometric(request)
        assert reason_of(caught[0]) == "ERROR_REASON_SECURITY_LEVEL_NOT_MET"
        request.biometric_template.data, request.security_level = b"", ""
        async with refused(INVALID) as caught:
            await quantum.templates("mobile").EncryptBiometric(request)
        assert reason_of(caught[0]) == "ERROR_REASON_INVALID_FIELD"


async def test_every_refusal_to_open_looks_the_same(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        await desk.key()
        envelope = (await desk.close(device_id="phone")).encrypted_template
        tries = [
            (envelope, SOMEBODY_ELSE, "phone"),
            (envelope, USER, "tablet"),
            (envelope, USER, ""),
            (envelope[:-1], USER, "phone"),
            (envelope + b"\0", USER, "phone"),
            (envelope[:100], USER, "phone"),
            (b"x", USER, "phone"),
            *((flipped(envelope, bit), USER, "phone") for bit in bits_of(envelope)),
        ]
        said = set()
        for data, user, device in tries:
            async with refused(INVALID) as caught:
                await desk.open(data, user, device)
            said.add((reason_of(caught[0]), caught[0].details()))
        assert len(said) == 1
        assert said.pop()[0] == "ERROR_REASON_ENVELOPE_INVALID"
        assert await desk.open(envelope, device_id="phone") == b"face"


def bits_of(envelope: bytes) -> list[int]:
    """Every bit of the header, one of each byte behind it in steps, and the ends of each part."""
    header = 59 + len("phone")
    chosen = list(range(8 * header))
    chosen += [8 * place + place % 8 for place in range(header, len(envelope), 17)]
    return [*chosen, 8 * len(envelope) - 1]


def flipped(envelope: bytes, bit: int) -> bytes:
    changed = bytearray(envelope)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


async def test_old_versions_open_down_to_the_least_one(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        key_id = await desk.key()
        first = (await desk.close(b"one")).encrypted_template
        await desk.keys.RotateKey(keys_pb.RotateKeyRequest(key_id=key_id))
        second = await desk.close(b"two")
        assert second.key_version == 2
        assert await desk.open(first) == b"one"
        await desk.keys.UpdateKey(keys_pb.UpdateKeyRequest(key_id=key_id, min_decrypt_version=2))
        assert await desk.open(second.encrypted_template) == b"two"
        async with refused(STATE) as caught:
            await desk.open(first)
        assert reason_of(caught[0]) == "ERROR_REASON_KEY_VERSION_TOO_OLD"
        # A version that was only written into the header is a changed envelope like any other.
        for data, user in ((flipped(second.encrypted_template, 8 * 25), USER), (first, SOMEBODY_ELSE)):
            async with refused(INVALID) as caught:
                await desk.open(data, user)
            assert reason_of(caught[0]) == "ERROR_REASON_ENVELOPE_INVALID"


async def test_rewrapping_moves_envelopes_to_the_newest_version(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        key_id, other = await desk.key(), await desk.key(service_id="other")
        old = [(await desk.close(b"1", key_id=key_id, device_id="phone")).encrypted_template]
        foreign = (await desk.close(b"2", key_id=other)).encrypted_template
        await desk.keys.RotateKey(keys_pb.RotateKeyRequest(key_id=key_id))
        sent = [*old, foreign, flipped(old[0], 8 * 60), b"x"]
        answer = await desk.keys.RewrapEnvelopes(keys_pb.RewrapEnvelopesRequest(key_id=key_id, envelopes=sent))
        assert [result.WhichOneof("outcome") for result in answer.results] == ["envelope", *["reason"] * 3]
        assert {result.reason for result in answer.results[1:]} == {"ERROR_REASON_ENVELOPE_INVALID"}
        moved = answer.results[0].envelope
        assert parse(moved).header.key_version == 2
        await desk.keys.UpdateKey(keys_pb.UpdateKeyRequest(key_id=key_id, min_decrypt_version=2))
        assert await desk.open(moved, device_id="phone") == b"1"
        too_old = await desk.keys.RewrapEnvelopes(keys_pb.RewrapEnvelopesRequest(key_id=key_id, envelopes=old))
        assert too_old.results[0].reason == "ERROR_REASON_KEY_VERSION_TOO_OLD"
    ((result,),) = stores.rows(
        "SELECT result::text FROM quantum_audit.quantum_operations_log WHERE operation = 'rewrap' AND key_id = %s"
        " ORDER BY sequence LIMIT 1",
        key_id,
    )
    assert result == "partial"


async def test_an_expired_key_opens_and_does_not_close(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        key_id = await desk.key()
        envelope = (await desk.close(key_id=key_id)).encrypted_template
        end = Timestamp()
        end.FromDatetime(datetime.now(UTC) + timedelta(milliseconds=150))
        await desk.keys.UpdateKey(keys_pb.UpdateKeyRequest(key_id=key_id, expires_at=end))
        code = "OK"
        while code == "OK":  # from memory, until its end
            try:
                await desk.close(key_id=key_id)
            except grpc.aio.AioRpcError as error:
                code = reason_of(error)
        assert code == "ERROR_REASON_KEY_EXPIRED"
        assert await desk.open(envelope) == b"face"


async def test_a_revoked_key_does_nothing_more(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        key_id = await desk.key()
        envelope = (await desk.close(key_id=key_id)).encrypted_template
        await desk.keys.RevokeKey(keys_pb.RevokeKeyRequest(key_id=key_id, reason="test"))
        for call in (desk.close(key_id=key_id), desk.open(envelope)):
            async with refused(STATE) as caught:
                await call
            assert reason_of(caught[0]) == "ERROR_REASON_KEY_REVOKED"


async def test_without_a_key_there_is_no_envelope(stores: QuantumStores) -> None:
    request = pb.EncryptTemplateRequest(user_id=USER, biometric_template=b"face")
    somebody = person(str(uuid.uuid4()), "self", USER)
    async with running_quantum(stores) as quantum:
        async with refused(grpc.StatusCode.NOT_FOUND) as caught:
            await quantum.templates("gateway").EncryptTemplate(request, metadata=somebody)
        assert "service key" in str(caught[0].details())


async def test_a_key_of_the_wrong_kind_is_refused(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        signing = await desk.key(algorithm="ML-DSA-65", purpose=2)
        strong = await desk.key(algorithm="ML-KEM-1024")
        for changes in ({"key_id": signing}, {"key_id": strong, "algorithm": "Kyber768"}):
            async with refused(INVALID) as caught:
                await desk.close(**changes)
            assert reason_of(caught[0]) == "ERROR_REASON_UNSUPPORTED_ALGORITHM"
        assert (await desk.close(key_id=strong)).security_level == "NIST-L5"


async def test_the_hsm_away_or_sealed_is_said(stores: QuantumStores) -> None:
    async with running_hsm(stores.rig) as hsm, running_quantum(stores, hsm_port=hsm.port) as quantum:
        desk = await Desk.of(quantum)
        await desk.key()
        envelope = (await desk.close()).encrypted_template
        await hsm.operator.seal()
        async with refused(STATE) as caught:
            await desk.open(envelope)
        assert reason_of(caught[0]) == "ERROR_REASON_HSM_SEALED"
        async with refused(STATE):
            await desk.key()
        await desk.close()  # needs no private key
        batch = await desk.templates.BatchDecryptTemplates(
            pb.BatchDecryptTemplatesRequest(
                requests=[pb.DecryptTemplateRequest(user_id=USER, encrypted_template=envelope)]
            )
        )
        assert batch.results[0].reason == "ERROR_REASON_HSM_SEALED"


@pytest.mark.parametrize(
    ("size", "seconds"),
    # gRPC's own step that writes an answer of 4 MiB (copies, TLS) takes 6 ms by itself.
    [(1024, 0.005), (16_384, 0.005), (65_536, 0.012)],
)
async def test_a_full_batch_does_not_hold_the_loop(stores: QuantumStores, size: int, seconds: float) -> None:
    async with running_quantum(stores) as quantum:
        desk = await Desk.of(quantum)
        await desk.key()
        template = bytes(range(256)) * (size // 256)
        requests = [pb.EncryptTemplateRequest(user_id=USER, biometric_template=template) for _ in range(63)]
        requests.append(pb.EncryptTemplateRequest(user_id=USER, biometric_template=b"x", key_id=str(uuid.uuid4())))
        await desk.close()
        order = pb.BatchEncryptTemplatesRequest(requests=requests)
        with grpc.secure_channel(f"localhost:{quantum.port}", quantum.credentials("identity"), LARGE) as elsewhere:
            batch = TemplateServiceStub(elsewhere).BatchEncryptTemplates
            with loop_never_blocked(seconds):
                closed = await asyncio.to_thread(batch, order)
        outcomes = [result.WhichOneof("outcome") for result in closed.results]
        assert outcomes == [*["encrypted"] * 63, "reason"]
        assert closed.results[63].reason == "ERROR_REASON_NOT_FOUND"
        wanted = [
            pb.DecryptTemplateRequest(user_id=USER, encrypted_template=result.encrypted.encrypted_template)
            for result in closed.results[:63]
        ]
        wanted.append(pb.DecryptTemplateRequest(user_id=USER, encrypted_template=b"no envelope"))
        opened = await desk.templates.BatchDecryptTemplates(pb.BatchDecryptTemplatesRequest(requests=wanted))
        assert {result.decrypted.biometric_template for result in opened.results[:63]} == {template}
        assert opened.results[63].reason == "ERROR_REASON_ENVELOPE_INVALID"
    records = stores.rows(
        "SELECT operation::text, result::text, operation_data->'items' FROM quantum_audit.quantum_operations_log"
        " ORDER BY operation_timestamp DESC LIMIT 2"
    )
    assert records == [("decrypt", "partial", 64), ("encrypt", "partial", 64)]
