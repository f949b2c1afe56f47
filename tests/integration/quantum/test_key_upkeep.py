"""What happens to keys without anybody asking, and what is left of a key that was never stored."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.quantum.v1 import key_pb2
from behaviorguard.quantum.v1 import template_service_pb2 as templates_pb

from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from servers.quantum.ports import GeneratedKey
from tests.support.hsm import running_hsm
from tests.support.mesh import reason_of, refused
from tests.support.quantum import Admin, StandInHsm, person, running_quantum
from tests.support.threat import eventually

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores

USER = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a42"


async def test_expiry_is_marked_and_recorded_once_by_two_services(stores: QuantumStores) -> None:
    async with running_hsm(stores.rig) as hsm, running_quantum(stores, hsm_port=hsm.port) as quantum:
        admin = Admin(quantum)
        made = [(await admin.master()).key_id for _ in range(5)]
        stores.rows(
            "UPDATE quantum_keys.quantum_key_store SET expires_at = now() - interval '1 s' WHERE organization_id = %s",
            admin.organization,
        )
        async with running_quantum(stores, hsm_port=hsm.port):
            await eventually(
                lambda: (
                    stores.rows(
                        "SELECT count(*) FROM quantum_keys.quantum_key_store WHERE organization_id = %s"
                        " AND status = 'expired'",
                        admin.organization,
                    )
                    == [(5,)]
                )
            )
        assert (await admin.key(made[0])).status == key_pb2.KEY_STATUS_EXPIRED
    assert stores.rows(
        "SELECT key_id::text, count(*), min(service_id), min(user_id::text) FROM quantum_audit.quantum_operations_log"
        " WHERE organization_id = %s AND operation = 'expire' GROUP BY key_id ORDER BY key_id",
        admin.organization,
    ) == [(key_id, 1, "quantum", None) for key_id in sorted(made)]


async def test_keys_that_are_due_are_rotated_once_by_two_services(stores: QuantumStores) -> None:
    async with running_hsm(stores.rig) as hsm, running_quantum(stores, hsm_port=hsm.port) as quantum:
        admin = Admin(quantum)
        await admin.master()
        due = [(await admin.service(service_id=f"s{n}", rotation_days=1)).key_id for n in range(6)]
        await admin.service(service_id="unscheduled")
        async with running_quantum(stores, hsm_port=hsm.port):
            stores.rows(
                "UPDATE quantum_keys.quantum_key_store SET next_rotation_at = now() - interval '1 s'"
                " WHERE key_id = ANY(%s::uuid[])",
                due,
            )
            await eventually(
                lambda: (
                    stores.rows(
                        "SELECT count(*) FROM quantum_keys.quantum_key_store WHERE key_id = ANY(%s::uuid[])"
                        " AND version = 2 AND next_rotation_at > now()",
                        due,
                    )
                    == [(6,)]
                )
            )
    assert stores.rows(
        "SELECT count(*), max(version) FROM quantum_keys.quantum_key_store WHERE organization_id = %s",
        admin.organization,
    ) == [(8, 2)]
    assert stores.rows(
        "SELECT count(*) FROM quantum_audit.quantum_operations_log WHERE organization_id = %s AND operation = 'rotate'"
        " AND operation_data->'scheduled' = 'true'",
        admin.organization,
    ) == [(6,)]


class Interrupted(StandInHsm):
    """Makes the key, then something goes wrong."""

    def __init__(self, stores: QuantumStores, then: str) -> None:
        super().__init__()
        self._stores = stores
        self._then = then

    async def generate(self, key_id: str, version: int, algorithm: str, organization_id: str) -> GeneratedKey:
        made = await super().generate(key_id, version, algorithm, organization_id)
        if self._then == "given up":
            self._stores.rows("UPDATE quantum_keys.key_intents SET abandoned = true WHERE key_id = %s", key_id)
        elif self._then == "taken":  # the database refuses the row: its handle is another key's
            made = GeneratedKey(made.public_key, "taken", made.entropy, made.operation_id, made.generated_at)
        elif self._then == "away":
            self.failure = MeshError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the HSM is away")
            raise self.failure
        return made


@pytest.mark.parametrize("then", ["given up", "taken"])
async def test_a_key_that_cannot_be_stored_is_destroyed(stores: QuantumStores, then: str) -> None:
    hsm = Interrupted(stores, then)
    async with running_quantum(stores, hsm) as quantum:
        admin = Admin(quantum)
        if then == "taken":
            await admin.master()
        with pytest.raises(grpc.aio.AioRpcError):
            await admin.master()
    kept = stores.rows(
        "SELECT key_id::text FROM quantum_keys.quantum_key_store WHERE organization_id = %s", admin.organization
    )
    assert {key_id for (key_id,) in kept} == set(hsm.keys)
    assert stores.rows("SELECT 1 FROM quantum_keys.key_intents WHERE organization_id = %s", admin.organization) == []


@pytest.mark.parametrize("made", [0, 1])
async def test_while_the_hsm_is_sealed_nothing_piles_up(stores: QuantumStores, made: int) -> None:
    """A refusal leaves no intent, whether the first key was refused or its companion."""

    class SealedAfter(StandInHsm):
        async def generate(self, key_id: str, version: int, algorithm: str, organization_id: str) -> GeneratedKey:
            if self.calls.count("generate") - before == made:
                raise MeshError(ErrorReason.ERROR_REASON_HSM_SEALED, "sealed")
            return await super().generate(key_id, version, algorithm, organization_id)

    before = -10
    hsm = SealedAfter()
    async with running_quantum(stores, hsm, given_up_seconds=3600) as quantum:
        admin = Admin(quantum)
        master = await admin.master()
        before = hsm.calls.count("generate")
        async with refused(grpc.StatusCode.FAILED_PRECONDITION) as caught:
            await admin.service(purpose=key_pb2.KEY_PURPOSE_BOTH)
        assert reason_of(caught[0]) == "ERROR_REASON_HSM_SEALED"
        assert set(hsm.keys) == {master.key_id}
    assert stores.rows("SELECT 1 FROM quantum_keys.key_intents WHERE organization_id = %s", admin.organization) == []


async def test_an_orphan_is_destroyed_when_the_hsm_is_back(stores: QuantumStores) -> None:
    hsm = Interrupted(stores, "away")
    async with running_quantum(stores, hsm, given_up_seconds=1) as quantum:
        admin = Admin(quantum)
        async with refused(grpc.StatusCode.UNAVAILABLE) as caught:
            await admin.master()
        assert reason_of(caught[0]) == "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
        assert len(hsm.keys) == 1
        hsm.failure = None
        await eventually(
            lambda: (
                not hsm.keys
                and not stores.rows(
                    "SELECT 1 FROM quantum_keys.key_intents WHERE organization_id = %s", admin.organization
                )
            )
        )


async def test_a_key_that_is_being_made_is_not_given_up(stores: QuantumStores) -> None:
    """Only age says that nobody waits for it any more."""
    async with running_quantum(stores, StandInHsm(), given_up_seconds=3600) as quantum:
        admin = Admin(quantum)
        key_id = str(uuid.uuid4())
        stores.rows(
            "INSERT INTO quantum_keys.key_intents (key_id, organization_id) VALUES (%s, %s)", key_id, admin.organization
        )
        await quantum.hsm.generate(key_id, 1, "ML-KEM-768", admin.organization)
        await asyncio.to_thread(_rounds, stores)
        assert key_id in quantum.hsm.keys


def _rounds(stores: QuantumStores) -> None:
    """Let upkeep pass by twice: it marks what has expired in each round."""
    for _ in range(2):
        owner = str(uuid.uuid4())
        stores.rows(
            "INSERT INTO quantum_keys.quantum_key_store (organization_id, key_type, algorithm, public_key, key_handle,"
            " security_level, purpose, expires_at) VALUES (%s, 'master', 'ML-DSA-65', '', %s, 'NIST-L3', 'signing',"
            " now() - interval '1 s')",
            owner,
            owner,
        )
        found: list[Any] = []
        while not found:
            found = stores.rows(
                "SELECT 1 FROM quantum_keys.quantum_key_store WHERE organization_id = %s AND status = 'expired'", owner
            )


async def test_a_rotation_whose_answer_was_lost_goes_on_with_the_same_version(stores: QuantumStores) -> None:
    async with running_hsm(stores.rig) as hsm, running_quantum(stores, hsm_port=hsm.port) as quantum:
        admin = Admin(quantum)
        made = await admin.master()
        client = await hsm.client()
        lost = await client.generate(made.key_id, 2, "ML-DSA-65", admin.organization)  # and then the service died
        rotated = await admin.rotate(made.key_id)
    assert rotated.version == 2
    assert rotated.public_key == lost.public_key


async def test_platform_keys_are_made_once_however_many_ask(stores: QuantumStores) -> None:
    async with (
        running_hsm(stores.rig) as hsm,
        running_quantum(stores, hsm_port=hsm.port, default_template_key=True),
        running_quantum(stores, hsm_port=hsm.port, default_template_key=True) as quantum,
    ):
        await eventually(
            lambda: stores.rows(
                "SELECT 1 FROM quantum_keys.quantum_key_store WHERE platform AND service_id = 'templates'"
            )
        )
        closed = await quantum.templates("gateway").EncryptTemplate(
            templates_pb.EncryptTemplateRequest(user_id=USER, biometric_template=b"face"),
            metadata=person(DEFAULT_ORGANIZATION_ID, "self", USER),
        )
    found = stores.rows(
        "SELECT key_type::text, service_id, key_id::text FROM quantum_keys.quantum_key_store WHERE platform"
        " AND service_id IN ('', 'templates') ORDER BY key_type"
    )
    assert [row[:2] for row in found] == [("master", ""), ("service", "templates")]
    assert found[1][2] == closed.key_id
