"""The form that docs/audit.md writes down: held against the worked example, and against other implementations."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.quantum.audit_chain import MAX_INTEGER, canonical_json, object_hash, plain_data, plain_text, timestamp_text
from tests.support.audit_chains import check, public_key

ROOT = Path(__file__).parents[3]
VECTOR = Path(__file__).with_name("audit_export_vector.jsonl")
DOCUMENT = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")

texts = st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(max_codepoint=126, min_codepoint=1), max_size=6), inner, max_size=3)
    ),
    max_leaves=10,
)


def by_the_standard_library(value: Any) -> bytes:
    """Canonical JSON as the document says that another library gives it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_the_example_is_one_whole_chain() -> None:
    report = check(VECTOR.read_bytes().splitlines(keepends=True))
    assert report.ok
    assert (report.records, report.checkpoints, report.signed_through) == (2, 1, 2)


def test_the_documents_example_is_what_is_hashed() -> None:
    lines = [json.loads(line) for line in VECTOR.read_bytes().splitlines()]
    first, second, checkpoint = lines[1]["record"], lines[2]["record"], lines[3]["checkpoint"]
    shown = DOCUMENT.replace("\n    ", "")
    for record in (first, second):
        digest = record.pop("record_hash")
        body = by_the_standard_library(record)
        assert hashlib.sha256(b"behaviorguard audit record v1\n" + body).hexdigest() == digest
        assert digest in DOCUMENT
    assert by_the_standard_library(first).decode() in shown
    assert f"{len(by_the_standard_library(first))} bytes" in DOCUMENT
    checkpoint.pop("signature")
    assert by_the_standard_library(checkpoint).decode() in shown


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to check in another language")
def test_the_documents_program_in_another_language_agrees(tmp_path: Path) -> None:
    [program] = re.findall(r"```js\n(.*?)```", DOCUMENT, re.DOTALL)
    script, changed = tmp_path / "check.js", tmp_path / "changed.jsonl"
    script.write_text(program, encoding="utf-8")
    said = subprocess.run(["node", script, VECTOR], capture_output=True, text=True, check=True, timeout=30)
    last = json.loads(VECTOR.read_bytes().splitlines()[2])["record"]["record_hash"]
    assert said.stdout.strip() == f"2 records, {last}"
    changed.write_bytes(VECTOR.read_bytes().replace(b'"failure"', b'"success"'))
    refused = subprocess.run(["node", script, changed], capture_output=True, text=True, check=False, timeout=30)
    assert (refused.returncode, refused.stdout.strip()) == (1, "broken at record 2")


@given(values)
def test_canonical_json_is_what_the_standard_library_writes_too(value: Any) -> None:
    assert canonical_json(value) == by_the_standard_library(value)


@given(st.dictionaries(st.text(st.characters(max_codepoint=126, min_codepoint=1), max_size=6), values, max_size=4))
def test_what_records_keep_survives_json(data: dict[str, Any]) -> None:
    kept = plain_data(data)
    assert json.loads(canonical_json(kept)) == kept
    assert "\0" not in json.dumps(kept, ensure_ascii=False).replace("\\\\", "")


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=20))
def test_any_text_becomes_one_that_can_be_stored(text: str) -> None:
    kept = plain_text(text, 8)
    assert len(kept) <= 8
    assert "\0" not in kept
    assert kept.encode().decode() == kept
    object_hash({"text": kept})


def test_too_much_is_left_out_and_said_to_be() -> None:
    kept = plain_data({"rpc": "x", "text": "y" * 5000})
    assert kept["rpc"] == "x"
    assert isinstance(kept["left_out_bytes"], int)


def test_the_last_digit_of_a_second_is_kept() -> None:
    assert timestamp_text(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02T03:04:05.000000Z"
    with pytest.raises(ValueError, match="time zone"):
        timestamp_text(datetime(2026, 1, 2))  # noqa: DTZ001 -- a moment without a zone is what is refused


def test_the_example_is_signed_by_its_key() -> None:
    lines = VECTOR.read_bytes().splitlines(keepends=True)
    assert check(lines, keys=[public_key(named=False)]).ok
