"""Killed at any moment, the HSM loses no key that it acknowledged."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from infra.stack.ports import free_port
from servers.crypto.algorithms import Algorithm, Kind
from servers.crypto.provider import provider_named
from servers.hsm.journal import FILE, merge
from servers.mesh.errors import MeshError
from tests.support.hsm import ORGANIZATION, HsmProcess, HsmRig, new_id, sealed_for

if TYPE_CHECKING:
    from infra.hsm import HsmOperator
    from servers.quantum.hsm import HsmClient
    from servers.quantum.ports import GeneratedKey

PROVIDER = provider_named("cryptography")
WORKERS = 6


@dataclass
class Ledger:
    """What was acknowledged."""

    made: dict[str, tuple[Algorithm, GeneratedKey]] = field(default_factory=dict)
    destroyed: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)
    """Asked to be destroyed, without an answer."""

    @property
    def operations(self) -> int:
        return len(self.made) + len(self.destroyed)


async def work(client: HsmClient, ledger: Ledger, dice: random.Random) -> None:
    """Make keys, and destroy some, until the HSM is gone."""
    while True:
        key_id, algorithm = new_id(), dice.choice(list(Algorithm))
        made = await client.generate(key_id, 1, algorithm, ORGANIZATION)
        ledger.made[key_id] = algorithm, made
        if dice.random() < 0.2:
            ledger.doubtful.add(key_id)
            await client.destroy(key_id, ORGANIZATION)
            ledger.doubtful.discard(key_id)
            ledger.destroyed.add(key_id)


async def until_killed(process: HsmProcess, ledger: Ledger, dice: random.Random) -> None:
    """Run workers and kill the process somewhere in their middle."""
    process.start()
    async with process.calls() as (operator, client):
        await check(operator, client, ledger, dice)
        target = ledger.operations + dice.randrange(5, 40)
        workers = [asyncio.create_task(work(client, ledger, dice)) for _ in range(WORKERS)]
        async with asyncio.timeout(20):
            while ledger.operations < target:  # noqa: ASYNC110 -- any moment will do
                await asyncio.sleep(dice.random() * 0.003)
        await asyncio.to_thread(process.end)
        for result in await asyncio.gather(*workers, return_exceptions=True):
            assert isinstance(result, MeshError), result


async def check(operator: HsmOperator, client: HsmClient, ledger: Ledger, dice: random.Random) -> None:
    """Everything that was acknowledged is there and whole, and what was destroyed is not."""
    found = {key.key_id: key async for key in operator.keys(validate=True)}
    for key_id in ledger.made.keys() - ledger.destroyed - ledger.doubtful:
        assert found[key_id].valid, key_id
        assert found[key_id].replicas >= 2
    assert not found.keys() & ledger.destroyed
    assert all(key.valid for key in found.values())
    alive = sorted(ledger.made.keys() & found.keys())
    for key_id in dice.sample(alive, min(10, len(alive))):
        algorithm, made = ledger.made[key_id]
        if algorithm.kind is Kind.KEM:
            assert (await client.decrypt(sealed_for(made, algorithm, b"kept"))).plaintext == b"kept"
        else:
            signed = await client.sign(made.key_handle, ORGANIZATION, b"m")
            assert PROVIDER.verifying_key(algorithm, made.public_key).verify(b"m", signed.signature)


async def killed_repeatedly(rig: HsmRig, times: int, seed: int) -> Ledger:
    ledger, dice = Ledger(), random.Random(seed)  # noqa: S311 -- chooses moments, not secrets
    with HsmProcess(rig, free_port()) as process:
        for _ in range(times):
            await until_killed(process, ledger, dice)
        process.start()
        async with process.calls() as (operator, client):
            await check(operator, client, ledger, dice)
    chain = merge([(module / FILE).read_bytes() for module in rig.modules])
    assert chain[-1].sequence == len(chain)
    return ledger


async def test_no_acknowledged_key_is_lost(software_rig: HsmRig) -> None:
    ledger = await killed_repeatedly(software_rig, 2, seed=1)
    assert ledger.operations > 10


@pytest.mark.chaos
async def test_no_acknowledged_key_is_lost_in_many_kills(software_rig: HsmRig) -> None:
    await killed_repeatedly(software_rig, 40, seed=2)
