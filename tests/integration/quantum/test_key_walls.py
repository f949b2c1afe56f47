"""Organisations are walled off from each other: tests that try to cross."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.quantum.v1 import key_service_pb2 as pb
from behaviorguard.quantum.v1 import template_service_pb2 as templates_pb
from psycopg import errors

from tests.support.mesh import reason_of, refused
from tests.support.quantum import ORGANIZATION, Admin, master_key, person, running_quantum, service_key
from tests.support.threat import eventually

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores

MISSING = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED


async def test_another_organisations_key_is_not_there(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        owner, thief = Admin(quantum), Admin(quantum)
        await owner.master()
        made = await owner.service()
        tries: list[tuple[Any, Any]] = [
            (thief.GetKey, pb.GetKeyRequest(key_id=made.key_id)),
            (thief.RotateKey, pb.RotateKeyRequest(key_id=made.key_id)),
            (thief.UpdateKey, pb.UpdateKeyRequest(key_id=made.key_id, use_limit=1)),
            (thief.RevokeKey, pb.RevokeKeyRequest(key_id=made.key_id, reason="mine now")),
            (thief.RewrapEnvelopes, pb.RewrapEnvelopesRequest(key_id=made.key_id, envelopes=[b"x"])),
        ]
        for call, request in tries:
            async with refused(MISSING) as caught:
                await call(request)
            other = type(request)()
            other.CopyFrom(request)
            other.key_id = str(uuid.uuid4())
            async with refused(MISSING) as unknown:
                await call(other)
            assert caught[0].details() == unknown[0].details()
            assert reason_of(caught[0]) == "ERROR_REASON_NOT_FOUND"
        assert not (await thief.ListKeys(pb.ListKeysRequest())).keys
        before = await owner.key(made.key_id)
        # The owner is told, once; the one who asked is not.
        told = await eventually(lambda: events(stores, owner.organization))
        assert told == [("organization_violation", "high", made.key_id)]
        assert events(stores, thief.organization) == []
    assert before.version == 1
    assert before.HasField("uses_left") is False
    # Each attempt is in the trail of whoever tried, never in the owner's.
    assert stores.rows(
        "SELECT count(*) FROM quantum_audit.quantum_operations_log WHERE organization_id = %s AND result = 'failure'",
        thief.organization,
    ) == [(10,)]
    assert stores.rows(
        "SELECT count(*) FROM quantum_audit.quantum_operations_log WHERE organization_id = %s AND result = 'failure'",
        owner.organization,
    ) == [(0,)]


def events(stores: QuantumStores, organization: str) -> list[Any]:
    return stores.rows(
        "SELECT event_type::text, severity::text, key_id::text FROM quantum_security.security_events"
        " WHERE organization_id = %s",
        organization,
    )


async def test_a_request_that_names_another_organisation_is_refused(stores: QuantumStores) -> None:
    elsewhere = str(uuid.uuid4())
    async with running_quantum(stores) as quantum:
        for keys, metadata in ((quantum.keys("operator"), ()), (quantum.keys("gateway"), person(ORGANIZATION))):
            async with refused(DENIED) as caught:
                await keys.GenerateKey(master_key(elsewhere), metadata=metadata)
            assert reason_of(caught[0]) == "ERROR_REASON_SCOPE_NOT_ALLOWED"
            async with refused(DENIED):
                await keys.ListKeys(pb.ListKeysRequest(organization_id=elsewhere), metadata=metadata)
    assert stores.rows("SELECT 1 FROM quantum_keys.quantum_key_store WHERE organization_id = %s", elsewhere) == []


async def test_only_an_administrator_manages_keys(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        keys = quantum.keys("gateway")
        for scope in ("self", "analyst"):
            async with refused(DENIED):
                await keys.GenerateKey(master_key(), metadata=person(scope=scope))
        async with refused(DENIED):
            await quantum.keys("threat").GenerateKey(master_key())


async def test_an_envelope_opens_in_its_own_organisation_alone(stores: QuantumStores) -> None:
    user, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    async with running_quantum(stores) as quantum:
        keys, templates = quantum.keys("gateway"), quantum.templates("gateway")
        for organization in (ORGANIZATION, theirs):
            for order in (master_key(organization), service_key(organization)):
                await keys.GenerateKey(order, metadata=person(organization))
        closed = await templates.EncryptTemplate(
            templates_pb.EncryptTemplateRequest(user_id=user, biometric_template=b"secret"),
            metadata=person(theirs, "self", user),
        )
        # The identity service works for the default organisation here: the very same request, one wall further.
        async with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
            await quantum.templates("identity").DecryptTemplate(
                templates_pb.DecryptTemplateRequest(user_id=user, encrypted_template=closed.encrypted_template)
            )
        assert reason_of(caught[0]) == "ERROR_REASON_ENVELOPE_INVALID"
        async with refused(MISSING):
            await templates.EncryptTemplate(
                templates_pb.EncryptTemplateRequest(user_id=user, biometric_template=b"x", key_id=closed.key_id),
                metadata=person(ORGANIZATION, "self", user),
            )


async def test_the_database_refuses_a_parent_of_another_organisation(stores: QuantumStores) -> None:
    """The wall stands in the schema too."""
    async with running_quantum(stores) as quantum:
        owner, other = Admin(quantum), Admin(quantum)
        mine = await owner.master()
        await other.master()
        theirs = await other.service()
    with pytest.raises(errors.ForeignKeyViolation):
        stores.rows(
            "UPDATE quantum_keys.quantum_key_store SET parent_key_id = %s WHERE key_id = %s", mine.key_id, theirs.key_id
        )
