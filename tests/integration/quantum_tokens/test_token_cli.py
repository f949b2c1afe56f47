"""`behaviorguard tokens` against a running service, and without one."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.quantum.v1 import key_pb2
from click.testing import CliRunner, Result

from infra import pki
from infra.cli.tokens import tokens
from tests.support.quantum import master_key, running_quantum, service_key
from tests.support.tokens import NOW, LocalIssuer, claims

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.quantum import QuantumStores

USER = "3f0c9a52-6f0e-4a58-9b3f-1f5f4b8f7c11"


def invoke(*arguments: str, stdin: bytes | str = b"") -> Result:
    return CliRunner().invoke(tokens, list(arguments), input=stdin)


async def test_the_whole_life_of_a_token(
    stores: QuantumStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = pki.issue(stores.pki, "operator")
    for name, file in (("CA", identity.ca), ("CERT", identity.cert), ("KEY", identity.key)):
        monkeypatch.setenv(f"BEHAVIORGUARD_TLS_{name}", str(file))
    session = str(uuid.uuid4())
    files = {name: tmp_path / name for name in ("token", "jwks", "ended", "message", "signature", "json")}

    async with running_quantum(stores) as running:
        where = ("--address", f"localhost:{running.port}")

        async def done(*arguments: str, code: int = 0, stdin: bytes | str = b"") -> str:
            result = await asyncio.to_thread(invoke, *arguments, *where, stdin=stdin)
            assert result.exit_code == code, result.output
            return result.output

        issued = json.loads(
            await done(
                *("issue", "--user", USER, "--session", session, "--audience", "mobile", "--role", "admin", "--json")
            )
        )
        files["token"].write_text(issued["hybridToken"] + "\n")
        files["jwks"].write_text(await done("keys", "--json"))
        assert issued["quantumSignature"]["keyId"] in await done("keys")

        assert "both signatures" in await done("verify", str(files["token"]), "--audience", "mobile")
        answer = json.loads(await done("verify", "-", "--audience", "mobile", "--json", stdin=issued["hybridToken"]))
        assert answer["valid"]
        assert answer["claims"]["sessionId"] == session
        refusal = await done("verify", "--audience", "other", code=1, stdin=issued["hybridToken"])
        assert refusal == "Refused: token_malformed\n"

        offline = ("verify", str(files["token"]), "--audience", "mobile", "--offline", str(files["jwks"]))
        here = await asyncio.to_thread(invoke, *offline, "--json")
        assert here.exit_code == 0
        assert json.loads(here.output) == answer

        assert "Ended at" in await done("revoke", "--session", session, "--reason", "test")
        assert "token_revoked" in await done("verify", str(files["token"]), "--audience", "mobile", code=1)
        assert session in await done("revocations")
        files["ended"].write_text(await done("revocations", "--json"))
        here = await asyncio.to_thread(invoke, *offline, "--revoked", str(files["ended"]))
        assert (here.exit_code, here.output) == (1, "Refused: token_revoked\n")

        await running.keys().GenerateKey(master_key())
        order = service_key(algorithm="ML-DSA-65", purpose=key_pb2.KEY_PURPOSE_SIGNING, service_id="documents")
        key = (await running.keys().GenerateKey(order)).key_id
        files["message"].write_bytes(b"contract\x00\xff")
        signed = ("--key", key, "--context", "documents/v1")
        files["signature"].write_text(await done("sign", str(files["message"]), *signed))
        assert len(base64.b64decode(files["signature"].read_text())) == 3309
        files["json"].write_text(await done("sign", "-", *signed, "--json", stdin=b"contract\x00\xff"))
        for signature in (files["signature"], files["json"]):
            checked = ("verify-signature", str(files["message"]), "--signature", str(signature), "--key", key)
            assert await done(*checked, "--context", "documents/v1") == "It holds.\n"
            assert await done(*checked, "--context", "other", code=1) == "It does not hold.\n"
        assert "no such key" in await done("sign", "-", "--key", str(uuid.uuid4()), code=1, stdin="x")


def offline(tmp_path: Path, token: str | bytes, *more: str) -> Result:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps(LocalIssuer().jwks()))
    return invoke("verify", "-", "--audience", "mobile", "--offline", str(jwks), *more, stdin=token)


@pytest.mark.parametrize("token", ["", "x", b"\xff\xfe", "[" * 10_000, "A" * 20_000])
def test_what_is_no_token_is_refused(tmp_path: Path, token: str | bytes) -> None:
    result = offline(tmp_path, token)
    assert (result.exit_code, result.output) == (1, "Refused: token_malformed\n")


def test_an_old_token_is_refused_and_told_in_json(tmp_path: Path) -> None:
    issuer = LocalIssuer()
    result = offline(tmp_path, issuer.hybrid(claims(issued_at=1000, not_before=1000, expires_at=2000)), "--json")
    assert result.exit_code == 1
    assert json.loads(result.output) == {"valid": False, "reason": "ERROR_REASON_TOKEN_EXPIRED", **EMPTY}
    assert NOW > 2000


EMPTY: dict[str, Any] = {"userId": "", "quantumSecured": False}


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--audience", "mobile", "--revoked", "ended.json"),
        ("verify", "--audience", "mobile", "--offline", "is-not-there.json"),
        ("verify", "is-not-there.json", "--audience", "mobile"),
        ("verify",),
        ("issue", "--user", "anna", "--session", USER, "--audience", "mobile"),
        ("issue", "--user", USER, "--session", USER, "--audience", "mobile", "--lifetime", "59"),
        ("revoke",),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_a_token_on_the_command_line_is_refused_and_not_repeated() -> None:
    issuer = LocalIssuer()
    for token in (issuer.hybrid(claims()), issuer.classical(claims())):
        result = invoke("verify", token, "--audience", "mobile")
        assert result.exit_code == 2
        assert token[:20] not in result.output
        assert "standard input" in result.output


def test_a_key_set_that_is_none_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "jwks.json"
    broken.write_text("{}")
    result = invoke("verify", "-", "--audience", "mobile", "--offline", str(broken), stdin="x")
    assert result.exit_code == 2
    assert "behaviorguard tokens keys" in result.output


def test_without_a_service_the_code_is_3(monkeypatch: pytest.MonkeyPatch, pki: Path) -> None:
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.setenv(
            f"BEHAVIORGUARD_TLS_{name}",
            str(pki / ("ca.crt" if name == "CA" else f"operator.{'key' if name == 'KEY' else 'crt'}")),
        )
    result = invoke("keys", "--address", "localhost:1")
    assert result.exit_code == 3
    assert "the quantum service does not answer" in result.output


@pytest.mark.parametrize("command", ["issue", "verify", "revoke", "revocations", "keys", "sign", "verify-signature"])
def test_each_command_shows_examples_and_exit_codes(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"behaviorguard tokens {command}" in result.output
    assert "Exit codes:" in result.output
