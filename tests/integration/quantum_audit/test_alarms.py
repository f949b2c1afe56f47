"""Alarms: exact at their boundary, once a window, across processes, and never in the records' way."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from servers.quantum.alarms import Alarms
from tests.support.audit import chain, entry

if TYPE_CHECKING:
    from tests.support.audit import Trails
    from tests.support.quantum import QuantumStores

BEGIN = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday
FAILED = {"operation": "keygen", "result": "failure", "reason": "ERROR_REASON_ENTROPY"}


def events(stores: QuantumStores, organization: str) -> list[tuple[Any, ...]]:
    return stores.rows(
        "SELECT event_type::text, event_timestamp, event_data, severity::text, key_id::text, correlation_id::text"
        " FROM quantum_security.security_events WHERE organization_id = %s ORDER BY position",
        organization,
    )


def kinds(stores: QuantumStores, organization: str) -> list[str]:
    return [row[0] for row in events(stores, organization)]


async def test_five_failed_key_generations_are_fine_and_the_sixth_raises(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    async with trails(in_transaction=Alarms().check) as trail:
        for number in range(5):
            await trail.commit(entry(organization, **FAILED, occurred_at=BEGIN + timedelta(seconds=number)))
        await trail.commit(entry(organization, operation="keygen", occurred_at=BEGIN))
        await trail.commit(entry(organization, operation="encrypt", result="failure", occurred_at=BEGIN))
        await trail.commit(entry(str(uuid.uuid4()), **FAILED, occurred_at=BEGIN))
        assert events(stores, organization) == []
        sixth = entry(organization, **FAILED, occurred_at=BEGIN + timedelta(seconds=59))
        await trail.commit(sixth)
        [event] = events(stores, organization)
        assert event[:1] == ("key_generation_failures",)
        assert event[2:] == (
            {"count": 6, "threshold": 5, "window_seconds": 60},
            "high",
            None,
            sixth.correlation_id,
        )
        for number in range(20):
            await trail.commit(entry(organization, **FAILED, occurred_at=BEGIN + timedelta(seconds=60 + number)))
        assert len(events(stores, organization)) == 1


async def test_the_minute_slides(stores: QuantumStores, trails: Trails, organization: str) -> None:
    async with trails(in_transaction=Alarms().check) as trail:
        for seconds in (0, 0, 0, 40, 41, 60):  # at 60 the first three are a minute old: out
            await trail.commit(entry(organization, **FAILED, occurred_at=BEGIN + timedelta(seconds=seconds)))
        assert events(stores, organization) == []
        for seconds in (70, 71, 72):
            await trail.commit(entry(organization, **FAILED, occurred_at=BEGIN + timedelta(seconds=seconds)))
        assert kinds(stores, organization) == ["key_generation_failures"]
        # A minute after the alarm it may sound again.
        for seconds in (133, 134, 135, 136, 137, 138):
            await trail.commit(entry(organization, **FAILED, occurred_at=BEGIN + timedelta(seconds=seconds)))
        assert kinds(stores, organization) == ["key_generation_failures"] * 2


async def test_a_batch_that_leaps_over_the_threshold_raises_once(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    async with trails(in_transaction=Alarms().check) as trail:
        await asyncio.gather(*(trail.commit(entry(organization, **FAILED)) for _ in range(40)))
    assert kinds(stores, organization) == ["key_generation_failures"]


async def test_several_processes_count_together_and_raise_once(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    async with trails(in_transaction=Alarms().check) as one, trails(in_transaction=Alarms().check) as two:
        for trail in (one, two, one, two, one):
            await trail.commit(entry(organization, **FAILED))
        assert events(stores, organization) == []
        await asyncio.gather(*(trail.commit(entry(organization, **FAILED)) for trail in (one, two) for _ in range(10)))
    assert kinds(stores, organization) == ["key_generation_failures"]


async def test_a_hundred_key_requests_are_fine_and_one_more_raises(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    operations = ("keygen", "manage", "rotate", "revoke", "rewrap")
    async with trails(in_transaction=Alarms().check) as trail:
        await asyncio.gather(
            *(
                trail.commit(
                    entry(organization, operation=operations[n % 5], occurred_at=BEGIN + timedelta(seconds=30 * n))
                )
                for n in range(100)
            )
        )
        uses = [entry(organization, operation="encrypt", occurred_at=BEGIN) for _ in range(50)]
        own = [entry(organization, operation="rotate", service_id="quantum", occurred_at=BEGIN) for _ in range(50)]
        await asyncio.gather(*map(trail.commit, (*uses, *own)))
        assert events(stores, organization) == []
        last = entry(organization, operation="manage", occurred_at=BEGIN + timedelta(minutes=59, seconds=59))
        await trail.commit(last)
        [event] = events(stores, organization)
        assert (event[0], event[2]["count"], event[2]["threshold"]) == ("excessive_key_requests", 101, 100)
        await trail.commit(entry(organization, operation="manage", occurred_at=last.occurred_at))
        assert len(events(stores, organization)) == 1


async def test_a_key_used_while_the_organization_is_closed_raises_once_for_each_key_and_closed_time(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    stores.rows(
        "INSERT INTO quantum_security.business_hours (organization_id, time_zone, hours) VALUES (%s, %s, %s)",
        organization,
        "America/New_York",
        '[{"weekday": 1, "start_minute": 540, "end_minute": 1080}]',
    )
    # 12:00 UTC is 07:00 in New York: closed. 15:00 UTC is 10:00: open.
    async with trails(in_transaction=Alarms().check) as one, trails(in_transaction=Alarms().check) as two:
        await one.commit(entry(organization, key_id=first, occurred_at=BEGIN + timedelta(hours=3)))
        await one.commit(entry(organization, occurred_at=BEGIN))
        await one.commit(
            entry(organization, key_id=first, result="failure", reason="ERROR_REASON_X", occurred_at=BEGIN)
        )
        assert events(stores, organization) == []
        for trail in (one, two):
            for key in (first, second):
                await asyncio.gather(
                    *(trail.commit(entry(organization, key_id=key, occurred_at=BEGIN)) for _ in range(3))
                )
        found = events(stores, organization)
        assert [(row[0], row[4]) for row in found] == [("unusual_key_access", first), ("unusual_key_access", second)]
        assert found[0][2]["time_zone"] == "America/New_York"
        await two.commit(entry(organization, key_id=first, occurred_at=BEGIN + timedelta(hours=12)))
        assert len(events(stores, organization)) == 3


async def test_an_organization_without_hours_has_no_unusual_hours(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    async with trails(in_transaction=Alarms().check) as trail:
        await trail.commit(entry(organization, key_id=str(uuid.uuid4()), occurred_at=BEGIN))
        assert events(stores, organization) == []


async def test_hours_that_cannot_be_read_cost_the_alarm_and_nothing_else(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    stores.rows(
        "INSERT INTO quantum_security.business_hours (organization_id, time_zone) VALUES (%s, 'Mars/Olympus')",
        organization,
    )
    async with trails(in_transaction=Alarms().check) as trail:
        await trail.commit(entry(organization, key_id=str(uuid.uuid4()), occurred_at=BEGIN))
    assert len(chain(stores.owner_dsn, organization)) == 1


async def test_a_fault_of_an_alarm_costs_no_record(stores: QuantumStores, trails: Trails, organization: str) -> None:
    with psycopg.connect(stores.owner_dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE quantum_security.security_events RENAME TO security_events_away")
        try:
            async with trails(in_transaction=Alarms().check) as trail:
                for _ in range(7):
                    await trail.commit(entry(organization, **FAILED))
        finally:
            connection.execute("ALTER TABLE quantum_security.security_events_away RENAME TO security_events")
    assert len(chain(stores.owner_dsn, organization)) == 7


async def test_refusals_that_speak_for_themselves_raise_once_an_hour(
    stores: QuantumStores, trails: Trails, organization: str
) -> None:
    user = str(uuid.uuid4())
    crossing = {
        "result": "failure",
        "reason": "ERROR_REASON_SCOPE_NOT_ALLOWED",
        "message": "the request names another organisation",
        "user_id": user,
    }
    failing = {"operation": "keygen", "result": "failure", "reason": "ERROR_REASON_ENTROPY_FAILED", "message": "sick"}
    repaired = {"operation": "call", "result": "failure", "reason": "REPLICA_REPAIRED", "service_id": "hsm"}
    replayed = repaired | {"reason": "HSM_TOKEN_REPLAY"}
    async with trails(in_transaction=Alarms().check) as trail:
        for hours in (0, 0, 1):
            at = BEGIN + timedelta(hours=hours)
            for said in (crossing, failing, repaired, replayed, replayed | {"service_id": "threat"}):
                await trail.commit(entry(organization, **said, occurred_at=at))
    assert sorted(kinds(stores, organization)) == sorted(
        ["entropy_failure", "organization_violation", "replica_repaired", "hsm_token_replay"] * 2
    )
