"""`behaviorguard hsm` against a real HSM: the whole ceremony, and what it says when it is refused."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from infra import pki
from infra.cli.hsm import hsm as command
from servers.crypto.algorithms import Algorithm
from tests.support.hsm import ORGANIZATION, HsmRig, RunningHsm, new_id, running_hsm, sealed_for

if TYPE_CHECKING:
    from pathlib import Path


class Operator:
    """Types commands."""

    def __init__(self, pki_folder: Path) -> None:
        self._environment = pki.issue(pki_folder, "operator").environment()

    async def type(self, running: RunningHsm, *arguments: str, words: str | None = None) -> Result:
        address = ["--address", f"localhost:{running.port}"]
        runner = CliRunner()
        return await asyncio.to_thread(
            runner.invoke, command, [*address, *arguments], input=words, env=self._environment
        )

    async def json(self, running: RunningHsm, *arguments: str, words: str | None = None) -> dict[str, Any]:
        result = await self.type(running, *arguments, "--json", words=words)
        assert result.exit_code == 0, result.output
        said: dict[str, Any] = json.loads(result.stdout)
        return said


@pytest.fixture
def operator(pki: Path) -> Operator:
    return Operator(pki)


async def test_the_whole_ceremony_and_a_recovery(rig: HsmRig, operator: Operator, tmp_path: Path, pki: Path) -> None:
    copy = tmp_path / "keys.backup"
    async with running_hsm(rig, unsealed=False) as hsm:
        assert (await operator.type(hsm, "status")).exit_code == 3
        made = await operator.json(hsm, "init", "--shares", "5", "--threshold", "3")
        words: list[str] = made["words"]
        assert len(set(words)) == 5
        partly = await operator.json(hsm, "unseal", words="\n".join(words[:2]))
        assert (partly["state"], partly["shares_given"], partly["shares_needed"]) == ("sealed", 2, 3)
        assert (await operator.json(hsm, "unseal", words=words[4]))["state"] == "unsealed"
        client = await hsm.client()
        key = await client.generate(new_id(), 1, Algorithm.ML_KEM_768, ORGANIZATION)
        assert (await operator.json(hsm, "status"))["keys"] == 1
        assert (await operator.json(hsm, "keys", "--validate"))["keys"][0]["valid"] is True
        assert (await operator.json(hsm, "backup", str(copy)))["bytes"] == copy.stat().st_size
        assert (await operator.type(hsm, "backup", str(copy))).exit_code == 1
        assert (await operator.json(hsm, "seal"))["state"] == "sealed"
        assert (await operator.type(hsm, "status")).exit_code == 3
    shares = tmp_path / "shares.txt"
    shares.write_text("\n".join(words[1:4]))
    new = HsmRig(tmp_path / "new", pki, rig.backend)
    async with running_hsm(new, unsealed=False) as hsm:
        restored = await operator.json(hsm, "restore", str(copy), "--share-file", str(shares))
        assert restored == {"keys_restored": 1, "rejected_key_handles": []}
        client = await hsm.client()
        assert (await client.decrypt(sealed_for(key, Algorithm.ML_KEM_768, b"kept"))).plaintext == b"kept"
        again = await operator.type(hsm, "restore", str(copy), "--share-file", str(shares))
        assert again.exit_code == 1
        assert "not new" in again.stderr


async def test_refusals_say_what_to_do(software_rig: HsmRig, operator: Operator, tmp_path: Path) -> None:
    async with running_hsm(software_rig, unsealed=False) as hsm:
        early = await operator.type(hsm, "unseal", words="a b c")
        assert early.exit_code == 1
        assert "behaviorguard hsm init" in early.stderr
        usage = await operator.type(hsm, "init", "--shares", "2", "--threshold", "3")
        assert usage.exit_code == 2
        await operator.json(hsm, "init", "--shares", "2", "--threshold", "2", "--out", str(tmp_path / "shares"))
        files = sorted((tmp_path / "shares").glob("share-*.txt"))
        assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
        assert (await operator.type(hsm, "init")).exit_code == 1
        wrong = await operator.type(hsm, "unseal", words=" ".join(["academic"] * 33))
        assert wrong.exit_code == 1
        assert "first share" in wrong.stderr
        assert "academic" not in wrong.stderr
        opened = await operator.json(hsm, "unseal", *(part for file in files for part in ("--share-file", str(file))))
        assert opened["state"] == "unsealed"


async def test_an_hsm_that_is_away_is_said_so(software_rig: HsmRig, operator: Operator) -> None:
    async with running_hsm(software_rig) as hsm:
        away = hsm
    result = await operator.type(away, "status")
    assert result.exit_code == 3
    assert "behaviorguard up" in result.stderr


def test_help_has_examples() -> None:
    for name in ("init", "unseal", "seal", "status", "backup", "restore", "keys"):
        text = CliRunner().invoke(command, [name, "--help"]).output
        assert "Examples:" in text
        assert "Exit codes:" in text
        assert "--json" in text
