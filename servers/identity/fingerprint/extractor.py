"""From the image of a finger to its template, with everything seen on the way for whoever must explain it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from servers.identity.fingerprint.enhancement import enhance
from servers.identity.fingerprint.fields import MIN_DEVIATION, Mask, Orientation, orientation, segment, wavelengths
from servers.identity.fingerprint.grid import CELL, cell_statistics, normalised, padded, smooth
from servers.identity.fingerprint.minutiae import find_minutiae
from servers.identity.fingerprint.singularities import classify, find_singularities
from servers.identity.fingerprint.skeleton import skeleton
from servers.identity.fingerprint.template import Template

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes, Floats

MIN_SIDE: Final = 90
"""Pixels: under 5 mm at 500 an inch there is no finger."""
MAX_PIXELS: Final = 2_500_000
"""One finger at 500 an inch has under 0.8 million; beyond this it is lost in the image, or the resolution is wrong."""
MIN_CELLS: Final = 120
"""Cells of ridges, about 0.2 square centimetres; a fingertip has 600 to 1,200."""
MIN_MINUTIAE: Final = 8
"""Fewer cannot be told from chance (courts ask for 8 to 17)."""
WHOLE_FINGER_CELLS: Final = 900
CLEAR: Final = 0.3
"""Likeness of a cell to a clear wave below which it is taken for no ridge at all."""


class CaptureProblem(StrEnum):
    """Why an image gives no template."""

    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    BLANK = "blank"
    PARTIAL = "partial"
    UNCLEAR = "unclear"


class CaptureError(ValueError):
    """An image that gives no template; the text says why and what to do."""

    def __init__(self, problem: CaptureProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, eq=False)
class Extraction:
    """A template and the fields that led to it, in cells of `grid.CELL` pixels, or in pixels of the padded image."""

    template: Template
    mask: Mask
    field: Orientation
    distance: Floats
    quality: Floats
    clear: Floats
    skeleton: Bytes


def extract(image: Bytes) -> Extraction:
    """Read one finger: dark ridges on light ground, 500 pixels an inch, grey.

    Raises:
        CaptureError: Too small or too large an image, no ridges, too few of them, or too few minutiae.
    """
    _check_size(image)
    whole = padded(image)
    mean, square = cell_statistics(whole)
    mask = segment(_deviation(mean, square))
    if mask.sum() < MIN_CELLS:
        raise _no_finger(mask)
    mean, square = smooth(mean, 1.5), smooth(square, 1.5)
    flat = normalised(whole, mean, np.maximum(_deviation(mean, square), np.float32(MIN_DEVIATION)))
    # The first pass finds the flow over noise, the second follows it closely.
    rough = orientation(flat, mask, 1.6)
    distance = wavelengths(flat, mask, rough)
    first = enhance(flat, mask, rough, distance)
    field = orientation(first, mask, 0.8)
    clear = enhance(first, mask, field, distance)
    quality = _likeness(flat, clear)
    mask = mask & (quality > CLEAR)
    if mask.sum() < MIN_CELLS:
        raise CaptureError(CaptureProblem.UNCLEAR, "no clear ridges; clean finger and sensor, then press evenly")
    lines = skeleton(clear, mask)
    minutiae = find_minutiae(lines, mask, quality)
    if len(minutiae) < MIN_MINUTIAE:
        raise CaptureError(
            CaptureProblem.PARTIAL,
            f"only {len(minutiae)} minutiae, {MIN_MINUTIAE} are needed; show more of the fingertip",
        )
    cores, deltas = find_singularities(orientation(first, mask, 2.0), mask)
    coverage = min(1.0, float(mask.sum()) / WHOLE_FINGER_CELLS)
    template = Template(
        width=image.shape[1],
        height=image.shape[0],
        minutiae=minutiae,
        cores=cores,
        deltas=deltas,
        pattern=classify(cores, deltas, coverage),
        quality=_overall(quality, mask, coverage, len(minutiae)),
    )
    return Extraction(template, mask, field, distance, quality, clear, lines)


def _check_size(image: Bytes) -> None:
    rows, columns = image.shape
    if min(rows, columns) < MIN_SIDE:
        raise CaptureError(
            CaptureProblem.TOO_SMALL,
            f"the image is {columns} by {rows} pixels; at 500 an inch a finger needs at least {MIN_SIDE} a side",
        )
    if rows * columns > MAX_PIXELS:
        raise CaptureError(
            CaptureProblem.TOO_LARGE,
            f"the image is {columns} by {rows} pixels; cut it to one finger and scale it to 500 pixels an inch",
        )


def _no_finger(mask: Mask) -> CaptureError:
    if mask.sum() < MIN_CELLS / 4:
        return CaptureError(CaptureProblem.BLANK, "no finger in the image; lay the finger flat on the sensor")
    return CaptureError(CaptureProblem.PARTIAL, "too little of the finger; lay the whole fingertip on the sensor")


def _deviation(mean: Floats, square: Floats) -> Floats:
    return np.sqrt(np.maximum(square - mean * mean, np.float32(0.0))).astype(np.float32)


def _likeness(flat: Floats, clear: Floats) -> Floats:
    """Correlation around each cell of the image with its enhanced ridges: 1 a clear wave, 0 none."""
    rows, columns = flat.shape

    def average(values: Floats) -> Floats:
        cells = values.reshape(rows // CELL, CELL, columns // CELL, CELL).mean(axis=(1, 3), dtype=np.float32)
        return smooth(cells, 1.0)

    strength = np.sqrt(average(flat * flat) * average(clear * clear) + np.float32(1e-6))
    likeness: Floats = np.clip(average(flat * clear) / strength, 0.0, 1.0).astype(np.float32)
    return likeness


def _overall(quality: Floats, mask: Mask, coverage: float, minutiae: int) -> float:
    """Clearness of the ridges, how much of the finger is there and how many minutiae, 0 to 1 each, multiplied."""
    clearness = float(quality[mask].mean())
    return float(clearness * coverage**0.5 * min(1.0, minutiae / 20) ** 0.5)
