"""The audit trail while its database fails: calls fail in time, nothing is half done, and it recovers by itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.quantum.v1 import key_service_pb2

from servers.mesh.context import AuditNotes
from servers.mesh.errors import ErrorReason, MeshError
from tests.support.audit import chain, entry, holds
from tests.support.mesh import reason_of, refused
from tests.support.quantum import StandInHsm, master_key, person, running_quantum
from tests.support.relay import DatabaseRelay
from tests.support.threat import eventually

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from servers.quantum.audit_trail import AuditTrail
    from tests.support.audit import Trails
    from tests.support.quantum import QuantumStores


async def refusal(trail: AuditTrail, organization: str, **changes: Any) -> tuple[MeshError, float]:
    """Why a record was refused, and after how long."""
    begun = time.monotonic()
    with pytest.raises(MeshError) as error:
        await trail.commit(entry(organization, **changes))
    return error.value, time.monotonic() - begun


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
async def test_records_are_refused_in_time_and_written_again_afterwards(
    trails: Trails, service_dsn: str, owner_dsn: str, organization: str, silent: bool
) -> None:
    async with DatabaseRelay(service_dsn) as relay, trails(dsn=relay.dsn, within_seconds=0.4) as trail:
        await trail.commit(entry(organization))
        if silent:
            relay.hang()
        else:
            await relay.cut()
        refusals = await asyncio.gather(*(refusal(trail, organization) for _ in range(20)))
        for error, seconds in refusals:
            assert error.reason == ErrorReason.ERROR_REASON_AUDIT_UNAVAILABLE
            assert error.retry_after_s
            assert 0.3 < seconds < 1.0
        await relay.drop()
        await relay.mend()

        async def works() -> bool:
            try:
                await trail.commit(entry(organization))
            except MeshError:
                return False
            return True

        async with asyncio.timeout(10):
            while not await works():
                pass
    holds(chain(owner_dsn, organization))


async def test_an_answer_that_is_lost_is_looked_up_and_nothing_is_done_twice(
    trails: Trails, service_dsn: str, owner_dsn: str, organization: str
) -> None:
    ran = 0

    async def change(connection: AsyncConnection[Any]) -> int:
        nonlocal ran
        ran += 1
        await connection.execute(
            "INSERT INTO quantum_security.event_heads (organization_id, position) VALUES (%s, 1)", (organization,)
        )
        return ran

    notes = AuditNotes()
    async with DatabaseRelay(service_dsn) as relay, trails(dsn=relay.dsn) as trail:
        await trail.commit(entry(organization))
        relay.loses_commit = True
        assert await trail.commit(entry(organization, notes=notes), change) == 1
        assert relay.lost == 1
        assert ran == 1
        assert notes.recorded
        await trail.commit(entry(organization))
    records = chain(owner_dsn, organization)
    assert len(records) == 3
    holds(records)


async def test_a_connection_that_breaks_before_the_commit_is_made_good(
    trails: Trails, service_dsn: str, owner_dsn: str, organization: str
) -> None:
    ran = 0

    async with DatabaseRelay(service_dsn) as relay:

        async def change(connection: AsyncConnection[Any]) -> int:
            nonlocal ran
            ran += 1
            if ran == 1:
                await relay.drop()
            await connection.execute("SELECT 1")
            return ran

        async with trails(dsn=relay.dsn) as trail:
            results = await asyncio.gather(trail.commit(entry(organization)), trail.commit(entry(organization), change))
    assert list(results) == [None, 2]
    records = chain(owner_dsn, organization)
    assert len(records) == 2
    holds(records)


async def test_a_process_that_stands_still_in_a_transaction_does_not_hold_up_the_others(
    trails: Trails, service_dsn: str, owner_dsn: str, organization: str
) -> None:
    async with DatabaseRelay(service_dsn) as relay:

        async def stands_still(connection: AsyncConnection[Any]) -> None:
            relay.hang()
            await connection.execute("SELECT 1")

        async with trails(dsn=relay.dsn, within_seconds=0.4) as one, trails(within_seconds=3.0) as two:
            await asyncio.gather(one.commit(entry(organization)), two.commit(entry(organization)))
            stopped = asyncio.create_task(one.commit(entry(organization), stands_still))
            await eventually(lambda: not relay.flowing)
            await two.commit(entry(organization))
            with pytest.raises(MeshError):
                await stopped
            await relay.drop()
    records = chain(owner_dsn, organization)
    assert len(records) == 3
    holds(records)


async def test_what_waits_is_bounded(trails: Trails, service_dsn: str, organization: str) -> None:
    async with (
        DatabaseRelay(service_dsn) as relay,
        trails(dsn=relay.dsn, within_seconds=1.0, queue=8, batch=4) as trail,
    ):
        await trail.commit(entry(organization))
        await relay.cut()
        waiting = [asyncio.create_task(refusal(trail, organization)) for _ in range(40)]
        done, _ = await asyncio.wait(waiting, timeout=0.5)
        assert len(done) >= 40 - 8 - 4
        for task in done:
            error, seconds = task.result()
            assert "too many" in error.message
            assert seconds < 0.2
        assert trail.waiting <= 8
        await asyncio.gather(*waiting)


async def test_what_need_not_be_waited_for_is_written_later(
    trails: Trails, service_dsn: str, owner_dsn: str, organization: str
) -> None:
    async with DatabaseRelay(service_dsn) as relay, trails(dsn=relay.dsn, within_seconds=0.3) as trail:
        await trail.commit(entry(organization))
        await relay.cut()
        trail.write_later(entry(organization, result="failure", reason="ERROR_REASON_AUDIT_UNAVAILABLE"))
        await refusal(trail, organization)
        await relay.mend()
        await eventually(lambda: len(chain(owner_dsn, organization)) == 2)
    assert chain(owner_dsn, organization)[1].error_details == "ERROR_REASON_AUDIT_UNAVAILABLE"


async def test_a_call_whose_record_cannot_be_written_fails_and_changes_nothing(
    stores: QuantumStores, hsm: StandInHsm, organization: str
) -> None:
    async with (
        DatabaseRelay(stores.dsn) as relay,
        running_quantum(stores, hsm, postgres_dsn=relay.dsn, audit_seconds=0.5) as running,
    ):
        keys, who = running.keys("gateway"), person(organization)
        made = await keys.GenerateKey(master_key(organization), timeout=5, metadata=who)
        await relay.cut()
        async with refused(grpc.StatusCode.UNAVAILABLE) as caught:
            await keys.GenerateKey(master_key(organization), timeout=20, metadata=who)
        assert reason_of(caught[0]) in ("ERROR_REASON_AUDIT_UNAVAILABLE", "ERROR_REASON_DEPENDENCY_UNAVAILABLE")
        await relay.mend()
        async with asyncio.timeout(20):
            while True:
                try:
                    await keys.GetKey(key_service_pb2.GetKeyRequest(key_id=made.key_id), timeout=10, metadata=who)
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 -- until the pool has found back
    holds(chain(stores.owner_dsn, organization))
