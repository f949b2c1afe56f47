"""The key service over real sockets and stores: orders, the hierarchy, lists, versions, limits, ends."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.quantum.v1 import key_pb2
from behaviorguard.quantum.v1 import key_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from servers.mesh.errors import ErrorReason, MeshError
from tests.support.mesh import reason_of, refused
from tests.support.quantum import Admin, StandInHsm, gone, running_quantum

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores

INVALID = grpc.StatusCode.INVALID_ARGUMENT
STATE = grpc.StatusCode.FAILED_PRECONDITION


async def test_a_key_is_made_stored_recorded_and_read(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin = Admin(quantum)
        master = await admin.master(metadata={"owner": "security"}, lifetime_days=30)
        made = await admin.service(algorithm="X-Wing", use_limit=9, rotation_days=7)
        answer = await admin.GetKey(pb.GetKeyRequest(key_id=made.key_id.upper()))
    key = answer.key
    assert (key.algorithm, key.security_level, key.version, key.min_decrypt_version) == ("X-Wing", "NIST-L3", 1, 1)
    assert (key.parent_key_id, key.service_id, key.uses_left, key.rotation_days) == (master.key_id, "identity", 9, 7)
    assert (key.status, key.purpose) == (key_pb2.KEY_STATUS_ACTIVE, key_pb2.KEY_PURPOSE_ENCRYPTION)
    assert key.public_key == made.public_key
    assert key.next_rotation_at.seconds - key.created_at.seconds == 7 * 86_400
    assert key.expires_at.seconds - key.created_at.seconds == 365 * 86_400
    assert [(version.version, version.decrypts) for version in answer.versions] == [(1, True)]
    row = stores.rows(
        "SELECT metadata, lifetime_days FROM quantum_keys.quantum_key_store WHERE key_id = %s", master.key_id
    )
    assert row == [({"owner": "security"}, 30)]
    ((data, hsm),) = stores.rows(
        "SELECT operation_data, hsm_operation_id FROM quantum_audit.quantum_operations_log WHERE key_id = %s"
        " AND operation = 'keygen'",
        made.key_id,
    )
    assert data["algorithm"] == "X-Wing"
    assert data["parent_key_id"] == master.key_id
    assert hsm
    # Flow 3's table, with its audit trail.
    ((handle, status, trail),) = stores.rows(
        "SELECT key_handle, status::text, audit_trail FROM quantum_keys.quantum_keys WHERE key_id = %s", made.key_id
    )
    assert (handle, status) == (made.key_handle, "active")
    assert [(entry["operation"], entry["result"]) for entry in trail] == [("keygen", "success"), ("manage", "success")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"algorithm": "ML-KEM-768", "security_level": "NIST-L5"}, "ERROR_REASON_SECURITY_LEVEL_NOT_MET"),
        ({"algorithm": "Dilithium3"}, "ERROR_REASON_UNSUPPORTED_ALGORITHM"),
        ({"purpose": key_pb2.KEY_PURPOSE_SIGNING}, "ERROR_REASON_UNSUPPORTED_ALGORITHM"),
        ({"algorithm": "RSA"}, "ERROR_REASON_INVALID_FIELD"),
        ({"service_id": ""}, "ERROR_REASON_INVALID_FIELD"),
        ({"parent_key_id": "x"}, "ERROR_REASON_INVALID_FIELD"),
        ({"lifetime_days": 3651}, "ERROR_REASON_INVALID_FIELD"),
    ],
)
async def test_an_order_that_cannot_be_is_refused(stores: QuantumStores, changes: dict[str, Any], reason: str) -> None:
    hsm = StandInHsm()
    async with running_quantum(stores, hsm) as quantum:
        admin = Admin(quantum)
        async with refused(INVALID) as caught:
            await admin.service(**changes)
    assert reason_of(caught[0]) == reason
    assert "generate" not in hsm.calls
    assert stores.rows(
        "SELECT result::text, reason FROM quantum_audit.quantum_operations_log WHERE organization_id = %s",
        admin.organization,
    ) == [("failure", reason)]


async def test_a_weaker_level_may_be_asked_for(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin = Admin(quantum)
        await admin.master()
        made = await admin.service(security_level="NIST-L1")
        strong = await admin.service(algorithm="ML-KEM-1024", security_level="NIST-L5")
    assert made.security_level == "NIST-L3"
    assert strong.security_level == "NIST-L5"


async def test_the_key_above_must_be_there_active_and_above(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin, stranger = Admin(quantum), Admin(quantum)
        async with refused(STATE) as caught:
            await admin.service()
        assert "no active master key" in str(caught[0].details())
        master, foreign = await admin.master(), await stranger.master()
        service = await admin.service(parent_key_id=master.key_id.upper())
        device = await admin.device(parent_key_id=service.key_id)
        await admin.device(device_id="phone-2")  # directly below the master key
        said = set()
        for parent in (foreign.key_id, str(uuid.uuid4())):
            async with refused(STATE) as caught:
                await admin.service(parent_key_id=parent)
            said.add(caught[0].details())
        assert len(said) == 1, "another organisation's key must look like one that does not exist"
        for parent in (service.key_id, device.key_id):
            async with refused(STATE):
                await admin.service(parent_key_id=parent)
        async with refused(INVALID):
            await admin.master(parent_key_id=master.key_id)
        await admin.RevokeKey(pb.RevokeKeyRequest(key_id=service.key_id, reason="test"))
        async with refused(STATE):
            await admin.device(parent_key_id=service.key_id)


async def test_both_purposes_make_two_keys_of_one_level(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin = Admin(quantum)
        await admin.master()
        for algorithm, companion in (
            ("ML-KEM-768", "ML-DSA-65"),
            ("X-Wing", "ML-DSA-65"),
            ("ML-DSA-87", "ML-KEM-1024"),
        ):
            made = await admin.service(algorithm=algorithm, purpose=key_pb2.KEY_PURPOSE_BOTH)
            key, other = await admin.key(made.key_id), await admin.key(made.companion_key_id)
            assert (key.algorithm, other.algorithm) == (algorithm, companion)
            assert key.security_level == other.security_level
            assert {key.purpose, other.purpose} == {key_pb2.KEY_PURPOSE_ENCRYPTION, key_pb2.KEY_PURPOSE_SIGNING}


async def test_lists_are_paged_and_filtered(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin = Admin(quantum)
        made = [(await admin.master()).key_id]
        made += [(await admin.service(service_id=f"s{number}")).key_id for number in range(4)]
        await admin.RevokeKey(pb.RevokeKeyRequest(key_id=made[4], reason="test"))
        found, token = [], ""
        while True:
            page = await admin.ListKeys(pb.ListKeysRequest(page_size=2, page_token=token))
            assert len(page.keys) <= 2
            found += [key.key_id for key in page.keys]
            token = page.next_page_token
            if not token:
                break
        assert found == made[::-1]
        page = await admin.ListKeys(pb.ListKeysRequest(page_size=2))
        async with refused(INVALID) as caught:
            await admin.ListKeys(pb.ListKeysRequest(page_token=page.next_page_token, key_type=key_pb2.KEY_TYPE_SERVICE))
        assert reason_of(caught[0]) == "ERROR_REASON_INVALID_TOKEN"
        async with refused(INVALID):
            await Admin(quantum).ListKeys(pb.ListKeysRequest(page_token=page.next_page_token))

        async def listed(**wanted: Any) -> set[str]:
            return {key.key_id for key in (await admin.ListKeys(pb.ListKeysRequest(**wanted))).keys}

        assert await listed(key_type=key_pb2.KEY_TYPE_MASTER) == {made[0]}
        assert await listed(status=key_pb2.KEY_STATUS_REVOKED) == {made[4]}
        assert await listed(status=key_pb2.KEY_STATUS_ACTIVE, key_type=key_pb2.KEY_TYPE_SERVICE) == set(made[1:4])
        assert await listed(status=key_pb2.KEY_STATUS_ROTATED) == set()
        assert await listed(organization_id=admin.organization) == set(made)


async def test_rotation_gives_a_new_version_and_a_new_life(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin = Admin(quantum)
        await admin.master()
        made = await admin.service(rotation_days=3, use_limit=2)
        stores.rows(
            "UPDATE quantum_keys.quantum_key_store SET expires_at = now() - interval '1 s', uses = 2 WHERE key_id = %s",
            made.key_id,
        )
        rotated = (await admin.RotateKey(pb.RotateKeyRequest(key_id=made.key_id))).key
        assert (rotated.version, rotated.status, rotated.uses_left) == (2, key_pb2.KEY_STATUS_ACTIVE, 2)
        assert rotated.public_key != made.public_key
        assert rotated.key_handle != made.key_handle
        assert rotated.next_rotation_at.seconds - rotated.rotated_at.seconds == 3 * 86_400
        async with refused(INVALID) as caught:
            await admin.RotateKey(pb.RotateKeyRequest(key_id=made.key_id, min_decrypt_version=4))
        assert reason_of(caught[0]) == "ERROR_REASON_INVALID_FIELD"
        await admin.RotateKey(pb.RotateKeyRequest(key_id=made.key_id, min_decrypt_version=2))
        answer = await admin.GetKey(pb.GetKeyRequest(key_id=made.key_id))
    versions = [(version.version, version.decrypts) for version in answer.versions]
    assert versions == [(3, True), (2, True), (1, False)]
    assert answer.key.min_decrypt_version == 2


async def test_limits_are_changed_and_the_rest_stays(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin = Admin(quantum)
        await admin.master()
        made = await admin.service(metadata={"a": "1"}, use_limit=5)
        await admin.RotateKey(pb.RotateKeyRequest(key_id=made.key_id))
        before = await admin.key(made.key_id)
        unchanged = (await admin.UpdateKey(pb.UpdateKeyRequest(key_id=made.key_id))).key
        assert unchanged == before
        end = Timestamp()
        end.FromDatetime(datetime.now(UTC) + timedelta(days=2))
        after = (
            await admin.UpdateKey(
                pb.UpdateKeyRequest(
                    key_id=made.key_id,
                    min_decrypt_version=2,
                    expires_at=end,
                    rotation_days=1,
                    use_limit=0,
                    metadata={"b": "2"},
                )
            )
        ).key
        assert (after.min_decrypt_version, after.rotation_days, dict(after.metadata)) == (2, 1, {"b": "2"})
        assert not after.HasField("uses_left")
        assert after.HasField("next_rotation_at")
        lowered = await admin.UpdateKey(pb.UpdateKeyRequest(key_id=made.key_id, min_decrypt_version=1, rotation_days=0))
        assert lowered.key.min_decrypt_version == 1
        assert not lowered.key.HasField("next_rotation_at")
        for wrong in ({"min_decrypt_version": 3}, {"expires_at": Timestamp(seconds=1_000_000_000)}):
            async with refused(INVALID):
                await admin.UpdateKey(pb.UpdateKeyRequest(key_id=made.key_id, **wrong))
        await admin.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id, reason="test"))
        async with refused(STATE) as caught:
            await admin.UpdateKey(pb.UpdateKeyRequest(key_id=made.key_id, use_limit=1))
        assert reason_of(caught[0]) == "ERROR_REASON_KEY_REVOKED"


async def test_an_expired_key_with_a_new_end_is_active_again(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin = Admin(quantum)
        made = await admin.master()
        stores.rows(
            "UPDATE quantum_keys.quantum_key_store SET expires_at = now() - interval '1 s', status = 'expired'"
            " WHERE key_id = %s",
            made.key_id,
        )
        assert (await admin.key(made.key_id)).status == key_pb2.KEY_STATUS_EXPIRED
        end = Timestamp()
        end.FromDatetime(datetime.now(UTC) + timedelta(days=1))
        after = await admin.UpdateKey(pb.UpdateKeyRequest(key_id=made.key_id, expires_at=end))
    assert after.key.status == key_pb2.KEY_STATUS_ACTIVE


async def test_revoking_ends_all_below_and_destroys_them(stores: QuantumStores) -> None:
    hsm = StandInHsm()
    async with running_quantum(stores, hsm) as quantum:
        admin = Admin(quantum)
        master, other = await admin.master(), await admin.master()
        service = await admin.service(parent_key_id=master.key_id)
        device = await admin.device(parent_key_id=service.key_id)
        spared = await admin.service(parent_key_id=other.key_id)
        answer = await admin.RevokeKey(pb.RevokeKeyRequest(key_id=master.key_id, reason="left the company"))
        assert answer.key.status == key_pb2.KEY_STATUS_REVOKED
        assert set(answer.revoked_key_ids) == {service.key_id, device.key_id}
        again = await admin.RevokeKey(pb.RevokeKeyRequest(key_id=master.key_id, reason="again"))
        assert not again.revoked_key_ids
        assert (await admin.key(device.key_id)).status == key_pb2.KEY_STATUS_REVOKED
        assert (await admin.key(spared.key_id)).status == key_pb2.KEY_STATUS_ACTIVE
        async with refused(STATE) as caught:
            await admin.RotateKey(pb.RotateKeyRequest(key_id=service.key_id))
        assert reason_of(caught[0]) == "ERROR_REASON_KEY_REVOKED"
        await gone(stores, master.key_id, service.key_id, device.key_id)
        assert {master.key_id, service.key_id, device.key_id}.isdisjoint(hsm.keys)
        assert {other.key_id, spared.key_id} <= set(hsm.keys)


async def test_a_key_is_revoked_while_the_hsm_is_away_and_destroyed_when_it_is_back(stores: QuantumStores) -> None:
    hsm = StandInHsm()
    async with running_quantum(stores, hsm) as quantum:
        admin = Admin(quantum)
        made = await admin.master()
        hsm.failure = MeshError(ErrorReason.ERROR_REASON_HSM_SEALED, "sealed")
        answer = await admin.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id, reason="test"))
        assert answer.key.status == key_pb2.KEY_STATUS_REVOKED
        assert made.key_id in hsm.keys
        hsm.failure = None
        await gone(stores, made.key_id)
        assert made.key_id not in hsm.keys
