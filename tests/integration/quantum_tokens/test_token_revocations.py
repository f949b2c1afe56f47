"""Ended sessions over a real PostgreSQL: durable, known to every process, never answered from an old picture."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from behaviorguard.api.v1.errors_pb2 import ErrorReason

from servers.mesh.errors import MeshError
from servers.quantum import revocation_store
from servers.quantum.database import make_pool
from servers.quantum.revocation_store import RevocationStore
from servers.quantum.revocations import HOLDS, Revocations
from tests.support.loop import loop_never_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from servers.quantum.database import Pool
    from servers.quantum.revocation_store import RevokedSession
    from tests.support.quantum import QuantumStores

ORGANIZATION = "44444444-4444-4444-8444-444444444444"
OTHER = "55555555-5555-4555-8555-555555555555"


@dataclass
class Process:
    """One process's view."""

    dsn: str
    pool: Pool
    store: RevocationStore
    view: Revocations

    async def revoke(
        self, session_id: str, organization_id: str = ORGANIZATION, holds: timedelta = HOLDS
    ) -> RevokedSession:
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            return await revocation_store.revoke(connection, organization_id, session_id, holds)


@pytest.fixture(scope="module")
def service_dsn(stores: QuantumStores) -> str:
    """The module's quantum database as the quantum service sees it."""
    return stores.dsn


@asynccontextmanager
async def process(dsn: str, *, listening: bool = True, capacity: int = 1000) -> AsyncIterator[Process]:
    pool = make_pool(dsn, connections=3)
    await pool.open()
    store = RevocationStore(pool)
    view = Revocations(store, dsn, capacity=capacity)
    task = asyncio.create_task(view.run()) if listening else None
    try:
        if listening and capacity == 1000:
            await until(lambda: view.in_memory)
        yield Process(dsn, pool, store, view)
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await pool.close()


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)


async def test_a_revocation_reaches_other_processes_in_memory(service_dsn: str) -> None:
    session = str(uuid.uuid4())
    async with process(service_dsn) as one, process(service_dsn) as two:
        assert not await two.view.ended(ORGANIZATION, session)
        before = len(two.view)
        revoked = await one.revoke(session)
        one.view.learn(revoked)
        assert await one.view.ended(ORGANIZATION, session)
        await until(lambda: len(two.view) > before)
        assert two.view.in_memory
        assert await two.view.ended(ORGANIZATION, session)
        assert not await two.view.ended(OTHER, session)


async def test_a_revocation_outlives_the_process(service_dsn: str) -> None:
    session = str(uuid.uuid4())
    async with process(service_dsn, listening=False) as one:
        await one.revoke(session)
    async with process(service_dsn) as later:
        assert later.view.in_memory
        assert await later.view.ended(ORGANIZATION, session)


async def test_a_process_that_hears_nothing_asks_the_database(service_dsn: str) -> None:
    session = str(uuid.uuid4())
    async with process(service_dsn, listening=False) as deaf, process(service_dsn, listening=False) as other:
        assert not deaf.view.in_memory
        assert not await deaf.view.ended(ORGANIZATION, session)
        await other.revoke(session)
        assert await deaf.view.ended(ORGANIZATION, session)


async def test_a_lost_connection_is_noticed_and_mended(service_dsn: str, quantum_dsn: str) -> None:
    async with process(service_dsn) as one:
        with psycopg.connect(quantum_dsn, autocommit=True) as owner:
            owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'behaviorguard-quantum-revocations'"
            )
        await until(lambda: not one.view.in_memory)
        session = str(uuid.uuid4())
        await one.revoke(session)
        assert await one.view.ended(ORGANIZATION, session)
        await until(lambda: one.view.in_memory)
        assert await one.view.ended(ORGANIZATION, session)


async def test_without_a_database_nothing_is_known(service_dsn: str) -> None:
    async with process(service_dsn, listening=False) as one:
        await one.pool.close()
        with pytest.raises(MeshError) as refusal:
            await one.view.ended(ORGANIZATION, str(uuid.uuid4()))
    assert refusal.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_more_than_memory_holds_is_still_known(service_dsn: str) -> None:
    sessions = [str(uuid.uuid4()) for _ in range(8)]
    async with process(service_dsn, capacity=4) as small:
        for session in sessions:
            await small.revoke(session)
        await until(lambda: len(small.view) == 4)
        assert not small.view.in_memory
        assert all([await small.view.ended(ORGANIZATION, session) for session in sessions])
        assert not await small.view.ended(ORGANIZATION, str(uuid.uuid4()))


async def test_ending_twice_keeps_the_first_time(service_dsn: str) -> None:
    session = str(uuid.uuid4())
    async with process(service_dsn, listening=False) as one:
        first, second = await one.revoke(session), await one.revoke(session)
        assert first == second
        assert first.expires_at - first.revoked_at == HOLDS


async def test_a_session_that_was_forgotten_can_be_ended_again(service_dsn: str) -> None:
    session = str(uuid.uuid4())
    async with process(service_dsn, listening=False) as one:
        old = await one.revoke(session, holds=timedelta(microseconds=1))
        assert not await one.view.ended(ORGANIZATION, session)
        assert await one.store.page(ORGANIZATION, old.revoked_at, None, 10) == []
        new = await one.revoke(session)
        assert new.revoked_at > old.revoked_at
        assert await one.view.ended(ORGANIZATION, session)


async def test_what_matters_no_more_is_forgotten(service_dsn: str) -> None:
    async with process(service_dsn, listening=False) as one:
        for _ in range(3):
            await one.revoke(str(uuid.uuid4()), OTHER, timedelta(microseconds=1))
        kept = await one.revoke(str(uuid.uuid4()), OTHER)
        assert await one.store.forget(2) == 2
        assert await one.store.forget(100) >= 1
        assert await one.store.forget(100) == 0
        assert [found.session_id for found in await one.store.page(OTHER, None, None, 10)] == [kept.session_id]


async def test_pages_are_newest_first_and_of_one_organisation(service_dsn: str) -> None:
    organization, other = str(uuid.uuid4()), str(uuid.uuid4())
    sessions = [str(uuid.uuid4()) for _ in range(5)]
    async with process(service_dsn, listening=False) as one:
        for session in sessions:
            await one.revoke(session, organization)
        await one.revoke(str(uuid.uuid4()), other)
        first = await one.store.page(organization, None, None, 3)
        rest = await one.store.page(organization, None, (first[-1].revoked_at, first[-1].session_id), 3)
        assert [found.session_id for found in [*first, *rest]] == sessions[::-1]
        since = await one.store.page(organization, first[1].revoked_at, None, 10)
        assert [found.session_id for found in since] == sessions[:2:-1]


async def test_an_aborted_revocation_is_told_to_nobody(service_dsn: str) -> None:
    session = str(uuid.uuid4())
    async with process(service_dsn) as one:
        with contextlib.suppress(RuntimeError):
            async with await psycopg.AsyncConnection.connect(service_dsn) as connection:
                await revocation_store.revoke(connection, ORGANIZATION, session, HOLDS)
                raise RuntimeError
        after = str(uuid.uuid4())
        before = len(one.view)
        await one.revoke(after)
        await until(lambda: len(one.view) == before + 1)
        assert not await one.view.ended(ORGANIZATION, session)


async def test_time_moves_by_the_databases_clock(service_dsn: str) -> None:
    async with process(service_dsn, listening=False) as one:
        revoked = await one.revoke(str(uuid.uuid4()))
    assert abs(revoked.revoked_at - datetime.now(UTC)) < timedelta(seconds=60)


async def test_catching_up_with_many_does_not_hold_the_loop(service_dsn: str, stores: QuantumStores) -> None:
    stores.rows(
        """
        INSERT INTO quantum_security.token_revocations (organization_id, session_id, revoked_at, expires_at)
        SELECT %s, gen_random_uuid(), now(), now() + interval '1 hour' FROM generate_series(1, 900)
        """,
        str(uuid.uuid4()),
    )
    try:
        with loop_never_blocked():
            async with process(service_dsn) as one:
                assert len(one.view) >= 900
    finally:
        stores.rows("DELETE FROM quantum_security.token_revocations WHERE expires_at <= now() + interval '2 hours'")
