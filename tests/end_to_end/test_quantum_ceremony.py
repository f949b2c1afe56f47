"""The HSM as the runbook has it: a ceremony with shares, unsealing after a restart, recovery onto a new HSM."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.quantum.v1 import (
    key_pb2,
    key_service_pb2,
    key_service_pb2_grpc,
    template_service_pb2,
    template_service_pb2_grpc,
)
from grpc import aio

from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from tests.support.mesh import reason_of
from tests.support.quantum_stack import QuantumStack
from tests.support.stack import installed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Installation

pytestmark = pytest.mark.end_to_end

PERSON = "11111111-1111-4111-8111-111111111111"
ALONE = [word for name in ("gateway", "pipeline", "threat") for word in ("--without", name)]
WAIT_SECONDS = 30.0


async def run(installation: Installation, *words: str) -> str:
    """What a command says; it must succeed."""
    done = await asyncio.to_thread(installation.call, *words)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


async def make_key(quantum: QuantumStack) -> str:
    async with quantum.channel("operator") as channel:
        keys: Any = key_service_pb2_grpc.KeyServiceStub(channel)
        request = key_service_pb2.GenerateKeyRequest(
            key_type=key_pb2.KEY_TYPE_MASTER,
            algorithm="ML-KEM-768",
            purpose=key_pb2.KEY_PURPOSE_ENCRYPTION,
            organization_id=DEFAULT_ORGANIZATION_ID,
        )
        made = await keys.GenerateKey(request, timeout=20)
    return str(made.key_id)


async def close_envelope(quantum: QuantumStack, key_id: str) -> bytes:
    async with quantum.channel("identity") as channel:
        templates: Any = template_service_pb2_grpc.TemplateServiceStub(channel)
        request = template_service_pb2.EncryptTemplateRequest(
            user_id=PERSON, biometric_template=b"a face", key_id=key_id
        )
        return bytes((await templates.EncryptTemplate(request, timeout=20)).encrypted_template)


async def open_envelope(quantum: QuantumStack, envelope: bytes) -> bytes:
    async with quantum.channel("identity") as channel:
        templates: Any = template_service_pb2_grpc.TemplateServiceStub(channel)
        request = template_service_pb2.DecryptTemplateRequest(user_id=PERSON, encrypted_template=envelope)
        return bytes((await templates.DecryptTemplate(request, timeout=20)).biometric_template)


async def settled(action: Any) -> Any:
    """The answer once the quantum service has found the HSM again."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                return await action()
            except aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION):
                    raise
                await asyncio.sleep(0.1)


async def refused_as(action: Any, reason: str) -> None:
    with pytest.raises(aio.AioRpcError) as error:
        await action()
    assert reason_of(error.value) == f"ERROR_REASON_{reason}"


async def test_the_embedded_hsm_opens_by_itself_and_keeps_its_keys() -> None:
    with installed() as installation:
        quantum = QuantumStack(installation)
        said = await run(installation, "up", *ALONE)
        share = installation.settings().secrets / "hsm-share"
        assert "software store, not hardware" in said
        assert str(share) in said
        assert stat.S_IMODE(share.stat().st_mode) == 0o600
        assert "HSM: unsealed" in await run(installation, "status")
        envelope = await close_envelope(quantum, await make_key(quantum))
        await run(installation, "down")
        await run(installation, "up", *ALONE)
        assert await open_envelope(quantum, envelope) == b"a face"
        share.rename(share.with_name("lost"))
        await run(installation, "down")
        failed = await asyncio.to_thread(installation.call, "up", *ALONE)
        assert failed.returncode == 1
        assert "BEHAVIORGUARD_HSM_UNSEAL=manual" in failed.stdout + failed.stderr
        share.with_name("lost").rename(share)
        modules = installation.folder / "hsm"
        modules.rename(modules.with_name("hsm-away"))
        failed = await asyncio.to_thread(installation.call, "up", *ALONE)
        assert "holds a share of another one" in failed.stdout + failed.stderr
        shutil.rmtree(modules)
        modules.with_name("hsm-away").rename(modules)  # the share was not touched
        await run(installation, "up", *ALONE)
        assert await open_envelope(quantum, envelope) == b"a face"


async def test_a_ceremony_an_unsealing_and_a_recovery(tmp_path: Path) -> None:
    with installed(hsm_unseal="manual", breaker_seconds="0.5") as installation:
        quantum = QuantumStack(installation)
        assert "hsm unseal" in await run(installation, "up", *ALONE)
        await refused_as(lambda: make_key(quantum), "HSM_SEALED")
        assert "HSM: uninitialized" in await run(installation, "status")
        shares, backup = tmp_path / "shares", tmp_path / "hsm.backup"
        await run(installation, "hsm", "init", "--shares", "3", "--threshold", "2", "--out", str(shares))
        two = [word for number in (3, 1) for word in ("--share-file", str(shares / f"share-{number}.txt"))]
        await run(installation, "hsm", "unseal", *two)
        key_id = await settled(lambda: make_key(quantum))
        envelope = await close_envelope(quantum, key_id)

        await asyncio.to_thread(installation.kill, "hsm")  # a restart seals it
        await settled_refusal(quantum, envelope)
        await run(installation, "hsm", "unseal", *two)
        assert await settled(lambda: open_envelope(quantum, envelope)) == b"a face"

        await run(installation, "hsm", "backup", str(backup))
        await run(installation, "down")
        shutil.rmtree(installation.folder / "hsm")  # the machine is gone
        await run(installation, "up", *ALONE)
        await refused_as(lambda: open_envelope(quantum, envelope), "HSM_SEALED")
        await run(installation, "hsm", "restore", str(backup), *two)
        assert await settled(lambda: open_envelope(quantum, envelope)) == b"a face"
        found = json.loads(await run(installation, "hsm", "keys", "--validate", "--json"))
        assert key_id in json.dumps(found)
        assert await settled(lambda: make_key(quantum)) != str(uuid.UUID(int=0))


async def settled_refusal(quantum: QuantumStack, envelope: bytes) -> None:
    """The HSM is back, and sealed: said once the quantum service has found it."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            with pytest.raises(aio.AioRpcError) as error:
                await open_envelope(quantum, envelope)
            if reason_of(error.value) == "ERROR_REASON_HSM_SEALED":
                return
            await asyncio.sleep(0.1)
