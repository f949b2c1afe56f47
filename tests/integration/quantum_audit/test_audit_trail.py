"""The audit trail over a real PostgreSQL: one chain for each organisation, atomic with the change, shared commits."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from servers.mesh.context import AuditNotes
from servers.quantum.audit_chain import timestamp_text
from tests.support.audit import chain, entry, holds
from tests.support.loop import loop_never_blocked

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from tests.support.audit import Trails


async def test_a_record_comes_back_as_it_was_hashed(trails: Trails, owner_dsn: str, organization: str) -> None:
    at = datetime(2026, 11, 23, 2, 26, 7, 123456, tzinfo=UTC)
    written = entry(
        organization,
        operation="keygen",
        result="failure",
        key_id="A0000000-0000-4000-8000-00000000000A",
        user_id=str(uuid.uuid4()),
        source_ip="::ffff:192.0.2.7",
        user_agent="Tab\there \\ and\nthere \u2603 \U0001f512 \0",
        data={"algorithm": "ML-KEM-768", "sizes": [1184, -1, 2**53 - 1], "deep": {"b": None, "a": True}, "t": "\x07\t"},
        processing_time_ms=12,
        reason="ERROR_REASON_NOT_FOUND",
        message="no such key: here",
        hsm_operation_id="op\\1",
        occurred_at=at,
    )
    async with trails() as trail:
        await trail.commit(written)
        await trail.commit(entry(organization, source_ip="fe80::1%eth0"))
    records = chain(owner_dsn, organization)
    holds(records)
    first = records[0]
    assert first.audit_id == written.audit_id
    assert first.key_id == "a0000000-0000-4000-8000-00000000000a"
    assert (first.source_ip, records[1].source_ip) == ("192.0.2.7", "fe80::1")
    assert first.user_agent == "Tab\there \\ and\nthere \u2603 \U0001f512 \ufffd"
    assert first.operation_timestamp == at
    assert first.error_details == "ERROR_REASON_NOT_FOUND: no such key: here"
    assert first.operation_data == written.data
    with psycopg.connect(owner_dsn) as connection:
        reasons = connection.execute(
            "SELECT reason FROM quantum_audit.quantum_operations_log WHERE organization_id = %s ORDER BY sequence",
            (organization,),
        ).fetchall()
    assert reasons == [("ERROR_REASON_NOT_FOUND",), (None,)]


async def test_callers_at_once_share_transactions(trails: Trails, owner_dsn: str, organization: str) -> None:
    other = str(uuid.uuid4())
    async with trails() as trail:
        await asyncio.gather(*(trail.commit(entry((organization, other)[n % 2])) for n in range(200)))
        assert trail.written == 200
        assert trail.transactions < 10
    for each in (organization, other):
        records = chain(owner_dsn, each)
        assert len(records) == 100
        holds(records)


async def test_callers_that_come_and_go_are_waited_for_and_a_caller_alone_is_not(
    trails: Trails, owner_dsn: str, organization: str
) -> None:
    async with trails(batch=64, gather_seconds=30.0) as trail:

        async def caller(number: int) -> None:
            for _ in range(10):
                await trail.commit(entry(organization))
                for _ in range(number):  # each comes back at another moment
                    await asyncio.sleep(0)

        await asyncio.gather(*(caller(number) for number in range(16)))
        assert trail.written == 160
        assert trail.transactions < 80
        before = trail.transactions
        for _ in range(5):
            await trail.commit(entry(organization))
        assert trail.transactions == before + 5
    holds(chain(owner_dsn, organization))


async def test_two_trails_at_once_neither_fork_nor_leave_a_gap(
    trails: Trails, owner_dsn: str, organization: str
) -> None:
    others = [str(uuid.uuid4()) for _ in range(3)]
    async with trails(batch=8) as one, trails(batch=8) as two:
        both = [
            trail.commit(entry(each)) for _ in range(40) for trail in (one, two) for each in (organization, *others)
        ]
        await asyncio.gather(*both)
    for each in (organization, *others):
        records = chain(owner_dsn, each)
        assert len(records) == 80
        holds(records)


async def test_record_and_change_are_one(trails: Trails, owner_dsn: str, organization: str) -> None:
    async def works(connection: AsyncConnection[Any]) -> str:
        await connection.execute(
            "INSERT INTO quantum_security.business_hours (organization_id) VALUES (%s)", (organization,)
        )
        return "done"

    async def fails(connection: AsyncConnection[Any]) -> None:
        await connection.execute("DELETE FROM quantum_security.business_hours")
        raise LookupError("no such key")

    async def breaks(connection: AsyncConnection[Any]) -> None:
        await connection.execute("SELECT 1 / 0")

    async with trails() as trail:
        results = await asyncio.gather(
            trail.commit(entry(organization), works),
            trail.commit(entry(organization), fails),
            trail.commit(entry(organization), breaks),
            trail.commit(entry(organization)),
            return_exceptions=True,
        )
    assert results[0] == "done"
    assert isinstance(results[1], LookupError)
    assert isinstance(results[2], psycopg.errors.DivisionByZero)
    assert results[3] is None
    records = chain(owner_dsn, organization)
    assert len(records) == 2
    holds(records)
    with psycopg.connect(owner_dsn) as connection:
        assert connection.execute(
            "SELECT count(*) FROM quantum_security.business_hours WHERE organization_id = %s", (organization,)
        ).fetchone() == (1,)


async def test_a_call_is_recorded_once(trails: Trails, owner_dsn: str, organization: str) -> None:
    notes = AuditNotes()
    async with trails() as trail:
        await trail.commit(entry(organization, notes=notes))
        assert notes.recorded
        await trail.commit(entry(organization, notes=notes), unless_recorded=True)
    assert len(chain(owner_dsn, organization)) == 1


async def test_a_caller_that_gave_up_before_its_turn_changes_nothing(
    trails: Trails, owner_dsn: str, organization: str
) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def holds_everybody(_connection: AsyncConnection[Any]) -> None:
        entered.set()
        await release.wait()

    async def never(_connection: AsyncConnection[Any]) -> None:
        raise AssertionError("its caller has gone")

    async with trails() as trail:
        first = asyncio.create_task(trail.commit(entry(organization), holds_everybody))
        await entered.wait()
        second = asyncio.create_task(trail.commit(entry(organization), never))
        await asyncio.sleep(0)
        second.cancel()
        release.set()
        await first
        with pytest.raises(asyncio.CancelledError):
            await second
        await trail.commit(entry(organization))
    assert len(chain(owner_dsn, organization)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"organization_id": "nobody"},
        {"key_id": "'; DROP TABLE"},
        {"correlation_id": ""},
        {"result": "done"},
        {"source_ip": "somewhere"},
        {"data": {"secret": b"bytes"}},
        {"data": {"fraction": 0.5}},
        {"data": {"\u2603": 1}},
        {"data": {"big": 2**53}},
        {"occurred_at": datetime(2026, 1, 1)},  # noqa: DTZ001 -- a moment without a zone is what is refused
    ],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_a_malformed_entry_is_refused_alone(trails: Trails, organization: str, wrong: dict[str, Any]) -> None:
    async with trails() as trail:
        with pytest.raises((ValueError, TypeError)):
            await trail.commit(entry(**({"organization_id": organization} | wrong)))
        assert trail.waiting == 0


async def test_what_the_database_cannot_store_fails_alone(trails: Trails, owner_dsn: str, organization: str) -> None:
    async with trails() as trail:
        results = await asyncio.gather(
            *(trail.commit(entry(organization, operation=name)) for name in ("encrypt", "no such", "decrypt")),
            return_exceptions=True,
        )
    assert [type(result).__name__ for result in results] == ["NoneType", "MeshError", "NoneType"]
    records = chain(owner_dsn, organization)
    assert [record.operation for record in records] == ["encrypt", "decrypt"]
    holds(records)


async def test_the_service_can_neither_change_nor_shorten_the_trail(
    trails: Trails, service_dsn: str, owner_dsn: str, organization: str
) -> None:
    async with trails() as trail:
        await trail.commit(entry(organization))
        await trail.commit(entry(organization))
    statements = (
        "UPDATE quantum_audit.quantum_operations_log SET result = 'success'",
        "DELETE FROM quantum_audit.quantum_operations_log",
        "TRUNCATE quantum_audit.quantum_operations_log",
        "DELETE FROM quantum_audit.chain_heads",
        "UPDATE quantum_audit.chain_heads SET sequence = sequence - 1",
        "TRUNCATE quantum_audit.checkpoints",
    )
    for dsn in (service_dsn, owner_dsn):
        for statement in statements:
            with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_a_timestamp_is_in_universal_time_whatever_its_zone() -> None:
    moment = datetime(2026, 1, 1, 1, 0, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp_text(moment) == "2025-12-31T23:00:00.000001Z"


async def test_writing_never_blocks_the_loop(trails: Trails, organization: str) -> None:
    async with trails() as trail:
        await trail.commit(entry(organization))
        with loop_never_blocked():
            await asyncio.gather(*(trail.commit(entry(organization, data={"n": n})) for n in range(512)))
