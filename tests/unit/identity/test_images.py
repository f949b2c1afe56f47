"""Pictures from outside are read within limits or refused with a reason."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from servers.identity.fingerprint.extractor import MAX_PIXELS, CaptureError, extract
from servers.identity.images import MAX_BYTES, ImageError, ImageProblem, decode_grey
from tests.support.fingerprints import encoded, finger


def _png(width: int, height: int, depth: int = 8, data: bytes = b"", colour: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    into = BytesIO()
    picture.save(into, format=kind, **options)
    return into.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_an_image_comes_back_as_it_was(kind: str) -> None:
    image = finger(1).image
    assert np.array_equal(decode_grey(encoded(image, kind)), image)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", ImageProblem.NOT_AN_IMAGE),
        (b"not an image at all", ImageProblem.NOT_AN_IMAGE),
        (b"GIF89a\x01\x00\x01\x00", ImageProblem.NOT_AN_IMAGE),
        (b"\x89PNG\r\n\x1a\n", ImageProblem.NOT_AN_IMAGE),
        (bytes(MAX_BYTES + 1), ImageProblem.TOO_MANY_BYTES),
        (_png(10_000, 10_000), ImageProblem.TOO_MANY_PIXELS),
        (_png(60_000, 60_000), ImageProblem.TOO_MANY_PIXELS),
        (_png(64, 64, data=zlib.compress(bytes(100))), ImageProblem.DAMAGED),
        (_png(64, 64, depth=16, data=zlib.compress(bytes(64 * 129))), ImageProblem.DEPTH),
        (_png(64, 64, depth=16, data=zlib.compress(bytes(64 * 385)), colour=2), ImageProblem.DEPTH),
        (_saved(Image.new("CMYK", (64, 64)), "JPEG"), ImageProblem.COLOUR_MODEL),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, problem: ImageProblem) -> None:
    with pytest.raises(ImageError) as refused:
        decode_grey(data)
    assert refused.value.problem is problem


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    data = encoded(finger(1).image, kind)
    with pytest.raises(ImageError) as refused:
        decode_grey(data[: len(data) // 2])
    assert refused.value.problem is ImageProblem.DAMAGED


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    bomb = _png(10_000, 10_000, data=zlib.compress(bytes(10_000 * 10_001), 9))
    assert len(bomb) < 200_000
    tracemalloc.start()
    started = time.thread_time()
    with pytest.raises(ImageError, match="25 megapixels"):
        decode_grey(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert time.thread_time() - started < 0.5


def test_the_picture_is_turned_as_its_exif_says() -> None:
    picture = Image.new("L", (40, 20), 0)
    picture.paste(255, (0, 0, 10, 20))
    tags = Image.Exif()
    tags[0x0112] = 6
    upright = decode_grey(_saved(picture, "JPEG", exif=tags, quality=95))
    assert upright.shape == (40, 20)
    assert upright[:8].mean() > 240
    assert upright[12:].mean() < 15


def test_what_is_transparent_is_white() -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decode_grey(_saved(picture, "PNG")) == 255).all()


def test_colours_become_grey() -> None:
    grey = decode_grey(_saved(Image.new("RGB", (8, 8), (255, 0, 0)), "PNG"))
    assert grey.shape == (8, 8)
    assert grey[0, 0] == 76


@settings(max_examples=150, deadline=2_000, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    keep=st.floats(0.1, 1),
    head=st.booleans(),
)
def test_damaged_files_are_read_or_refused(
    kind: str, changes: list[tuple[float, int]], keep: float, head: bool
) -> None:
    data = bytearray(encoded(finger(1).image[100:240, 60:200], kind))
    for place, value in changes:
        # Half of the runs damage the header alone: that is where sizes and depths are.
        data[int(place * (min(len(data), 200 if head else len(data)) - 1))] = value
    try:
        extract(decode_grey(bytes(data[: max(1, int(keep * len(data)))]), MAX_PIXELS))
    except (ImageError, CaptureError) as refused:
        assert str(refused)  # noqa: PT017 - what is refused is refused with a reason; what is read is fine too
