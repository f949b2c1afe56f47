"""The ring of keys at hand: bounded, never stale after a change, one query for many at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.key_ring import KeyRing
from servers.quantum.keys import Key, KeyStatus, KeyType
from tests.unit.quantum.test_keys_rules import NOW, key

if TYPE_CHECKING:
    from collections.abc import Callable


class Source:
    """The database."""

    def __init__(self, *keys: Key) -> None:
        self.keys = {each.key_id: each for each in keys}
        self.asked = 0
        self.during: Callable[[], None] = lambda: None
        self.failure: Exception | None = None

    async def get(self, organization_id: str, key_id: str) -> Key | None:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        found = self.keys.get(key_id)
        await asyncio.sleep(0)
        self.during()
        return found if found is not None and found.organization_id == organization_id else None

    async def newest(self, organization_id: str, key_type: KeyType, algorithm: Algorithm | None) -> Key | None:
        return await self.get(organization_id, next(iter(self.keys), ""))


def ring_of(source: Source, *, listening: bool = True, **settings: float) -> KeyRing:
    ring = KeyRing(source, provider_named("cryptography"), "", **settings)  # type: ignore[arg-type]  # numbers alone
    ring._listening = listening
    return ring


ORGANIZATION, KEY_ID = key().organization_id, key().key_id


async def test_a_key_is_read_once_however_many_ask() -> None:
    source = Source(key())
    ring = ring_of(source)
    found = await asyncio.gather(*(ring.get(ORGANIZATION, KEY_ID) for _ in range(50)))
    assert source.asked == 1
    assert len({id(held) for held in found}) == 1


async def test_while_nothing_is_heard_the_database_is_asked() -> None:
    source = Source(key())
    ring = ring_of(source, listening=False)
    for _ in range(3):
        await ring.get(ORGANIZATION, KEY_ID)
    assert source.asked == 3


async def test_an_entry_is_believed_for_its_time_alone() -> None:
    source = Source(key())
    ring = ring_of(source, believed_s=0.0)
    for _ in range(3):
        await ring.get(ORGANIZATION, KEY_ID)
    assert source.asked == 3


async def test_a_change_during_the_look_up_is_not_forgotten() -> None:
    source = Source(key())
    ring = ring_of(source)
    source.during = lambda: ring.drop(ORGANIZATION, KEY_ID)
    await ring.get(ORGANIZATION, KEY_ID)
    source.during, source.keys[KEY_ID] = lambda: None, replace(key(), status=KeyStatus.REVOKED)
    assert (await ring.get(ORGANIZATION, KEY_ID)).key.status is KeyStatus.REVOKED


async def test_a_change_of_any_key_drops_the_newest_of_its_organisation() -> None:
    source = Source(key())
    ring = ring_of(source)
    await ring.newest_service_key(ORGANIZATION, Algorithm.ML_KEM_768)
    ring.drop(ORGANIZATION, "another key")
    source.keys.clear()
    with pytest.raises(MeshError) as error:
        await ring.newest_service_key(ORGANIZATION, Algorithm.ML_KEM_768)
    assert error.value.reason == ErrorReason.ERROR_REASON_NOT_FOUND


async def test_it_holds_so_many_keys_and_no_more() -> None:
    keys = [replace(key(), key_id=f"{number:08x}-0000-4000-8000-000000000000") for number in range(20)]
    ring = ring_of(Source(*keys), capacity=8)
    for each in keys:
        await ring.get(ORGANIZATION, each.key_id)
    assert len(ring._entries) == 8


async def test_what_is_not_there_is_asked_for_again_and_told() -> None:
    missed: list[tuple[str, str]] = []
    source = Source(key())
    ring = KeyRing(
        source,
        provider_named("cryptography"),
        "",
        on_missing=lambda organization, key_id: missed.append((organization, key_id)),
    )
    for organization, key_id in ((ORGANIZATION, "x"), ("another", KEY_ID), ("another", KEY_ID)):
        with pytest.raises(MeshError) as error:
            await ring.get(organization, key_id)
        assert error.value.message == "the organisation has no such key"
    assert missed == [(ORGANIZATION, "x"), ("another", KEY_ID), ("another", KEY_ID)]
    assert source.asked == 3


async def test_a_database_that_is_away_is_said() -> None:
    source = Source(key())
    source.failure = psycopg.OperationalError("secret address")
    with pytest.raises(MeshError) as error:
        await ring_of(source).get(ORGANIZATION, KEY_ID)
    assert error.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert "secret" not in error.value.message


async def test_a_signing_key_signs_and_is_not_the_platforms() -> None:
    signing = replace(key(), algorithm=Algorithm.ML_DSA_65)
    for held, reason in (
        (key(), ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM),
        (replace(signing, platform=True), ErrorReason.ERROR_REASON_NOT_FOUND),
        (replace(signing, status=KeyStatus.REVOKED), ErrorReason.ERROR_REASON_KEY_REVOKED),
        (replace(signing, expires_at=NOW), ErrorReason.ERROR_REASON_KEY_EXPIRED),
    ):
        with pytest.raises(MeshError) as error:
            await ring_of(Source(held)).signing_key(ORGANIZATION, KEY_ID, NOW)
        assert error.value.reason == reason
    assert (await ring_of(Source(signing)).signing_key(ORGANIZATION, KEY_ID, NOW)).key == signing
