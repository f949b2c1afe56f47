"""`behaviorguard keys` against a running service, and without one."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.quantum.v1 import template_service_pb2 as templates_pb
from click.testing import CliRunner, Result

from infra import pki
from infra.cli.keys import keys
from infra.stack.ports import free_port
from servers.quantum.envelope import parse
from tests.support.quantum import running_quantum

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.quantum import QuantumStores

USER = "3f0c9a52-6f0e-4a58-9b3f-1f5f4b8f7c11"


def invoke(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(keys, list(arguments), input=stdin)


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture(autouse=True)
def _as_operator(stores: QuantumStores, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = pki.issue(stores.pki, "operator")
    for name, file in (("CA", identity.ca), ("CERT", identity.cert), ("KEY", identity.key)):
        monkeypatch.setenv(f"BEHAVIORGUARD_TLS_{name}", str(file))
    monkeypatch.setenv("COLUMNS", "200")


async def test_the_whole_life_of_a_key(stores: QuantumStores, tmp_path: Path) -> None:
    async with running_quantum(stores) as quantum:

        async def done(*arguments: str, code: int = 0, stdin: str = "") -> str:
            where = ("--address", f"localhost:{quantum.port}")
            result = await asyncio.to_thread(invoke, *arguments, *where, stdin=stdin)
            assert result.exit_code == code, result.output
            return result.output

        async def told(*arguments: str, code: int = 0) -> Any:
            return json.loads(await done(*arguments, "--json", code=code))

        assert "no active master key" in await done("generate", "service", "--service-id", "identity", code=1)
        master = await told("generate", "master", "--lifetime-days", "3650")
        assert (master["algorithm"], master["quantumSecured"]) == ("ML-DSA-65", True)
        made = await told(
            *("generate", "service", "--service-id", "identity", "--rotation-days", "90", "--use-limit", "100"),
            *("--note", "team=biometrics", "--parent", master["keyId"]),
        )
        both = await told("generate", "service", "--service-id", "b", "--purpose", "both", "--algorithm", "ML-KEM-1024")
        assert both["companionKeyId"]
        shown = await done("get", made["keyId"])
        assert "service key for encryption of identity" in shown
        assert "team = biometrics" in shown
        assert "version 1" in shown

        templates = quantum.templates()
        files = [tmp_path / f"{number}.bgev" for number in range(3)]
        for file in files[:2]:
            request = templates_pb.EncryptTemplateRequest(
                user_id=USER, biometric_template=file.name.encode(), key_id=made["keyId"]
            )
            file.write_bytes((await templates.EncryptTemplate(request)).encrypted_template)
        files[2].write_bytes(b"no envelope")
        assert "version    2" in await done("rotate", made["keyId"])
        said = await done("rewrap", made["keyId"], *map(str, files), code=1)
        assert said.count("moved") == 2
        assert "2.bgev: ERROR_REASON_ENVELOPE_INVALID" in said
        assert [parse(file.read_bytes()).header.key_version for file in files[:2]] == [2, 2]
        assert files[2].read_bytes() == b"no envelope"
        assert names_in(tmp_path) == {file.name for file in files}
        await done("rewrap", made["keyId"], str(files[0]), "--to", str(tmp_path / "new"))
        assert (tmp_path / "new" / "0.bgev").exists()

        changed = await told("update", made["keyId"], "--min-decrypt-version", "2", "--expires-in-days", "3.5")
        assert changed["key"]["minDecryptVersion"] == 2
        assert "must be at most" in await done("update", made["keyId"], "--min-decrypt-version", "9", code=1)
        assert "name something" in await done("update", made["keyId"], code=2)

        listed = await told("list", "--type", "service")
        assert len(listed["keys"]) == 3
        assert len((await told("list", "--count", "2"))["keys"]) == 2
        assert made["keyId"] in await done("list", "--status", "active")
        assert "There are more" in await done("list", "--count", "1")

        await done("revoke", made["keyId"], "--reason", "test", code=1, stdin="n\n")
        assert "ended" in await done("revoke", made["keyId"], "--reason", "test", stdin="y\n")
        ended = await told("revoke", master["keyId"], "--reason", "test", "--yes")
        assert set(ended["revokedKeyIds"]) == {both["keyId"], both["companionKeyId"]}
        assert "no such key" in await done("get", str(uuid.uuid4()), code=1)


def test_without_a_service_it_says_so() -> None:
    result = invoke("list", "--address", f"localhost:{free_port()}")
    assert result.exit_code == 3
    assert "does not answer" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "other"),
        ("generate", "master", "--lifetime-days", "0"),
        ("generate", "master", "--note", "x"),
        ("get", "no uuid"),
        ("rewrap", str(uuid.uuid4())),
        ("revoke", str(uuid.uuid4())),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["generate", "get", "list", "rotate", "update", "revoke", "rewrap"])
def test_help_names_the_exit_codes(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Exit codes: 0" in result.output
