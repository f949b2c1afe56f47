"""The standard record of minutiae: ISO/IEC 19794-2:2005, record format ("FMR", version 20).

Kept: place, direction, kind and quality of minutiae, image size and resolution, quality of the view. Cores, deltas and
other extended data are skipped when read and not written.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from servers.identity.fingerprint.template import Kind, Minutiae, Template

MAGIC: Final = b"FMR\x00 20\x00"
PER_CENTIMETRE: Final = 197
"""Pixels a centimetre at 500 an inch, as the standard rounds it."""
MAX_MINUTIAE: Final = 255
MAX_SIDE: Final = 0x3FFF
_HEADER: Final = struct.Struct(">8sIHHHHHBB")
_VIEW: Final = struct.Struct(">BBBB")
_MINUTIA: Final = struct.Struct(">HHBB")
_EXTENDED: Final = struct.Struct(">H")
_KINDS: Final = frozenset(Kind)


class RecordError(ValueError):
    """Bytes that are no record of minutiae; the text says what is wrong with them."""


def write_record(template: Template, finger: int = 0) -> bytes:
    """One view of one finger (`finger`: 0 unknown, 1 right thumb to 10 left little finger), at most its 255 best
    minutiae; places are rounded to pixels, directions to 1/256 of a turn.

    Raises:
        ValueError: No such finger, or an image or a minutia beyond 16,383 pixels.
    """
    if not 0 <= finger <= 10:
        raise ValueError(f"finger must be 0 to 10, not {finger}")
    found = template.minutiae
    best = found.take(np.sort(np.argsort(-found.quality.astype(np.int32), kind="stable")[:MAX_MINUTIAE]))
    xs, ys = np.rint(best.x).astype(np.int64), np.rint(best.y).astype(np.int64)
    for values in (xs, ys, np.array([template.width, template.height])):
        if len(values) and not 0 <= values.min() <= values.max() <= MAX_SIDE:
            raise ValueError(f"the record's places reach from 0 to {MAX_SIDE}")
    angles = np.rint(best.angle * (256 / (2 * np.pi))).astype(np.int64) % 256
    quality = round(100 * min(max(template.quality, 0.0), 1.0))
    view = _VIEW.pack(finger, 0, quality, len(best)) + b"".join(
        _MINUTIA.pack(int(kind) << 14 | int(x), int(y), int(angle), int(score))
        for kind, x, y, angle, score in zip(best.kind, xs, ys, angles, best.quality, strict=True)
    )
    body = view + _EXTENDED.pack(0)
    length = _HEADER.size + len(body)
    header = _HEADER.pack(MAGIC, length, 0, template.width, template.height, PER_CENTIMETRE, PER_CENTIMETRE, 1, 0)
    return header + body


def read_record(data: bytes) -> tuple[Template, ...]:
    """Every view in a record, places scaled to 500 pixels an inch.

    Raises:
        RecordError: Not such a record, cut short, longer than it says, or with impossible values.
    """
    if len(data) < _HEADER.size or data[:8] != MAGIC:
        raise RecordError("not an ISO/IEC 19794-2:2005 record: it must start with FMR and version 20")
    _, length, _, width, height, across, down, views, _ = _HEADER.unpack_from(data)
    if length != len(data):
        raise RecordError(f"the record says {length} bytes and has {len(data)}")
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and across and down and views):
        raise RecordError("the record must give the image's size, its resolution and at least one view")
    scale = PER_CENTIMETRE / across, PER_CENTIMETRE / down
    templates = []
    offset = _HEADER.size
    for number in range(views):
        template, offset = _read_view(data, offset, number + 1, (width, height), scale)
        templates.append(template)
    if offset != len(data):
        raise RecordError(f"{len(data) - offset} bytes after the last view")
    return tuple(templates)


def _read_view(
    data: bytes, offset: int, number: int, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[Template, int]:
    if len(data) < offset + _VIEW.size:
        raise RecordError(f"view {number} is cut short")
    _, _, quality, count = _VIEW.unpack_from(data, offset)
    start = offset + _VIEW.size
    end = start + count * _MINUTIA.size
    if len(data) < end + _EXTENDED.size:
        raise RecordError(f"view {number} says {count} minutiae and is cut short")
    (extended,) = _EXTENDED.unpack_from(data, end)
    if len(data) < end + _EXTENDED.size + extended:
        raise RecordError(f"view {number} says {extended} bytes of extended data and is cut short")
    rows = np.array(list(_MINUTIA.iter_unpack(data[start:end])), dtype=np.int64).reshape(-1, 4)
    kind, x, y = rows[:, 0] >> 14, rows[:, 0] & MAX_SIDE, rows[:, 1] & MAX_SIDE
    if not _KINDS.issuperset(kind.tolist()):
        raise RecordError(f"view {number} has a minutia of an unknown type")
    if (x >= size[0]).any() or (y >= size[1]).any():
        raise RecordError(f"view {number} has a minutia outside its image")
    if (rows[:, 3] > 100).any() or quality > 100:
        raise RecordError(f"view {number} has a quality over 100")
    minutiae = Minutiae(
        x=(x * scale[0]).astype(np.float32),
        y=(y * scale[1]).astype(np.float32),
        angle=(rows[:, 2] * (2 * np.pi / 256)).astype(np.float32),
        kind=kind.astype(np.uint8),
        quality=rows[:, 3].astype(np.uint8),
    )
    width, height = round(size[0] * scale[0]), round(size[1] * scale[1])
    return Template(width, height, minutiae, quality=quality / 100), end + _EXTENDED.size + extended
