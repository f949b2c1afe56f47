"""The HSM over real sockets: who may call, tokens, states, what the journal keeps, and what is refused how."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.hsm.v1 import hsm_service_pb2 as pb
from behaviorguard.hsm.v1.hsm_service_pb2_grpc import HsmServiceStub

from infra import pki
from infra.hsm import HsmOperator, ensure_unsealed
from servers.crypto.algorithms import Algorithm
from servers.crypto.channel import TOKEN_KEY
from servers.hsm import shares as slip39
from servers.hsm.app import hsm_app
from servers.mesh.errors import ErrorReason, MeshError, OperatorError
from servers.mesh.limits import WindowLimiter
from servers.quantum.hsm import HSM_SERVICE
from tests.support.hsm import ORGANIZATION, HsmRig, RunningHsm, new_id, running_hsm, sealed_for, until
from tests.support.loop import loop_never_blocked
from tests.support.mesh import reason_of

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

SIGN = pb.SignRequest(items=[pb.SignItem(key_handle="x", organization_id=ORGANIZATION, message=b"m")])


async def refused(work: Awaitable[Any]) -> ErrorReason.ValueType:
    with pytest.raises(MeshError) as error:
        await work
    return error.value.reason


def stub_of(hsm: RunningHsm, caller: str = "quantum") -> Any:
    files = pki.issue(hsm.rig.pki, caller)
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())
    return HsmServiceStub(grpc.aio.secure_channel(f"localhost:{hsm.port}", credentials, [("grpc.enable_retries", 0)]))


def journal(rig: HsmRig) -> list[dict[str, Any]]:
    lines = (rig.modules[0] / "journal.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


async def test_a_token_is_needed_and_good_once(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        quantum = await hsm.as_workload("quantum")
        stub = stub_of(hsm)
        body = SIGN.SerializeToString(deterministic=True)
        [(_, token)] = await quantum._token("Sign", body)
        await stub.Sign(SIGN, metadata=((TOKEN_KEY, token),))
        for metadata in (((TOKEN_KEY, token),), ((TOKEN_KEY, "rubbish"),), ((TOKEN_KEY, ""),), ()):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Sign(SIGN, metadata=metadata)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert reason_of(error.value) == "ERROR_REASON_HSM_TOKEN_INVALID"
        # Another request under a token that was made for this one.
        [(_, token)] = await quantum._token("Sign", body)
        other = pb.SignRequest(items=[pb.SignItem(key_handle="y", organization_id=ORGANIZATION, message=b"m")])
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Sign(other, metadata=((TOKEN_KEY, token),))
        kinds = [entry["kind"] for entry in journal(software_rig)]
        assert kinds.count("token-replay") == 1


async def test_only_whom_the_contract_names_may_call(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        gateway = await hsm.as_workload("gateway")
        assert await refused(gateway.status()) == ErrorReason.ERROR_REASON_CALLER_NOT_ALLOWED
        quantum = await hsm.as_workload("quantum")
        for method, request in (
            ("Seal", pb.SealRequest()),
            ("Initialize", pb.InitializeRequest(shares=1, threshold=1)),
            ("Unseal", pb.UnsealRequest(share=" ".join(["academic"] * 33))),
        ):
            assert await refused(quantum.call(method, request)) == ErrorReason.ERROR_REASON_CALLER_NOT_ALLOWED
        generate = pb.GenerateKeyRequest(
            key_id=new_id(), version=1, algorithm="ML-KEM-768", organization_id=ORGANIZATION
        )
        assert await refused(hsm.operator.call("GenerateKey", generate)) == ErrorReason.ERROR_REASON_CALLER_NOT_ALLOWED


async def test_a_sealed_hsm_does_nothing_and_says_so(rig: HsmRig) -> None:
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        item = sealed_for(made, Algorithm.ML_KEM_768, b"kept")
        await client.decrypt(item)
        await hsm.operator.seal()
        sealed = ErrorReason.ERROR_REASON_HSM_SEALED
        assert await refused(client.decrypt(item)) == sealed
        assert await refused(client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)) == sealed
        assert await refused(client.sign(made.key_handle, ORGANIZATION, b"x")) == sealed
        assert await refused(client.destroy(new_id(), ORGANIZATION)) == sealed
        assert await refused(anext(hsm.operator.backup())) == sealed
        state = await client.status()
        assert (state.state, state.key_count) == ("sealed", 1)
        await hsm.operator.unseal(rig.share)
        assert (await client.decrypt(item)).plaintext == b"kept"


async def test_wrong_shares_drop_all_that_were_given(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig, unsealed=False) as hsm:
        operator = hsm.operator
        made = await operator.initialize(3, 2)
        foreign = slip39.split(bytes(32), 3, 2)
        invalid = ErrorReason.ERROR_REASON_SHARE_INVALID
        for wrong in (foreign[0], " ".join(["academic"] * 33)):
            assert (await operator.unseal(made.shares[0])).shares_given == 1
            assert (await operator.unseal(made.shares[0])).shares_given == 1  # the same again counts once
            assert await refused(operator.unseal(wrong)) == invalid
            assert (await operator.status()).shares_given == 0
        assert await refused(operator.initialize(1, 1)) == ErrorReason.ERROR_REASON_WRONG_STATE
        await operator.unseal(made.shares[2])
        assert (await operator.unseal(made.shares[1])).state == pb.SEAL_STATE_UNSEALED
        # No word of a share is in the journal.
        text = (software_rig.modules[0] / "journal.log").read_text()
        assert not any(word in text for word in made.shares[0].split() if len(word) > 7)


async def test_shares_do_not_wait_for_ever(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig, unsealed=False, shares_seconds=0.2, upkeep_seconds=0.05) as hsm:
        made = await hsm.operator.initialize(2, 2)
        assert (await hsm.operator.unseal(made.shares[0])).shares_given == 1

        async def forgotten() -> bool:
            return (await hsm.operator.status()).shares_given == 0

        await until(forgotten)
        assert (await hsm.operator.unseal(made.shares[1])).shares_given == 1


async def test_the_journal_keeps_ceremonies_and_refusals(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        key_id = new_id()
        made = await client.generate(key_id, 1, Algorithm.ML_DSA_65, ORGANIZATION)
        await refused(client.generate(key_id, 7, Algorithm.ML_DSA_65, ORGANIZATION))
        await client.destroy(key_id, ORGANIZATION)
        await hsm.operator.seal()
    entries = journal(software_rig)
    assert [(e["kind"], e["data"].get("method"), e["data"].get("outcome")) for e in entries] == [
        ("call", "OpenChannel", "OK"),
        ("initialize", None, None),
        ("call", "Initialize", "OK"),
        ("unseal", None, None),
        ("call", "Unseal", "OK"),
        ("call", "OpenChannel", "OK"),
        ("generate", None, None),
        ("call", "GenerateKey", "FAILED_PRECONDITION"),
        ("destroy", None, None),
        ("seal", None, None),
        ("call", "Seal", "OK"),
    ]
    generated = entries[6]["data"]
    assert generated["operation_id"] == made.operation_id
    assert generated["caller"] == "quantum"
    assert {bool(entry["mac"]) for entry in entries[5:9]} == {True}


async def test_refusals_cannot_fill_the_journal(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        before = len(journal(software_rig))
        work = [client.generate(new_id(), 9, Algorithm.ED25519, ORGANIZATION) for _ in range(200)]
        results = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(result, MeshError) for result in results)
        assert 60 <= len(journal(software_rig)) - before <= 62


async def test_a_journal_that_somebody_rewrote_does_not_open(software_rig: HsmRig) -> None:
    """Who writes the disks can make a chain of hashes, but not its MACs."""
    from servers.hsm.journal import make_entry, parse_entry  # noqa: PLC0415 -- used here alone

    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, Algorithm.ED25519, ORGANIZATION)
    content = (software_rig.modules[0] / "journal.log").read_bytes()
    last = parse_entry(content.splitlines()[-1])
    key_id = made.key_handle.partition(":")[0]
    forged = make_entry(last.sequence + 1, last.hash, last.at, "destroy", {"key_id": key_id, "versions": 1}, None)
    for module in software_rig.modules:
        (module / "journal.log").write_bytes(content + forged.encode())
    with pytest.raises(MeshError) as error:
        async with running_hsm(software_rig):
            raise AssertionError
    assert error.value.reason == ErrorReason.ERROR_REASON_REPLICAS_DAMAGED


async def test_a_journal_that_is_whole_nowhere_stops_the_start(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig):
        pass
    for module in software_rig.modules:
        lines = (module / "journal.log").read_bytes().splitlines(keepends=True)
        (module / "journal.log").write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(OperatorError, match="restore from shares and backup"):
        async with hsm_app(software_rig.settings()):
            raise AssertionError


async def test_a_failing_source_stops_keys_until_it_passes_again(software_rig: HsmRig, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"\x00" * 10_000)
    async with running_hsm(software_rig, unsealed=False, entropy_qrng=device, upkeep_seconds=0.05) as hsm:
        reason = await refused(hsm.operator.initialize(1, 1))
        assert reason == ErrorReason.ERROR_REASON_ENTROPY_FAILED
        device.write_bytes(bytes(i * 167 % 251 for i in range(60_000)))

        async def healthy() -> bool:
            return (await hsm.operator.status()).entropy_sources[1].health == pb.ENTROPY_HEALTH_HEALTHY

        await until(healthy)
        made = await hsm.operator.initialize(1, 1)
        await hsm.operator.unseal(made.shares[0])
        client = await hsm.client()
        key = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        assert key.entropy == f"os:healthy,qrng:{device}:healthy"
    kinds = [entry["kind"] for entry in journal(software_rig)]
    assert kinds.count("entropy-failed") == kinds.count("entropy-recovered") == 1


async def test_damaged_replicas_are_served_repaired_and_counted(rig: HsmRig) -> None:
    async with running_hsm(rig, keys_in_use=1) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)  # drives the first out of memory
        name = f"{made.key_handle.replace(':', '.')}.seal"
        for module in (0, 2):
            [file] = [file for file in rig.files(module) if file.name == name]
            file.write_bytes(b"damaged")
        item = sealed_for(made, Algorithm.ML_KEM_768, b"kept")
        assert (await client.decrypt(item)).plaintext == b"kept"
        state = await client.status()
        assert (state.repaired_replicas, state.modules_available) == (2, 3)
        await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        for module in range(3):
            [file] = [file for file in rig.files(module) if file.name == name]
            file.write_bytes(b"damaged")
        assert await refused(client.decrypt(item)) == ErrorReason.ERROR_REASON_REPLICAS_DAMAGED
        lost = [key async for key in hsm.operator.keys(validate=True) if not key.valid]
        assert [(key.key_handle, key.replicas) for key in lost] == [(made.key_handle, 0)]


async def test_a_backup_that_was_changed_restores_nothing(software_rig: HsmRig, tmp_path: Path, pki: Path) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        for _ in range(3):
            await client.generate(new_id(), 1, Algorithm.ED25519, ORGANIZATION)
        content = b"".join([piece async for piece in hsm.operator.backup()])
    new = HsmRig(tmp_path / "new", pki)
    async with running_hsm(new, unsealed=False) as hsm:
        operator = hsm.operator
        assert await refused(operator.restore([content])) == ErrorReason.ERROR_REASON_WRONG_STATE
        progress = await operator.unseal(software_rig.share)
        assert (progress.state, progress.shares_given) == (pb.SEAL_STATE_UNINITIALIZED, 1)
        damaged = bytearray(content)
        damaged[-40] ^= 1
        assert await refused(operator.restore([bytes(damaged)])) == ErrorReason.ERROR_REASON_REPLICAS_DAMAGED
        assert await refused(operator.restore([content[:-10]])) == ErrorReason.ERROR_REASON_REPLICAS_DAMAGED
        assert not new.files()
        assert (await operator.status()).state == pb.SEAL_STATE_UNINITIALIZED
        assert (await operator.restore([content])).keys_restored == 3
        assert (await operator.status()).state == pb.SEAL_STATE_UNSEALED
        assert await refused(operator.restore([content])) == ErrorReason.ERROR_REASON_WRONG_STATE
    # After a restart it opens with the same shares.
    new.share = software_rig.share
    async with running_hsm(new) as hsm:
        assert len([key async for key in hsm.operator.keys(validate=True) if key.valid]) == 3


async def test_an_embedded_hsm_opens_by_itself(software_rig: HsmRig, tmp_path: Path) -> None:
    share = tmp_path / "secrets" / "hsm-share"
    for _ in range(2):
        async with running_hsm(software_rig, unsealed=False, hsm_shares_at_hand=True) as hsm:
            await ensure_unsealed(hsm.operator, share, within_seconds=5)
            await ensure_unsealed(hsm.operator, share, within_seconds=5)
            state = await hsm.operator.status()
            assert state.state == pb.SEAL_STATE_UNSEALED
            assert "shares lie on this machine" in state.backend_notice
    assert share.stat().st_mode & 0o777 == 0o600


async def test_services_are_not_throttled(software_rig: HsmRig) -> None:
    """The document's rates ten times over: 100 keys a minute, 5,000 operations a minute."""
    async with hsm_app(software_rig.settings(), limiter=WindowLimiter()) as server:
        port = await server.start()
        try:
            hsm = await _unsealed(port, software_rig)
            for _ in range(130):  # more than a person may write in a minute
                await hsm.call("GenerateKey", _order())
        finally:
            await server.drain()
    policies = {name: plan for name, plan in _budgets().items() if name in {"GenerateKey", "Decrypt", "Sign"}}
    assert all(budget >= 50_000 for budget in policies.values())


def _order() -> pb.GenerateKeyRequest:
    return pb.GenerateKeyRequest(key_id=new_id(), version=1, algorithm="Ed25519", organization_id=ORGANIZATION)


def _budgets() -> dict[str, int]:
    from servers.mesh.policy import read_policies  # noqa: PLC0415 -- used here alone

    return {name.rpartition("/")[2]: policy.budget for name, policy in read_policies(HSM_SERVICE).items()}


async def _unsealed(port: int, rig: HsmRig) -> HsmOperator:
    """A caller `quantum` of an HSM that was just initialised and unsealed."""

    def channel(caller: str) -> grpc.aio.Channel:
        files = pki.issue(rig.pki, caller)
        credentials = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        return grpc.aio.secure_channel(f"localhost:{port}", credentials)

    operator = HsmOperator(channel("operator"))
    made = await operator.initialize(1, 1)
    await operator.unseal(made.shares[0])
    return HsmOperator(channel("quantum"), "quantum")


async def test_batches_do_not_block_the_loop(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client = await hsm.client()
        kem = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        signer = await client.generate(new_id(), 1, Algorithm.ML_DSA_65, ORGANIZATION)
        boxes = [sealed_for(kem, Algorithm.ML_KEM_768, bytes(1000)) for _ in range(64)]
        await client.decrypt_many(boxes)
        with loop_never_blocked():
            for _ in range(3):
                await client.decrypt_many(boxes)
                await asyncio.gather(*(client.sign(signer.key_handle, ORGANIZATION, b"m") for _ in range(64)))
                await client.generate(new_id(), 1, Algorithm.ML_DSA_87, ORGANIZATION)


async def test_attempts_at_ceremonies_are_kept_apart_and_bounded(software_rig: HsmRig) -> None:
    async with running_hsm(software_rig) as hsm:
        client, quantum = await hsm.client(), await hsm.as_workload("quantum")
        made = [client.generate(new_id(), 9, Algorithm.ED25519, ORGANIZATION) for _ in range(100)]
        await asyncio.gather(*made, return_exceptions=True)
        attempts = [quantum.call("Seal", pb.SealRequest()) for _ in range(100)]
        await asyncio.gather(*attempts, return_exceptions=True)
        refusals = [entry["data"]["method"] for entry in journal(software_rig) if entry["data"].get("reason")]
        assert refusals.count("Seal") == refusals.count("GenerateKey") == 60
