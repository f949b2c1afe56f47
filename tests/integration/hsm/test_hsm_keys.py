"""Keys made, used and destroyed through the real server, over both back ends."""

from __future__ import annotations

import asyncio

import pytest

from servers.crypto.algorithms import Algorithm, Kind
from servers.crypto.provider import provider_named
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.ports import SignItem
from tests.support.hsm import ORGANIZATION, OTHER_ORGANIZATION, HsmRig, new_id, running_hsm, sealed_for

PROVIDER = provider_named("cryptography")


@pytest.mark.parametrize("algorithm", [each for each in Algorithm if each.kind is Kind.KEM])
async def test_what_is_sealed_for_a_key_opens_inside(rig: HsmRig, algorithm: Algorithm) -> None:
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, algorithm, ORGANIZATION)
        assert made.entropy == "os:healthy"
        opened = await client.decrypt(sealed_for(made, algorithm, b"template"))
        assert opened.plaintext == b"template"
        assert opened.operation_id != made.operation_id


@pytest.mark.parametrize("algorithm", [each for each in Algorithm if each.kind is Kind.SIGNATURE])
async def test_signatures_verify(rig: HsmRig, algorithm: Algorithm) -> None:
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, algorithm, ORGANIZATION)
        context = b"" if algorithm is Algorithm.ED25519 else b"ctx"
        signed = await client.sign(made.key_handle, ORGANIZATION, b"message", context)
        verifier = PROVIDER.verifying_key(algorithm, made.public_key)
        assert verifier.verify(b"message", signed.signature, context)


async def test_keys_survive_a_restart(rig: HsmRig) -> None:
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        opened = await client.decrypt(sealed_for(made, Algorithm.ML_KEM_768, b"template"))
        assert opened.plaintext == b"template"


async def test_versions_follow_each_other(rig: HsmRig) -> None:
    key_id = new_id()
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        first = await client.generate(key_id, 1, Algorithm.ML_KEM_768, ORGANIZATION)
        second = await client.generate(key_id, 2, Algorithm.ML_KEM_768, ORGANIZATION)
        assert second.public_key != first.public_key
        for version in (1, 4):
            with pytest.raises(MeshError) as refused:
                await client.generate(key_id, version, Algorithm.ML_KEM_768, ORGANIZATION)
            assert refused.value.reason == ErrorReason.ERROR_REASON_WRONG_STATE
        again = await client.generate(key_id, 2, Algorithm.ML_KEM_768, ORGANIZATION)
        assert (again.public_key, again.key_handle) == (second.public_key, second.key_handle)
        assert again.generated_at == second.generated_at


async def test_organisations_are_walled_off(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        key_id = new_id()
        kem = await client.generate(key_id, 1, Algorithm.ML_KEM_768, ORGANIZATION)
        signer = await client.generate(new_id(), 1, Algorithm.ML_DSA_65, ORGANIZATION)
        attempts = [
            client.decrypt(sealed_for(kem, Algorithm.ML_KEM_768, b"x", OTHER_ORGANIZATION)),
            client.sign(signer.key_handle, OTHER_ORGANIZATION, b"x"),
            client.generate(key_id, 2, Algorithm.ML_KEM_768, OTHER_ORGANIZATION),
            client.destroy(key_id, OTHER_ORGANIZATION),
        ]
        for result in await asyncio.gather(*attempts, return_exceptions=True):
            assert isinstance(result, MeshError)
            assert result.reason == ErrorReason.ERROR_REASON_NOT_FOUND


async def test_a_destroyed_key_is_gone_everywhere(rig: HsmRig) -> None:
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        key_id = new_id()
        made = await client.generate(key_id, 1, Algorithm.ML_KEM_768, ORGANIZATION)
        await client.generate(key_id, 2, Algorithm.ML_KEM_768, ORGANIZATION)
        assert (await client.destroy(key_id, ORGANIZATION)).versions == 2
        assert (await client.destroy(key_id, ORGANIZATION)).versions == 0
        with pytest.raises(MeshError) as refused:
            await client.decrypt(sealed_for(made, Algorithm.ML_KEM_768, b"x"))
        assert refused.value.reason == ErrorReason.ERROR_REASON_NOT_FOUND
        assert [rig.files(module) for module in range(3)] == [[], [], []]
        with pytest.raises(MeshError) as refused:
            await client.generate(key_id, 1, Algorithm.ML_KEM_768, ORGANIZATION)
        assert refused.value.reason == ErrorReason.ERROR_REASON_WRONG_STATE


async def test_a_key_of_the_other_kind_is_named(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        kem = await client.generate(new_id(), 1, Algorithm.X_WING, ORGANIZATION)
        with pytest.raises(MeshError) as refused:
            await client.sign(kem.key_handle, ORGANIZATION, b"x")
        assert refused.value.reason == ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM


async def test_one_bad_item_spoils_no_other(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        good = sealed_for(made, Algorithm.ML_KEM_768, b"good")
        bad = sealed_for(made, Algorithm.ML_KEM_768, b"bad!")
        bad = type(bad)(**{name: getattr(bad, name) for name in bad.__slots__} | {"associated_data": b"other"})
        results = await client.decrypt_many([good, bad] * 40)
        assert [isinstance(result, MeshError) for result in results] == [False, True] * 40
        assert {r.reason for r in results if isinstance(r, MeshError)} == {ErrorReason.ERROR_REASON_ENVELOPE_INVALID}


async def test_many_signatures_at_once(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, Algorithm.ED25519, ORGANIZATION)
        verifier = PROVIDER.verifying_key(Algorithm.ED25519, made.public_key)
        messages = [str(number).encode() for number in range(150)]
        signed = await client.sign_many([SignItem(made.key_handle, ORGANIZATION, message) for message in messages])
        for message, result in zip(messages, signed, strict=True):
            assert not isinstance(result, MeshError)
            assert verifier.verify(message, result.signature)
