"""The offline check: whatever is done to an export is found, and the first record concerned is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from servers.quantum.audit_chain import canonical_json, checkpoint_object
from servers.quantum.audit_export import record_line
from tests.support.audit_chains import (
    ORGANIZATION,
    check,
    export,
    hashed,
    make_chain,
    make_checkpoint,
    public_key,
    rehashed,
)

RECORDS = make_chain(12)
CHECKPOINTS = [make_checkpoint(RECORDS[3]), make_checkpoint(RECORDS[9])]
LINES = export(RECORDS, CHECKPOINTS)
places = st.integers(0, len(RECORDS) - 1)


def pin(number: int) -> dict[str, Any]:
    return {"sequence": RECORDS[number - 1].sequence, "record_hash": RECORDS[number - 1].record_hash.hex()}


def with_records(records: list[Any]) -> list[bytes]:
    """An export of other records, with the checkpoints that the chain had, and numbers that fit."""
    kept = [each for each in CHECKPOINTS if any(record.sequence == each.sequence for record in records)]
    return export(records, kept)


def test_a_whole_export_holds_and_says_what_it_cannot_prove() -> None:
    report = check(LINES)
    assert report.ok
    assert (report.organization_id, report.records, report.checkpoints) == (ORGANIZATION, 12, 2)
    assert (report.first_sequence, report.last_sequence, report.signed_through) == (1, 12, 10)
    text = " ".join(report.limits)
    assert "--key" in text
    assert "--checkpoint" in text
    assert "after 10" in text


def test_pins_leave_nothing_open() -> None:
    records = RECORDS[:10]
    report = check(export(records, CHECKPOINTS), keys=[public_key()], checkpoints=[pin(10)])
    assert report.ok
    assert report.pinned_through == 10
    assert report.limits == []


@given(place=places, data=st.data())
@settings(max_examples=150)
def test_a_changed_field_is_found_and_named(place: int, data: st.DataObject) -> None:
    record = orjson.loads(record_line(RECORDS[place]))["record"]
    name = data.draw(st.sampled_from(sorted(record)))
    value: Any = data.draw(
        st.one_of(st.text(max_size=5), st.integers(-3, 2**53), st.none(), st.just({}), st.booleans())
    )
    assume(value != record[name])
    assume(
        (place, name) != (0, "sequence")
    )  # a file may begin at any place: what the first record says is all there is
    lines = list(LINES)
    at = lines.index(record_line(RECORDS[place]))
    lines[at] = canonical_json({"record": record | {name: value}}) + b"\n"
    report = check(lines)
    assert report.problem is not None
    assert report.problem.kind in ("changed", "malformed", "dropped")
    assert report.problem.line == at + 1
    assert report.problem.sequence == place + 1


@given(position=st.integers(0), value=st.integers(0, 255))
@settings(max_examples=300)
def test_any_changed_byte_is_found(position: int, value: int) -> None:
    whole = b"".join(LINES[1:])
    at = position % len(whole)
    assume(whole[at] != value)
    changed = LINES[0] + whole[:at] + bytes([value]) + whole[at + 1 :]
    assert not check(changed.splitlines(keepends=True)).ok


@given(at=st.integers(1, len(LINES) - 1))
def test_any_dropped_line_is_found(at: int) -> None:
    assert not check(LINES[:at] + LINES[at + 1 :]).ok


@given(first=st.integers(0, len(LINES) - 1), second=st.integers(0, len(LINES) - 1))
def test_any_swap_is_found(first: int, second: int) -> None:
    assume(first != second)
    lines = list(LINES)
    lines[first], lines[second] = lines[second], lines[first]
    assert not check(lines).ok


@given(source=st.integers(0, len(LINES) - 1), at=st.integers(0, len(LINES)))
def test_any_repeated_line_is_found(source: int, at: int) -> None:
    assert not check([*LINES[:at], LINES[source], *LINES[at:]]).ok


@given(drop=st.sets(st.integers(1, 10), min_size=1, max_size=4))
def test_the_first_dropped_record_is_named(drop: set[int]) -> None:
    report = check(with_records([record for record in RECORDS if record.sequence - 1 not in drop]))
    assert report.problem is not None
    assert (report.problem.kind, report.problem.sequence) == ("dropped", min(drop) + 1)


@given(source=places, target=places)
def test_the_first_place_of_a_moved_record_is_named(source: int, target: int) -> None:
    assume(source != target)
    records = list(RECORDS)
    moved = records.pop(source)
    records.insert(target, moved)
    assume(records[0].sequence == 1)  # a file that begins elsewhere is another matter
    report = check(export(records, []))
    assert report.problem is not None
    assert report.problem.kind in ("reordered", "inserted")
    assert report.problem.sequence in (min(source, target) + 1, moved.sequence)


@given(after=places)
def test_a_forged_record_that_was_put_in_is_found(after: int) -> None:
    before = RECORDS[after]
    forged = hashed(replace(before, audit_id="forged", sequence=before.sequence + 1, previous_hash=before.record_hash))
    report = check(export([*RECORDS[: after + 1], forged, *RECORDS[after + 1 :]], []))
    if after == len(RECORDS) - 1:
        assert report.ok  # a record at the end is what the chain would have there: only a signature tells
        assert report.signed_through == 0
    else:
        assert report.problem is not None
        assert report.problem.sequence == forged.sequence


@given(place=st.integers(0, len(RECORDS) - 2))
def test_a_record_changed_with_its_hash_made_anew_is_named(place: int) -> None:
    records = list(RECORDS)
    records[place] = hashed(replace(records[place], result="failure"))
    report = check(export(records, []))
    assert report.problem is not None
    assert (report.problem.kind, report.problem.sequence) == ("changed", place + 1)
    assert report.problem.audit_id == RECORDS[place].audit_id


@given(place=st.integers(1, len(RECORDS) - 2))
def test_a_record_replaced_by_one_that_does_not_follow_is_named(place: int) -> None:
    records = list(RECORDS)
    records[place] = hashed(replace(records[place], previous_hash=bytes(range(32)), result="failure"))
    report = check(export(records, []))
    assert report.problem is not None
    assert (report.problem.kind, report.problem.sequence) == ("changed", place + 1)


@given(place=places)
def test_a_chain_made_anew_meets_its_checkpoints(place: int) -> None:
    records = list(RECORDS)
    records[place] = replace(records[place], result="failure")
    again = rehashed(records)
    report = check(export(again, CHECKPOINTS))
    covered = [each.sequence for each in CHECKPOINTS if each.sequence > place]
    if not covered:
        assert report.ok
        assert report.signed_through <= place
        assert not check(export(again, CHECKPOINTS), checkpoints=[pin(12)]).ok
    else:
        assert report.problem is not None
        assert (report.problem.kind, report.problem.sequence) == ("checkpoint", covered[0])


def test_checkpoints_signed_by_somebody_else_pass_only_while_no_key_is_pinned() -> None:
    records = rehashed([replace(record, result="failure") for record in RECORDS])
    forged = export(records, [make_checkpoint(records[9], 2)], [public_key(2)])
    assert check(forged).ok
    report = check(forged, keys=[public_key(1)])
    assert report.problem is not None
    assert report.problem.text == "the signature of the checkpoint of record 10 does not hold"
    assert not check(forged, checkpoints=[pin(4)]).ok


def test_a_pinned_key_without_a_name_fits_every_checkpoint() -> None:
    assert check(LINES, keys=[public_key(named=False)]).ok
    report = check(LINES, keys=[replace(public_key(), key_version=2)])
    assert report.problem is not None
    assert "which is not pinned" in report.problem.text


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_cut_end_is_found_with_a_pinned_checkpoint_alone(count: int) -> None:
    short = with_records(RECORDS[:count])
    assert check(short).ok
    report = check(short, checkpoints=[pin(10)])
    assert report.problem is not None
    assert report.problem.kind == "truncated"


def test_a_checkpoint_of_another_organization_is_no_pin() -> None:
    report = check(LINES, checkpoints=[pin(10) | {"organization_id": "33333333-3333-4333-8333-333333333333"}])
    assert report.problem is not None
    assert "another organisation" in report.problem.text


def test_a_file_that_was_cut_off_is_found() -> None:
    for count in range(len(LINES)):
        report = check(LINES[:count])
        assert report.problem is not None
        assert report.problem.kind == ("truncated" if count else "malformed")


def test_a_part_of_a_chain_hangs_on_a_pinned_checkpoint() -> None:
    part = export(RECORDS[4:], [CHECKPOINTS[1]])
    report = check(part)
    assert report.ok
    assert any("begins at record 5" in limit for limit in report.limits)
    tied = check(part, checkpoints=[pin(4)])
    assert tied.ok
    assert not any("begins at" in limit for limit in tied.limits)
    other = {"sequence": 4, "record_hash": "00" * 32}
    assert not check(part, checkpoints=[other]).ok


def test_records_of_another_organization_do_not_belong() -> None:
    foreign = make_chain(3, organization_id="33333333-3333-4333-8333-333333333333")
    assert not check(export(foreign, [])).ok


@given(st.binary(max_size=200))
def test_garbage_is_never_an_export(garbage: bytes) -> None:
    assert not check(garbage.splitlines(keepends=True)).ok
    assert not check([LINES[0], *garbage.splitlines(keepends=True), *LINES[1:]]).ok or not garbage


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(kind=st.sampled_from(["audit_export", "record", "checkpoint", "end"]), value=json_values, at=st.integers(0, 14))
def test_any_json_in_place_of_a_line_is_refused_in_words(kind: str, value: Any, at: int) -> None:
    try:
        line = canonical_json({kind: value}) + b"\n"
    except TypeError:
        return
    assume(line != LINES[at])
    report = check([*LINES[:at], line, *LINES[at + 1 :]])
    if kind == "audit_export" and at == 0 and report.ok:
        raise AssertionError("a beginning without keys")
    assert not report.ok


def test_a_checkpoint_names_everything_that_it_signs() -> None:
    assert set(checkpoint_object(CHECKPOINTS[0])) | {"signature"} == set(
        orjson.loads(export(RECORDS, CHECKPOINTS)[5])["checkpoint"]
    )
