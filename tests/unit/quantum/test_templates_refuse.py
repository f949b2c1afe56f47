"""Templates over a stand-in for the HSM: every single bit of an envelope, every length, every owner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.key_cache import KeyCache
from servers.quantum.key_ring import HeldKey
from servers.quantum.keys import Key, KeyVersion
from servers.quantum.templates import Clear, Request, Templates
from servers.quantum.use_limits import UseLimits
from tests.support.quantum import StandInHsm
from tests.unit.quantum.test_keys_rules import NOW, key

USER = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a42"
ORGANIZATION = key().organization_id
LONG = NOW.replace(year=2090)


class OneKey:
    """A ring with one key."""

    def __init__(self, held: HeldKey) -> None:
        self.held = held

    async def find(self, organization_id: str, key_id: str) -> HeldKey | None:
        mine = (organization_id, key_id) == (self.held.key.organization_id, self.held.key.key_id)
        return self.held if mine else None

    async def newest_service_key(self, organization_id: str, algorithm: Algorithm) -> HeldKey:
        assert (organization_id, algorithm) == (ORGANIZATION, self.held.key.algorithm)
        return self.held


async def stage(algorithm: Algorithm = Algorithm.ML_KEM_768, versions: int = 1, **changes: Any) -> Templates:
    """Templates under one key with so many versions."""
    hsm = StandInHsm()
    made: list[KeyVersion] = []
    for number in range(1, versions + 1):
        each = await hsm.generate(key().key_id, number, algorithm, ORGANIZATION)
        made.insert(0, KeyVersion(number, each.public_key, each.key_handle, NOW))
    whole: Key = replace(key(), algorithm=algorithm, versions=tuple(made), expires_at=LONG, **changes)
    ring: Any = OneKey(HeldKey(whole, provider_named("cryptography")))
    return Templates(ring, hsm, UseLimits(None), KeyCache("redis://127.0.0.1:1"))  # type: ignore[arg-type]  # no limit


async def refusal(templates: Templates, request: Request, organization: str = ORGANIZATION) -> tuple[Any, str] | None:
    try:
        await templates.decrypt(organization, request)
    except MeshError as error:
        return error.reason, error.message
    return None


@pytest.mark.parametrize("algorithm", [Algorithm.ML_KEM_768, Algorithm.ML_KEM_1024, Algorithm.X_WING])
async def test_no_envelope_opens_with_any_bit_changed(algorithm: Algorithm) -> None:
    templates = await stage(algorithm, versions=2)
    closed = await templates.encrypt(ORGANIZATION, Clear(USER, b"face", "phone", algorithm))
    assert (await templates.decrypt(ORGANIZATION, Request(USER, closed.envelope, "phone"))).template == b"face"
    said = set()
    begin = closed.envelope.index(closed.kem_ciphertext)
    end = begin + len(closed.kem_ciphertext)
    for bit in range(8 * len(closed.envelope)):
        if begin <= bit // 8 < end and bit % 8 != bit // 8 % 8:
            continue  # of the KEM ciphertext one bit in each byte: a thousand are enough
        said.add(await refusal(templates, Request(USER, flipped(closed.envelope, bit), "phone")))
    assert len(said) == 1
    (only,) = said
    assert only is not None
    assert only[0] == ErrorReason.ERROR_REASON_ENVELOPE_INVALID


def flipped(envelope: bytes, bit: int) -> bytes:
    changed = bytearray(envelope)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(cut=st.integers(1, 1300), more=st.binary(min_size=1, max_size=40))
async def test_no_envelope_opens_shorter_or_longer(cut: int, more: bytes) -> None:
    templates = await stage()
    closed = await templates.encrypt(ORGANIZATION, Clear(USER, b"a template of some length" * 10))
    for data in (closed.envelope[:-cut], closed.envelope[cut:], closed.envelope + more, more + closed.envelope):
        found = await refusal(templates, Request(USER, data))
        assert found is not None
        assert found[0] == ErrorReason.ERROR_REASON_ENVELOPE_INVALID


@given(st.uuids(), st.uuids(), st.text("abcXYZ019._:-", max_size=20))
async def test_an_envelope_opens_for_its_owner_alone(user: Any, organization: Any, device: str) -> None:
    templates = await stage()
    envelope = (await templates.encrypt(ORGANIZATION, Clear(USER, b"face", "my-phone"))).envelope
    for request, where in (
        (Request(str(user), envelope, "my-phone"), ORGANIZATION),
        (Request(USER, envelope, device), ORGANIZATION),
        (Request(USER, envelope, "my-phone"), str(organization)),
    ):
        found = await refusal(templates, request, where)
        assert found is not None
        assert found[0] == ErrorReason.ERROR_REASON_ENVELOPE_INVALID


async def test_ids_are_compared_as_ids() -> None:
    """A UUID in capitals is the same person."""
    templates = await stage()
    envelope = (await templates.encrypt(ORGANIZATION, Clear(USER.upper(), b"face"))).envelope
    assert await refusal(templates, Request(USER, envelope)) is None


async def test_whom_it_was_for_is_compared_after_it_was_opened() -> None:
    """Both kinds of refusal ask the HSM, so that neither is quicker."""
    templates = await stage()
    envelope = (await templates.encrypt(ORGANIZATION, Clear(USER, b"face"))).envelope
    hsm: Any = templates._hsm
    changed = flipped(envelope, 8 * len(envelope) - 1)
    for request in (Request(USER, changed), Request(ORGANIZATION, envelope), Request(USER, envelope, "x")):
        hsm.calls.clear()
        assert await refusal(templates, request) is not None
        assert hsm.calls == ["decrypt"]


async def test_a_key_version_that_the_hsm_lost_is_refused_like_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    templates = await stage()
    envelope = (await templates.encrypt(ORGANIZATION, Clear(USER, b"face"))).envelope
    hsm: Any = templates._hsm
    hsm.keys.clear()
    found = await refusal(templates, Request(USER, envelope))
    assert found is not None
    assert found[0] == ErrorReason.ERROR_REASON_ENVELOPE_INVALID
    assert "the HSM lacks a key version" in caplog.text
