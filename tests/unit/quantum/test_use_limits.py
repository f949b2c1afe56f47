"""Use limits: blocks from a store, never more than there are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.keys import KeyVersion
from servers.quantum.use_limits import UseLimits
from tests.unit.quantum.test_keys_rules import NOW, key

if TYPE_CHECKING:
    from servers.quantum.key_rows import OwnedKey


class Counter:
    """The database's count."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.claims = 0

    async def claim_uses(self, key: OwnedKey, version: int, need: int, want: int) -> int:
        assert 1 <= need <= want
        await asyncio.sleep(0)
        if self.left < need:
            return 0
        taken = min(want, self.left)
        self.left -= taken
        self.claims += 1
        return taken


async def used_up(limits: UseLimits, limit: int, count: int = 1) -> int:
    done = 0
    while (refusal := await refusal_of(limits, limit, count)) is None:
        done += count
    assert refusal.reason == ErrorReason.ERROR_REASON_KEY_USES_EXHAUSTED
    return done


async def refusal_of(limits: UseLimits, limit: int, count: int) -> MeshError | None:
    try:
        await limits.take(key(use_limit=limit), count)
    except MeshError as error:
        return error
    return None


@pytest.mark.parametrize("limit", [1, 2, 199, 200, 5000])
async def test_one_process_uses_exactly_the_limit(limit: int) -> None:
    counter = Counter(limit)
    assert await used_up(UseLimits(counter), limit) == limit
    assert counter.left == 0


async def test_most_uses_cost_no_query() -> None:
    counter = Counter(100_000)
    limits = UseLimits(counter)
    await asyncio.gather(*(limits.take(key(use_limit=100_000)) for _ in range(6400)))
    assert counter.claims == 100


@given(st.integers(1, 3000), st.lists(st.integers(1, 64), max_size=60))
def test_the_limit_is_never_passed(limit: int, counts: list[int]) -> None:
    async def run() -> None:
        counter = Counter(limit)
        processes = [UseLimits(counter) for _ in range(3)]

        async def take(place: int, count: int) -> int:
            try:
                await processes[place % 3].take(key(use_limit=limit), count)
            except MeshError:
                return 0
            return count

        used = sum(await asyncio.gather(*(take(place, count) for place, count in enumerate(counts))))
        assert used <= limit

    asyncio.run(run())


async def test_without_a_limit_nothing_is_counted() -> None:
    await UseLimits(Counter(0)).take(key())


async def test_a_new_version_counts_anew() -> None:
    limits = UseLimits(Counter(1))
    first = key(use_limit=1)
    await limits.take(first)
    second = replace(first, versions=(KeyVersion(3, b"newer", "c", NOW), *first.versions))
    limits._source = Counter(1)
    await limits.take(second)
