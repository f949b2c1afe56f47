"""What is particular to a master key in a PKCS#11 module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.hsm.pkcs11_vault import Pkcs11Vault
from servers.hsm.sealed import DamagedError
from servers.hsm.vaults import RootSecret, SealedError, VaultError
from servers.mesh.errors import ErrorReason, MeshError
from tests.support.hsm import ORGANIZATION, PIN, SOFTHSM, HsmRig, new_id, running_hsm, sealed_for, softhsm

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "behaviorguard"
PROVIDER = provider_named("cryptography")


def write(file: Path, text: str) -> None:
    file.write_text(text)


def delete(file: Path) -> None:
    file.unlink()


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    softhsm()
    file = tmp_path / "pin"
    file.write_text(PIN + "\n")
    return file


@pytest.fixture
def rig(tmp_path: Path, pki: Path, pin_file: Path) -> HsmRig:
    return HsmRig(tmp_path / "hsm", pki, softhsm() | {"hsm_pin_file": pin_file})


@pytest.fixture
def root() -> Iterator[RootSecret]:
    made = RootSecret(bytes(range(32)))
    yield made
    made.overwrite()


async def test_the_pin_file_is_needed_once(rig: HsmRig, pin_file: Path) -> None:
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        made = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        assert "cannot leave it" in (await client.status()).backend_notice
    delete(pin_file)
    async with running_hsm(rig) as hsm:
        client = await hsm.client()
        assert (await client.decrypt(sealed_for(made, Algorithm.ML_KEM_768, b"kept"))).plaintext == b"kept"
    for file in [file for module in rig.modules for file in module.rglob("*") if file.is_file()]:
        assert PIN.encode() not in file.read_bytes()


async def test_without_a_pin_there_is_no_ceremony(rig: HsmRig, pin_file: Path) -> None:
    write(pin_file, "wrong-pin")
    async with running_hsm(rig, unsealed=False) as hsm:
        with pytest.raises(MeshError, match="PIN right") as refused:
            await hsm.operator.initialize(1, 1)
        assert refused.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        delete(pin_file)
        with pytest.raises(MeshError, match="PIN file"):
            await hsm.operator.initialize(1, 1)
        write(pin_file, PIN)
        await hsm.operator.initialize(1, 1)
    kinds = [json.loads(line)["kind"] for line in (rig.modules[0] / "journal.log").read_text().splitlines()]
    assert kinds.count("initialize") == 1


async def test_the_software_store_does_not_open_a_modules_hsm(rig: HsmRig) -> None:
    async with running_hsm(rig):
        pass
    rig.backend = {}
    async with running_hsm(rig, unsealed=False) as hsm:
        with pytest.raises(MeshError, match="pkcs11") as refused:
            await hsm.operator.unseal(rig.share)
        assert refused.value.reason == ErrorReason.ERROR_REASON_WRONG_STATE


def test_each_hsm_has_a_master_key_of_its_own(root: RootSecret, pin_file: Path) -> None:
    vault = Pkcs11Vault(Path(SOFTHSM), TOKEN, pin_file, PROVIDER)
    made = [vault.create(root) for _ in range(2)]
    assert made[0]["label"] != made[1]["label"]
    first = vault.open(root, made[0])
    nonce, sealed = first.seal(b"seed", b"bound")
    assert bytes(first.open(nonce, sealed, b"bound")) == b"seed"
    with pytest.raises(DamagedError):
        first.open(nonce, sealed, b"other")
    first.close()
    with pytest.raises(SealedError):
        first.open(nonce, sealed, b"bound")
    second = vault.open(root, made[1])
    with pytest.raises(DamagedError):
        second.open(nonce, sealed, b"bound")
    second.close()


def test_what_was_made_with_another_root_does_not_open(root: RootSecret, pin_file: Path) -> None:
    vault = Pkcs11Vault(Path(SOFTHSM), TOKEN, pin_file, PROVIDER)
    made = vault.create(root)
    with pytest.raises(VaultError, match="restore"):
        vault.open(RootSecret(bytes(32)), made)
    with pytest.raises(VaultError, match="NoSuchKey"):
        vault.open(root, {**made, "label": "behaviorguard-none"})


def test_a_missing_module_is_said_so(tmp_path: Path, root: RootSecret, pin_file: Path) -> None:
    with pytest.raises(VaultError, match="PKCS#11 module refuses"):
        Pkcs11Vault(tmp_path / "none.so", TOKEN, pin_file, PROVIDER).create(root)
    with pytest.raises(VaultError, match="NoSuchToken"):
        Pkcs11Vault(Path(SOFTHSM), "no-such-token", pin_file, PROVIDER).create(root)
