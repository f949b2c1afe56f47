"""Standard minutiae records: what is written is read again, and what is broken is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.identity.fingerprint.iso19794 import MAX_MINUTIAE, RecordError, read_record, write_record
from servers.identity.fingerprint.template import Kind, Minutiae, Template

MINUTIA = st.tuples(
    st.integers(0, 499), st.integers(0, 399), st.integers(0, 255), st.sampled_from(Kind), st.integers(0, 100)
)
HEADER = struct.Struct(">4s4sIHHHHHBB")


def _template(rows: list[tuple[int, int, int, Kind, int]], quality: float = 0.5) -> Template:
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Template(
        width=500,
        height=400,
        minutiae=Minutiae(
            x=columns[:, 0].astype(np.float32),
            y=columns[:, 1].astype(np.float32),
            angle=(columns[:, 2] * 2 * np.pi / 256).astype(np.float32),
            kind=columns[:, 3].astype(np.uint8),
            quality=columns[:, 4].astype(np.uint8),
        ),
        quality=quality,
    )


@given(rows=st.lists(MINUTIA, max_size=60), quality=st.integers(0, 100), finger=st.integers(0, 10))
def test_a_record_holds_what_was_written(
    rows: list[tuple[int, int, int, Kind, int]], quality: int, finger: int
) -> None:
    template = _template(rows, quality / 100)
    data = write_record(template, finger)
    (read,) = read_record(data)
    assert (read.width, read.height, round(100 * read.quality)) == (500, 400, quality)
    for name in ("x", "y", "kind", "quality"):
        assert np.array_equal(getattr(read.minutiae, name), getattr(template.minutiae, name))
    assert np.allclose(read.minutiae.angle, template.minutiae.angle, atol=1e-5)
    assert write_record(read, finger) == data


@given(rows=st.lists(MINUTIA, min_size=1, max_size=20))
def test_the_bytes_are_those_of_the_standard(rows: list[tuple[int, int, int, Kind, int]]) -> None:
    """Read field by field as the standard's tables list them, by code of its own."""
    data = write_record(_template(rows), finger=7)
    name, version, length, device, width, height, across, down, views, reserved = HEADER.unpack(data[:24])
    assert (name, version, length) == (b"FMR\0", b" 20\0", len(data))
    assert (device, width, height, across, down, views, reserved) == (0, 500, 400, 197, 197, 1, 0)
    assert tuple(data[24:28]) == (7, 0, 50, len(rows))
    for number, (x, y, angle, kind, quality) in enumerate(rows):
        field = data[28 + 6 * number : 34 + 6 * number]
        bits = int.from_bytes(field, "big")
        assert bits >> 46 == kind
        assert bits >> 32 & 0x3FFF == x
        assert bits >> 30 & 3 == 0
        assert bits >> 16 & 0x3FFF == y
        assert bits >> 8 & 0xFF == angle
        assert bits & 0xFF == quality
    assert data[28 + 6 * len(rows) :] == b"\0\0"


def test_other_resolutions_are_scaled_and_extended_data_is_skipped() -> None:
    view = bytes([1, 0, 80, 1]) + struct.pack(">HHBB", 1 << 14 | 100, 50, 64, 90) + struct.pack(">H", 5) + b"extra"
    data = HEADER.pack(b"FMR\0", b" 20\0", 24 + 2 * len(view), 0, 400, 300, 394, 394, 2, 0) + 2 * view
    first, second = read_record(data)
    assert (first.width, first.height) == (200, 150)
    assert (first.minutiae.x[0], first.minutiae.y[0]) == (50, 25)
    assert first.minutiae.angle[0] == pytest.approx(np.pi / 2)
    assert np.array_equal(first.minutiae.x, second.minutiae.x)


def test_only_the_best_are_kept_where_there_are_too_many() -> None:
    rows = [(i % 500, i // 500, 0, Kind.ENDING, 100 if i >= 45 else 1) for i in range(300)]
    (read,) = read_record(write_record(_template(rows)))
    assert len(read.minutiae) == MAX_MINUTIAE
    assert (read.minutiae.quality == 100).all()


def test_what_does_not_fit_the_record_is_refused() -> None:
    with pytest.raises(ValueError, match="finger"):
        write_record(_template([]), finger=11)
    far = _template([(499, 0, 0, Kind.ENDING, 1)])
    with pytest.raises(ValueError, match="16383"):
        write_record(Template(20_000, 400, far.minutiae))


GOOD = write_record(_template([(10, 20, 30, Kind.ENDING, 40), (50, 60, 70, Kind.BIFURCATION, 80)]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an ISO"),
        (b"FMR\0 30\0" + GOOD[8:], "not an ISO"),
        (GOOD[:-1], "bytes and has"),
        (GOOD + b"\0", "bytes and has"),
        (GOOD[:14] + b"\0\0" + GOOD[16:], "size"),
        (GOOD[:27] + b"\xff" + GOOD[28:], "cut short"),
        (GOOD[:-2] + b"\0\1", "cut short"),
        (GOOD[:28] + b"\xff" + GOOD[29:], "unknown type"),
        (GOOD[:28] + b"\x7f\xff" + GOOD[30:], "outside"),
        (GOOD[:33] + b"\xff" + GOOD[34:], "quality"),
    ],
)
def test_a_broken_record_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_record(data)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6),
    keep=st.integers(0, len(GOOD)),
)
def test_damage_is_read_or_refused(changes: list[tuple[int, int]], keep: int) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    data = data[:keep]
    if keep >= 12:
        data[8:12] = struct.pack(">I", len(data))
    try:
        templates = read_record(bytes(data))
    except RecordError:
        return
    assert all(0 <= template.quality <= 1 for template in templates)
