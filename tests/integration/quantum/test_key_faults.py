"""Stores that fail in the middle of things: typed errors, no half-made keys, and nothing lost that was acknowledged."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest
from behaviorguard.quantum.v1 import key_service_pb2 as pb
from behaviorguard.quantum.v1 import template_service_pb2 as templates_pb
from psycopg.conninfo import conninfo_to_dict

from tests.support.hsm import running_hsm
from tests.support.mesh import reason_of
from tests.support.quantum import Admin, StandInHsm, person, running_quantum
from tests.support.threat import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.quantum import QuantumStores

USER = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a42"
AWAY = {"ERROR_REASON_AUDIT_UNAVAILABLE", "ERROR_REASON_DEPENDENCY_UNAVAILABLE"}


@contextmanager
def database_away(stores: QuantumStores) -> Iterator[None]:
    """The service's role cannot connect, and what is connected is cut off."""
    name = str(conninfo_to_dict(stores.owner_dsn)["dbname"])
    with psycopg.connect(stores.owner_dsn, autocommit=True) as owner:
        owner.execute(f"REVOKE CONNECT ON DATABASE {name} FROM bg_quantum".encode())
        try:
            owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'bg_quantum' AND datname = current_database()"
            )
            yield
        finally:
            owner.execute(f"GRANT CONNECT ON DATABASE {name} TO bg_quantum".encode())


@contextmanager
def trail_read_only(stores: QuantumStores) -> Iterator[None]:
    """Everything works but the audit trail."""
    with psycopg.connect(stores.owner_dsn, autocommit=True) as owner:
        owner.execute("REVOKE INSERT ON quantum_audit.quantum_operations_log FROM bg_quantum")
        try:
            yield
        finally:
            owner.execute("GRANT INSERT ON quantum_audit.quantum_operations_log TO bg_quantum")


async def reason(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return reason_of(error.value)


async def test_without_the_database_everything_is_refused_and_nothing_is_left_behind(stores: QuantumStores) -> None:
    hsm = StandInHsm()
    settings: dict[str, Any] = {"given_up_seconds": 1, "audit_seconds": 0.3}
    async with running_quantum(stores, hsm, **settings) as quantum:
        admin = Admin(quantum)
        master = await admin.master()
        made = await admin.service()
        templates = quantum.templates("gateway")
        request = templates_pb.EncryptTemplateRequest(user_id=USER, biometric_template=b"face")
        who = person(admin.organization, "self", USER)
        await templates.EncryptTemplate(request, metadata=who)
        with database_away(stores):
            calls = [
                templates.EncryptTemplate(request, metadata=who),
                admin.service(service_id="other"),
                admin.GetKey(pb.GetKeyRequest(key_id=made.key_id)),
                admin.RotateKey(pb.RotateKeyRequest(key_id=made.key_id)),
                admin.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id, reason="x")),
            ]
            for said in await asyncio.gather(*(reason(call) for call in calls)):
                assert said in AWAY
        # It comes back by itself.
        async with asyncio.timeout(15):
            while (code := await code_of(templates.EncryptTemplate(request, metadata=who))) is not grpc.StatusCode.OK:
                assert code is grpc.StatusCode.UNAVAILABLE
        assert (await admin.key(made.key_id)).version == 1
        await eventually(lambda: set(hsm.keys) >= {master.key_id, made.key_id} and stored(stores) >= set(hsm.keys))


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def stored(stores: QuantumStores) -> set[str]:
    return {key_id for (key_id,) in stores.rows("SELECT key_id::text FROM quantum_keys.quantum_key_store")}


async def test_what_cannot_be_recorded_is_not_done(stores: QuantumStores) -> None:
    hsm = StandInHsm()
    async with running_quantum(stores, hsm, audit_seconds=0.3) as quantum:
        admin = Admin(quantum)
        await admin.master()
        made = await admin.service()
        before = await admin.key(made.key_id)
        templates = quantum.templates("gateway")
        request = templates_pb.EncryptTemplateRequest(user_id=USER, biometric_template=b"face")
        with trail_read_only(stores):
            # One after the other (a call is on its way as soon as it is made): in one transaction, a rotation would see
            # the revocation that is then undone.
            calls: tuple[Callable[[], Any], ...] = (
                lambda: admin.service(service_id="other"),
                lambda: admin.RotateKey(pb.RotateKeyRequest(key_id=made.key_id)),
                lambda: admin.UpdateKey(pb.UpdateKeyRequest(key_id=made.key_id, use_limit=7)),
                lambda: admin.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id, reason="x")),
                lambda: admin.GetKey(pb.GetKeyRequest(key_id=made.key_id)),
                lambda: templates.EncryptTemplate(request, metadata=person(admin.organization, "self", USER)),
            )
            for call in calls:
                assert await reason(call()) == "ERROR_REASON_AUDIT_UNAVAILABLE"
        assert await admin.key(made.key_id) == before
        kept = stores.rows(
            "SELECT key_id::text FROM quantum_keys.quantum_key_store WHERE organization_id = %s", admin.organization
        )
        assert {key_id for (key_id,) in kept} == set(hsm.keys), "the key that was not stored is not in the HSM either"


async def test_no_key_stays_active_below_one_that_is_revoked_at_the_same_time(stores: QuantumStores) -> None:
    async with (
        running_hsm(stores.rig) as hsm,
        running_quantum(stores, hsm_port=hsm.port) as first,
        running_quantum(stores, hsm_port=hsm.port) as second,
    ):
        admin, other = Admin(first), Admin(second)
        other.organization, other._metadata = admin.organization, admin._metadata
        for _ in range(4):
            master = await admin.master()
            work = [each.service(parent_key_id=master.key_id) for each in (admin, other) for _ in range(5)]
            revoke = other.RevokeKey(pb.RevokeKeyRequest(key_id=master.key_id, reason="race"))
            made = await asyncio.gather(*work[:5], revoke, *work[5:], return_exceptions=True)
            below = stores.rows(
                "SELECT status::text FROM quantum_keys.quantum_key_store WHERE parent_key_id = %s", master.key_id
            )
            assert all(status == "revoked" for (status,) in below), below
            acknowledged = sum(not isinstance(each, BaseException) for each in made) - 1
            assert acknowledged == len(below)


async def test_of_two_rotations_at_once_each_counts_or_is_refused(stores: QuantumStores) -> None:
    async with (
        running_hsm(stores.rig) as hsm,
        running_quantum(stores, hsm_port=hsm.port) as first,
        running_quantum(stores, hsm_port=hsm.port) as second,
    ):
        admin, other = Admin(first), Admin(second)
        other.organization, other._metadata = admin.organization, admin._metadata
        made = await admin.master()
        answers = await asyncio.gather(
            *(each.rotate(made.key_id) for each in (admin, other) * 4), return_exceptions=True
        )
        versions = sorted(answer.version for answer in answers if not isinstance(answer, BaseException))
        assert versions == list(range(2, 2 + len(versions)))
        for answer in answers:
            if isinstance(answer, grpc.aio.AioRpcError):
                assert reason_of(answer) == "ERROR_REASON_WRONG_STATE"
        assert (await admin.key(made.key_id)).version == versions[-1]


async def test_a_caller_that_gives_up_leaves_no_half_made_key(stores: QuantumStores) -> None:
    """Whatever the moment: what is in the HSM is in the database, once upkeep has passed."""
    hsm = StandInHsm()
    async with running_quantum(stores, hsm, given_up_seconds=1) as quantum:
        admin = Admin(quantum)
        for number in range(12):
            call = asyncio.create_task(_master(admin))
            await asyncio.sleep(0.001 * number)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

        def clean() -> bool:
            mine = stores.rows(
                "SELECT key_id::text FROM quantum_keys.quantum_key_store WHERE organization_id = %s", admin.organization
            )
            waiting = stores.rows(
                "SELECT 1 FROM quantum_keys.key_intents WHERE organization_id = %s", admin.organization
            )
            return not waiting and {key_id for (key_id,) in mine} == set(hsm.keys)

        await eventually(clean)
        assert uuid.UUID((await admin.master()).key_id)


async def _master(admin: Admin) -> Any:
    return await admin.master()
