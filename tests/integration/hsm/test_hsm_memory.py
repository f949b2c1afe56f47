"""What of a known seed lies in the HSM's memory: while its key is in use, and after sealing."""

from __future__ import annotations

import re
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.stack.ports import free_port
from servers.crypto.algorithms import Algorithm
from servers.hsm import shares
from servers.hsm.sealed import parse_sealed
from servers.hsm.vaults import RootSecret, SoftwareVault
from tests.support.hsm import ORGANIZATION, HsmProcess, HsmRig, new_id, sealed_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from servers.quantum.ports import GeneratedKey


def memory_of(pid: int) -> Iterator[bytes]:
    """Every readable stretch of a process's memory; what a core file would hold."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if found is None or "[v" in line:
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except OSError:
                continue


def copies(pid: int, secrets: Mapping[str, bytes]) -> dict[str, int]:
    """How often each secret is found."""
    found = dict.fromkeys(secrets, 0)
    for stretch in memory_of(pid):
        for name, secret in secrets.items():
            found[name] += stretch.count(secret)
    return found


def secrets_of(rig: HsmRig, made: GeneratedKey) -> dict[str, bytes]:
    """What the share on this machine gives away of the HSM: its keys, and the seed of one key."""
    secret = shares.combine([shares.parse((rig.folder / "share").read_text().strip())])
    root = RootSecret(secret)
    [file] = [file for file in rig.files() if made.key_handle.replace(":", ".") in file.name]
    sealed = parse_sealed(file.read_bytes())
    master = SoftwareVault().open(root, {})
    seed = bytes(master.open(sealed.nonce, sealed.ciphertext, sealed.header.associated_data()))
    return {
        # ML-KEM keeps the halves of its seed apart (FIPS 203: d, z).
        "seed d": seed[:32],
        "seed z": seed[32:],
        "root": secret,
        "master key": root.derive("seal"),
        "journal key": root.derive("journal"),
        "backup key": root.derive("backup"),
    }


async def test_a_sealed_hsm_has_no_seed_in_its_memory(software_rig: HsmRig) -> None:
    with HsmProcess(software_rig, free_port()) as process:
        process.start()
        async with process.calls() as (operator, client):
            made = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
            await client.decrypt(sealed_for(made, Algorithm.ML_KEM_768, b"x"))
            secrets = secrets_of(software_rig, made)
            try:
                used = copies(process.pid, secrets)
            except PermissionError:
                pytest.skip("reading another process's memory needs root here: the HSM forbids it to its own user")
            # The key in use is there, and so are the keys of an unsealed HSM: the search finds what there is.
            assert used["seed d"] > 0
            assert used["master key"] > 0
            assert used["root"] == 0
            await operator.seal()
            assert copies(process.pid, secrets) == dict.fromkeys(secrets, 0)


async def test_a_crash_leaves_no_core_file(software_rig: HsmRig) -> None:
    with HsmProcess(software_rig, free_port()) as process:
        process.start()
        async with process.calls():
            limit = resource.prlimit(process.pid, resource.RLIMIT_CORE)
        assert limit == (0, 0)
        assert process.end(signal.SIGABRT) == -signal.SIGABRT
