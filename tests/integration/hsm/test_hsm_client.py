"""How the quantum service calls the HSM: together, again after it was away, never under another's deadline."""
# ruff: noqa: N802 -- RPC names come from the contract

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.quantum.v1 import audit_service_pb2 as audit
from behaviorguard.quantum.v1.audit_service_pb2_grpc import (
    AuditServiceServicer,
    add_AuditServiceServicer_to_server,
)

from infra.stack.ports import free_port
from servers.crypto.algorithms import Algorithm
from servers.hsm.app import hsm_app
from servers.mesh.audit import AUDIT_SERVICE
from servers.mesh.context import CallContext, enter_call
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.settings import MeshSettings
from servers.quantum.ports import Opened, SignItem
from tests.support.hsm import (
    ORGANIZATION,
    HsmProcess,
    HsmRig,
    mesh_settings,
    new_id,
    running_hsm,
    sealed_for,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from servers.quantum.hsm import HsmClient
    from servers.quantum.ports import GeneratedKey


async def refused(work: Awaitable[Any]) -> ErrorReason.ValueType:
    with pytest.raises(MeshError) as error:
        await work
    return error.value.reason


async def a_key(client: HsmClient, algorithm: Algorithm = Algorithm.ML_KEM_768) -> GeneratedKey:
    return await client.generate(new_id(), 1, algorithm, ORGANIZATION)


async def test_concurrent_calls_travel_together(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        made = await a_key(client)
        items = [sealed_for(made, Algorithm.ML_KEM_768, str(number).encode()) for number in range(130)]
        opened = await asyncio.gather(*(client.decrypt(item) for item in items))
        assert [each.plaintext for each in opened] == [str(number).encode() for number in range(130)]
        assert len({each.operation_id for each in opened}) == 3  # 64 + 64 + 2


async def test_large_items_are_spread_over_calls(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        made = await a_key(client)
        items = [sealed_for(made, Algorithm.ML_KEM_768, bytes(80_000)) for _ in range(64)]
        opened = await client.decrypt_many(items)
        found = {each.operation_id for each in opened if isinstance(each, Opened)}
        assert len(opened) == 64
        assert len(found) == 2


async def test_one_callers_deadline_is_not_the_others(software_rig: HsmRig) -> None:
    """The call that is being served ends at once; whoever's item travels in the same RPC notices nothing."""
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        made = await a_key(client)
        item = sealed_for(made, Algorithm.ML_KEM_768, b"x")

        async def late() -> Opened:
            enter_call(CallContext("/x", "gateway", new_id(), deadline=time.monotonic() + 0.0001))
            return await client.decrypt(item)

        first = asyncio.create_task(late())
        others = [asyncio.create_task(client.decrypt(item)) for _ in range(10)]
        given_up = asyncio.create_task(client.decrypt(item))
        await asyncio.sleep(0)
        given_up.cancel()
        assert {(await other).plaintext for other in others} == {b"x"}
        assert (await first).plaintext == b"x"


async def test_too_many_that_wait_are_refused(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client(waiting=8)
        made = await a_key(client, Algorithm.ED25519)
        results = await client.sign_many([SignItem(made.key_handle, ORGANIZATION, b"m")] * 20)
        errors = [result for result in results if isinstance(result, MeshError)]
        assert len(errors) == 12
        assert {error.reason for error in errors} == {ErrorReason.ERROR_REASON_OVERLOADED}
        assert {error.retry_after_s for error in errors} == {1.0}


async def test_a_channel_that_ended_is_opened_again(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig, channels_per_caller=1) as hsm:
        one, two = await hsm.client(), await hsm.client()
        made = await a_key(one, Algorithm.ED25519)
        for _ in range(3):  # each ends the other's channel
            for client in (one, two):
                assert (await client.sign(made.key_handle, ORGANIZATION, b"m")).signature
        assert (await one.status()).active_connections == 2  # the operator's, and one of ours


async def test_a_channel_is_renewed_before_it_ends(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig, channel_seconds=1.0) as hsm:
        client = await hsm.client()
        made = await a_key(client, Algorithm.ED25519)
        first = client._channel
        client._renew_at = time.monotonic()
        await client.sign(made.key_handle, ORGANIZATION, b"m")
        assert client._channel is not first


async def test_a_restarted_hsm_is_called_again(software_rig: HsmRig) -> None:
    with HsmProcess(software_rig, free_port()) as process:
        process.start()
        async with process.calls() as (_, client):
            made = await a_key(client)
            item = sealed_for(made, Algorithm.ML_KEM_768, b"kept")
            process.end()
            away = await refused(client.decrypt(item))
            assert away == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
            # Enough failures to open the breaker: it must not stay open long after the HSM is back.
            reasons = {await refused(client.destroy(new_id(), ORGANIZATION)) for _ in range(30)}
            assert ErrorReason.ERROR_REASON_CIRCUIT_OPEN in reasons
            process.start()
            async with process.calls():  # unsealed

                async def back() -> bool:
                    try:
                        return (await client.decrypt(item)).plaintext == b"kept"
                    except MeshError:
                        return False

                await until(back)
            assert (await a_key(client)).public_key


async def test_whoever_waits_when_the_client_closes_is_told(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        made = await a_key(client, Algorithm.ML_DSA_87)
        waiting = [asyncio.create_task(client.sign(made.key_handle, ORGANIZATION, b"m")) for _ in range(500)]
        await asyncio.sleep(0)
        await client.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(
            isinstance(result, MeshError) and result.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
            for result in results
        )


class FakeAudit(AuditServiceServicer):
    """An audit trail that only remembers."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str]] = []

    async def AppendAuditRecord(self, request: Any, context: Any) -> Any:
        self.records.append((request.method.rpartition("/")[2], request.reason))
        return audit.AppendAuditRecordResponse(audit_id=new_id())


@asynccontextmanager
async def audit_trail(pki: Path, port: int, fake: FakeAudit) -> AsyncIterator[None]:
    settings = mesh_settings(pki, "quantum").model_copy(update={"port": port, "drain_seconds": 1.0})
    assert isinstance(settings, MeshSettings)
    server = MeshServer(settings, [ServiceBinding(AUDIT_SERVICE, add_AuditServiceServicer_to_server, fake)])
    await server.start()
    try:
        yield
    finally:
        await server.drain()


async def test_ceremonies_reach_the_audit_trail_when_it_is_there(software_rig: HsmRig, pki: Path) -> None:
    port = free_port()
    fake = FakeAudit()  # type: ignore[abstract]  # the HSM calls nothing else of it
    changes: dict[str, Any] = {"quantum_address": f"127.0.0.1:{port}", "upkeep_seconds": 0.05, "scrub_keys": 64}
    async with running_hsm(software_rig, **changes) as hsm:
        client = await hsm.client()
        await a_key(client)
        assert not fake.records  # nobody is there, and the HSM works
        async with audit_trail(pki, port, fake):

            async def arrived() -> bool:
                return len(fake.records) == 2

            await until(arrived)
            assert fake.records == [("Initialize", ""), ("Unseal", "")]
            for file in software_rig.files(0):
                file.unlink()

            async def repaired() -> bool:
                return len(fake.records) == 3

            await until(repaired)
            assert fake.records[2] == ("RepairReplica", "REPLICA_REPAIRED")
            # What the audit trail took is remembered beside the journal.
            position = software_rig.modules[1] / "forwarded"
            await until(lambda: _settled(position))
    async with audit_trail(pki, port, fake), running_hsm(software_rig, **changes):

        async def again() -> bool:
            return len(fake.records) == 4

        await until(again)
        assert fake.records[3] == ("Unseal", "")


async def _settled(position: Path) -> bool:
    return await asyncio.to_thread(lambda: position.exists() and int(position.read_text()) > 5)


async def test_settings_that_cannot_work_are_refused(software_rig: HsmRig) -> None:
    for wrong in (
        {"hsm_modules": tuple(software_rig.modules[:2])},
        {"hsm_modules": (software_rig.modules[0],) * 3},
        {"hsm_backend": "pkcs11"},
    ):
        with pytest.raises(ValueError, match="must name"):
            async with hsm_app(software_rig.settings(**wrong)):
                raise AssertionError
