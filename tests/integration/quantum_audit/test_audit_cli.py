"""`behaviorguard audit` against a running service, and without one."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from infra import pki
from infra.cli.audit import audit
from servers.quantum.audit_export import checkpoint_line, key_object
from tests.support.audit import chain, entry, holds
from tests.support.audit_chains import export as make_export
from tests.support.audit_chains import make_chain, make_checkpoint, public_key
from tests.support.quantum import ORGANIZATION, StandInHsm, running_quantum

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.audit import Trails
    from tests.support.quantum import QuantumStores


def invoke(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(audit, list(arguments), input=stdin)


async def test_from_the_trail_to_a_checked_file(
    stores: QuantumStores,
    hsm: StandInHsm,
    trails: Trails,
    organization: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    identity = pki.issue(stores.pki, "operator")
    for name, file in (("CA", identity.ca), ("CERT", identity.cert), ("KEY", identity.key)):
        monkeypatch.setenv(f"BEHAVIORGUARD_TLS_{name}", str(file))
    async with trails() as trail:
        for number in range(12):
            agent = f"A \u2603 browser {number}" if number % 2 else ""
            await trail.commit(entry(ORGANIZATION, data={"number": number, "deep": [1, {"a": None}]}, user_agent=agent))
            await trail.commit(
                entry(organization, operation="keygen", result="failure", reason="ERROR_REASON_INTERNAL")
            )
    written, other, kept = tmp_path / "audit.jsonl", tmp_path / "other.jsonl", tmp_path / "kept.json"
    async with running_quantum(stores, hsm, checkpoint_records=5, checkpoint_seconds=3600) as running:
        where = ("--address", f"localhost:{running.port}")

        async def done(*arguments: str, code: int = 0) -> str:
            result = await asyncio.to_thread(invoke, *arguments, *where)
            assert result.exit_code == code, result.output
            return result.stdout

        await done("export", str(written))
        await done("export", str(other), "--organization", organization)
        kept.write_text(await done("list", "--checkpoints", "--limit", "1", "--json"))
        listed = await done("list", "--operation", "keygen", "--organization", organization, "--limit", "5", "--json")
        shown = await done("list", "--limit", "3")
        nothing = await done("list", "--until", "2020-01-01", "--json")
        recent = await done("list", "--since", "2020-01-01T00:00:00", "--limit", "2", "--json")
        events = await done("list", "--events")
    assert written.stat().st_mode & 0o077 == 0
    assert len(listed.splitlines()) == 5
    assert len(shown.splitlines()) == 3
    assert (events, nothing) == ("", "")
    assert len(recent.splitlines()) == 2
    holds(chain(stores.owner_dsn, organization))

    for file in (written, other):
        report = json.loads(invoke("verify", str(file), "--json").stdout)
        assert report["ok"], report
        assert report["signed_through"] == report["last_sequence"] >= 12
    pinned = json.loads(invoke("verify", str(written), "--checkpoint", str(kept), "--json").stdout)
    assert pinned["ok"], pinned
    assert pinned["pinned_through"] >= 12
    assert invoke("verify", "-", stdin=written.read_bytes()).exit_code == 0


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    records = make_chain(6)
    lines = make_export(records, [make_checkpoint(records[5])])
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"".join(lines).replace(b'"success","sequence":3', b'"failure","sequence":3'))
    result = invoke("verify", str(file))
    assert result.exit_code == 1
    assert "broken: record 3 is not what its hash was made of" in result.stdout
    assert records[2].audit_id in result.stdout
    report = json.loads(invoke("verify", str(file), "--json").stdout)
    assert report["problem"]["kind"] == "changed"
    assert (report["problem"]["sequence"], report["problem"]["line"]) == (3, 4)


def test_an_export_without_pins_says_what_it_cannot_prove(tmp_path: Path) -> None:
    records = make_chain(3)
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"".join(make_export(records, [make_checkpoint(records[2])])))
    output = invoke("verify", str(file)).stdout
    assert "whole: 3 records, 1 to 3" in output
    assert "cut off the end" in output
    assert "made the whole chain anew" in output


def test_keys_are_pinned_in_every_form(tmp_path: Path) -> None:
    records = make_chain(3)
    file, pin = tmp_path / "audit.jsonl", tmp_path / "key"
    file.write_bytes(b"".join(make_export(records, [make_checkpoint(records[2])])))
    raw = public_key().public_key
    for form in (raw, base64.b64encode(raw) + b"\n", json.dumps(key_object(public_key())).encode()):
        pin.write_bytes(form)
        assert invoke("verify", str(file), "--key", str(pin)).exit_code == 0
    pin.write_bytes(public_key(2).public_key)
    assert invoke("verify", str(file), "--key", str(pin)).exit_code == 1


def test_a_pinned_checkpoint_shows_a_cut_end(tmp_path: Path) -> None:
    records = make_chain(6)
    kept, file = tmp_path / "kept", tmp_path / "audit.jsonl"
    kept.write_bytes(checkpoint_line(make_checkpoint(records[5])))
    file.write_bytes(b"".join(make_export(records[:3], [])))
    result = invoke("verify", str(file), "--checkpoint", str(kept))
    assert result.exit_code == 1
    assert "the chain's end was cut off" in result.stdout


@pytest.mark.parametrize("content", [b"", b"nonsense", b"{}", b'{"key_id": 1}', b"\xff\xfe"])
def test_wrong_pins_are_wrong_usage(tmp_path: Path, content: bytes) -> None:
    file, pin = tmp_path / "audit.jsonl", tmp_path / "pin"
    file.write_bytes(b"".join(make_export(make_chain(1), [])))
    pin.write_bytes(content)
    assert invoke("verify", str(file), "--checkpoint", str(pin)).exit_code == 2
    if content:
        assert invoke("verify", str(file), "--key", str(pin)).exit_code == 2


def test_a_file_that_is_not_there_is_wrong_usage_and_one_that_is_no_export_is_broken(tmp_path: Path) -> None:
    assert invoke("verify", str(tmp_path / "nothing")).exit_code == 2
    file = tmp_path / "file"
    for content in (b"", b"\n", b"x" * 200_000, b"\x00\xff" * 100):
        file.write_bytes(content)
        assert invoke("verify", str(file)).exit_code == 1


def test_a_hostile_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    evil = "[/red]\x1b[2J\x07\u202e"
    records = make_chain(2, audit_id=evil, organization_id=evil)
    file = tmp_path / "audit.jsonl"
    lines = make_export(records, [])
    lines[0] = lines[0].replace(b"11111111-1111-4111-8111-111111111111", json.dumps(evil)[1:-1].encode())
    for content in (b"".join(lines), b"".join(lines).replace(b'"success"', b'"failure"')):
        file.write_bytes(content)
        result = invoke("verify", str(file))
        assert result.exit_code == 1
        assert result.stdout.isprintable() or set(filter(lambda c: not c.isprintable(), result.stdout)) == {"\n"}
