"""Pictures as they come from outside: read within limits, or refused with what to do about it."""

from __future__ import annotations

import io
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pathlib import Path

    from servers.identity.compiled import Bytes

MAX_BYTES: Final = 8 * 1024 * 1024
"""As the contract's `BiometricCapture.data`."""
MAX_PIXELS: Final = 25_000_000
"""As the contract says. Grey, that is 25 MB; in colour, while it is decoded, 100 MB."""
_FORMATS: Final = ("PNG", "JPEG", "BMP")
_DEEP: Final = ("I", "F")


class ImageProblem(StrEnum):
    """Why a picture was refused."""

    TOO_MANY_BYTES = "too_many_bytes"
    NOT_AN_IMAGE = "not_an_image"
    DAMAGED = "damaged"
    TOO_MANY_PIXELS = "too_many_pixels"
    DEPTH = "depth"
    COLOUR_MODEL = "colour_model"


class ImageError(ValueError):
    """A picture that cannot be used; the text says why and what to do."""

    def __init__(self, problem: ImageProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


def decode_grey(data: bytes, max_pixels: int = MAX_PIXELS) -> Bytes:
    """Pixels of a PNG, JPEG or BMP: rows by columns, 0 black to 255 white, turned upright as its EXIF says, transparent
    parts white. Size and depth are checked before anything is unpacked.

    Raises:
        ImageError: Not such a picture, damaged, too large, over 8 bits a channel, or CMYK.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(
            ImageProblem.TOO_MANY_BYTES, f"the image has over {MAX_BYTES // 2**20} MiB; send a smaller one"
        )
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # A warning is raised only where warnings are errors; the check below has the lower limit.
        raise _too_many_pixels(max_pixels) from error
    except Exception as error:  # Pillow's readers raise anything on damaged headers
        raise ImageError(ImageProblem.NOT_AN_IMAGE, "not an image that can be read; send a PNG, JPEG or BMP") from error
    with picture:
        if picture.width * picture.height > max_pixels:
            raise _too_many_pixels(max_pixels)
        if picture.mode.startswith(_DEEP) or _sixteen_bits(picture):
            raise ImageError(ImageProblem.DEPTH, "the image has over 8 bits a channel; convert it to 8 bits")
        if picture.mode == "CMYK":
            raise ImageError(ImageProblem.COLOUR_MODEL, "the image is CMYK, meant for print; convert it to grey or RGB")
        try:
            return _grey(picture)
        except Exception as error:  # as above: a damaged body shows itself in many ways
            raise ImageError(ImageProblem.DAMAGED, "the image is damaged or cut short; send the whole file") from error


def decode_file(path: Path, max_pixels: int = MAX_PIXELS) -> Bytes:
    """As `decode_grey`, from a file, of which no more is read than may be used.

    Raises:
        ImageError: As `decode_grey`.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return decode_grey(file.read(MAX_BYTES + 1), max_pixels)


def _sixteen_bits(picture: Image.Image) -> bool:
    """Pillow would drop half of a coloured PNG's 16 bits in silence; how it means to read the file tells."""
    return picture.format == "PNG" and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def _grey(picture: Image.Image) -> Bytes:
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if "A" in upright.getbands() or "transparency" in upright.info:
        opaque = upright.convert("RGBA")
        upright = Image.new("RGBA", opaque.size, "white")
        upright.alpha_composite(opaque)
    return np.asarray(upright.convert("L"), dtype=np.uint8)


def _too_many_pixels(limit: int) -> ImageError:
    return ImageError(
        ImageProblem.TOO_MANY_PIXELS, f"the image has over {limit / 1e6:g} megapixels; send a smaller one"
    )
