"""Following a stream: nothing is missed, nothing comes twice, and nobody is waited for."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.audit_watch import Streams
from tests.support.loop import settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

A, B = "organization a", "organization b"


class Source:
    """Streams of numbers."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.failure: Exception | None = None
        self.asked: list[tuple[str, ...]] = []

    async def heads(self, organizations: Sequence[str]) -> Mapping[str, int]:
        self.asked.append(tuple(organizations))
        if self.failure is not None:
            raise self.failure
        return {each: self.ends[each] for each in organizations if each in self.ends}

    async def read(self, organization_id: str, after: int, upto: int, limit: int) -> Sequence[int]:
        if self.failure is not None:
            raise self.failure
        end = min(upto, self.ends.get(organization_id, 0))
        return list(range(after + 1, end + 1))[:limit]


@asynccontextmanager
async def running(streams: Streams) -> AsyncIterator[None]:
    task = asyncio.create_task(streams.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def drain(following: AsyncIterator[int]) -> None:
    async for _ in following:
        pass


def itself(place: int) -> int:
    return place


async def test_what_was_missed_comes_first_then_what_is_new() -> None:
    source = Source()
    source.ends[A] = 250
    streams = Streams(source.heads, page=100)
    async with running(streams), aclosing(streams.follow(A, 20, source.read, itself)) as following:
        async with asyncio.timeout(5):
            first = [await anext(following) for _ in range(230)]
            source.ends[A] = 252
            streams.poke({A: 252})
            first += [await anext(following) for _ in range(2)]
    assert first == list(range(21, 253))
    assert streams.readers == 0


async def test_streams_do_not_mix_and_only_followed_ones_are_asked_for() -> None:
    source = Source()
    source.ends |= {A: 1, B: 2}
    streams = Streams(source.heads)
    async with running(streams), aclosing(streams.follow(B, 0, source.read, itself)) as following:
        async with asyncio.timeout(5):
            assert [await anext(following), await anext(following)] == [1, 2]
    assert set(source.asked) == {(B,)}


async def test_a_reader_that_falls_behind_after_it_had_caught_up_is_let_go() -> None:
    source = Source()
    source.ends[A] = 500
    streams = Streams(source.heads, lag=50, page=10)
    async with running(streams), aclosing(streams.follow(A, 0, source.read, itself)) as following:
        async with asyncio.timeout(5):
            # Catching up may take as long as it takes.
            assert [await anext(following) for _ in range(500)][-1] == 500
            source.ends[A] = 550
            assert await anext(following) == 501
            source.ends[A] = 650
            streams.poke()
            await settle(20)
            with pytest.raises(MeshError) as error:
                await drain(following)
    assert error.value.reason == ErrorReason.ERROR_REASON_OVERLOADED


async def test_no_more_readers_than_there_is_room_for() -> None:
    source = Source()
    source.ends[A] = 1
    streams = Streams(source.heads, readers=1)
    async with running(streams), aclosing(streams.follow(A, 0, source.read, itself)) as first:
        await anext(first)
        with pytest.raises(MeshError) as error:
            await anext(streams.follow(A, 0, source.read, itself))
        assert error.value.reason == ErrorReason.ERROR_REASON_OVERLOADED
    async with running(streams), aclosing(streams.follow(A, 0, source.read, itself)) as second:
        assert await anext(second) == 1


async def test_readers_are_told_when_the_database_is_away() -> None:
    source = Source()
    source.failure = psycopg.OperationalError("away")
    streams = Streams(source.heads)
    async with running(streams), aclosing(streams.follow(A, 0, source.read, itself)) as following:
        with pytest.raises(MeshError) as error:
            async with asyncio.timeout(5):
                await anext(following)
        assert error.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        with pytest.raises(MeshError):
            await streams.head(A)
        source.failure = None
        source.ends[A] = 1
        async with aclosing(streams.follow(A, 0, source.read, itself)) as again, asyncio.timeout(5):
            assert await anext(again) == 1
