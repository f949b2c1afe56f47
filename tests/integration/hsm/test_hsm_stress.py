"""Many callers of one client while the HSM is sealed, killed and started again, and its channels end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from infra.stack.ports import free_port
from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.mesh.errors import ErrorReason, MeshError
from tests.support.hsm import ORGANIZATION, HsmProcess, HsmRig, new_id, sealed_for

if TYPE_CHECKING:
    from servers.quantum.hsm import HsmClient
    from servers.quantum.ports import GeneratedKey

VERIFIER = provider_named("cryptography")
EXPECTED = frozenset(
    {
        ErrorReason.ERROR_REASON_HSM_SEALED,
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        ErrorReason.ERROR_REASON_CIRCUIT_OPEN,
        ErrorReason.ERROR_REASON_DEADLINE,
        ErrorReason.ERROR_REASON_AUDIT_UNAVAILABLE,
    }
)


@dataclass
class Crowd:
    """Callers, and what they got."""

    client: HsmClient
    kem: GeneratedKey
    signer: GeneratedKey
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    made: list[GeneratedKey] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def caller(self, dice: random.Random) -> None:
        while not self.over.is_set():
            try:
                await self.one(dice)
            except MeshError as error:
                if error.reason not in EXPECTED:
                    raise
                self.refused[error.reason] += 1
                await asyncio.sleep(0.01)

    async def one(self, dice: random.Random) -> None:
        text = dice.randbytes(20)
        choice = dice.random()
        if choice < 0.6:
            opened = await self.client.decrypt(sealed_for(self.kem, Algorithm.ML_KEM_768, text))
            assert opened.plaintext == text
            self.done["decrypt"] += 1
        elif choice < 0.95:
            signed = await self.client.sign(self.signer.key_handle, ORGANIZATION, text)
            verifier = VERIFIER.verifying_key(Algorithm.ED25519, self.signer.public_key)
            assert verifier.verify(text, signed.signature)
            self.done["sign"] += 1
        else:
            self.made.append(await self.client.generate(new_id(), 1, Algorithm.ED25519, ORGANIZATION))
            self.done["generate"] += 1

    async def works(self) -> None:
        """Wait until more has been done: whatever was wrong is over."""
        before = self.done.total()
        async with asyncio.timeout(20):
            while self.done.total() < before + 50:  # noqa: ASYNC110 -- counts, not an event
                await asyncio.sleep(0.01)


async def stressed(rig: HsmRig, rounds: int, callers: int) -> Crowd:
    environment = {"BEHAVIORGUARD_CHANNEL_SECONDS": "1"}
    with HsmProcess(rig, free_port(), **environment) as process:
        process.start()
        async with process.calls() as (_, client):
            kem = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
            signer = await client.generate(new_id(), 1, Algorithm.ED25519, ORGANIZATION)
            crowd = Crowd(client, kem, signer)
            seeds = [random.Random(number) for number in range(callers)]  # noqa: S311 -- chooses work, not secrets
            tasks = [asyncio.create_task(crowd.caller(seed)) for seed in seeds]
            for _ in range(rounds):
                async with process.calls() as (operator, _):
                    await crowd.works()
                    await operator.seal()
                async with process.calls():  # unseals
                    await crowd.works()
                await asyncio.to_thread(process.end)
                process.start()
                async with process.calls():
                    await crowd.works()
            crowd.over.set()
            await asyncio.gather(*tasks)
        async with process.calls() as (operator, _):
            inside = {key.key_handle async for key in operator.keys(validate=True) if key.valid}
        assert inside >= {made.key_handle for made in crowd.made}
    return crowd


async def test_callers_get_right_answers_or_reasons(software_rig: HsmRig) -> None:
    crowd = await stressed(software_rig, rounds=1, callers=40)
    assert set(crowd.done) == {"decrypt", "sign", "generate"}
    assert crowd.refused


@pytest.mark.chaos
async def test_callers_get_right_answers_or_reasons_for_long(software_rig: HsmRig) -> None:
    crowd = await stressed(software_rig, rounds=15, callers=100)
    assert ErrorReason.ERROR_REASON_HSM_SEALED in crowd.refused
