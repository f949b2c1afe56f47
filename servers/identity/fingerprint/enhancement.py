"""Ridges made clear: every pixel under the Gabor filter of its own direction and ridge distance.

Hong, Wan and Jain, "Fingerprint image enhancement: algorithm and performance evaluation", IEEE TPAMI 20(8), 1998. Their
envelope of 4 pixels (for ridges 9 pixels apart) is kept as a ratio to the ridge distance.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from servers.identity.compiled import compiled
from servers.identity.fingerprint.grid import CELL

if TYPE_CHECKING:
    from servers.identity.compiled import Floats, Ints
    from servers.identity.fingerprint.fields import Mask, Orientation

DIRECTIONS: Final = 36
DISTANCES: Final = np.geomspace(5.0, 15.0, 14).astype(np.float32)
RADIUS: Final = 10
SPAN: Final = 2 * RADIUS + 1
HEIGHT: Final = 24
"""Rows of a filter, a multiple of 8 so that a column is a few vector instructions; those past `SPAN` are zero."""
TAPS: Final = 512
"""Weights of a filter in memory: `SPAN` columns of `HEIGHT` rows, then zeros."""
ENVELOPE: Final = 4.0 / 9.0


def enhance(flat: Floats, mask: Mask, field: Orientation, distance: Floats) -> Floats:
    """Ridges near +1, valleys near -1, outside the mask 0."""
    wide = np.pad(flat, ((RADIUS, HEIGHT - RADIUS), (RADIUS, RADIUS + 1)), mode="symmetric")
    step = float(np.log(DISTANCES[1] / DISTANCES[0]))
    nearest = np.clip(np.rint(np.log(distance / DISTANCES[0]) / step), 0, len(DISTANCES) - 1).astype(np.int32)
    return _filter(wide, mask, field.cosine, field.sine, nearest, filter_bank())


@cache
def filter_bank() -> Floats:
    """Filters by direction and ridge distance, each column after column: grey gives 0, a wave of height 1 gives 1."""
    steps = np.arange(-RADIUS, RADIUS + 1, dtype=np.float64)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    bank = np.zeros((DIRECTIONS, len(DISTANCES), TAPS), dtype=np.float32)
    for direction in range(DIRECTIONS):
        angle = np.pi * direction / DIRECTIONS
        across = y * np.cos(angle) - x * np.sin(angle)
        for index, distance in enumerate(DISTANCES):
            sigma = ENVELOPE * float(distance)
            envelope = np.exp(-(x**2 + y**2) / (2 * sigma * sigma))
            wave = np.cos(2 * np.pi * across / float(distance))
            kernel = envelope * wave
            kernel -= envelope * (kernel.sum() / envelope.sum())
            columns = np.zeros((SPAN, HEIGHT))
            columns[:, :SPAN] = (kernel / (kernel * wave).sum()).T
            bank[direction, index, : columns.size] = columns.ravel()
    return bank


@compiled
def _filter(wide: Floats, mask: Mask, cosine: Floats, sine: Floats, nearest: Ints, bank: Floats) -> Floats:
    rows, columns = mask.shape
    clear = np.zeros((rows * CELL, columns * CELL), dtype=np.float32)
    # The strip holds the rows around one row of pixels, column after column: what a filter covers lies in one piece.
    strip = np.zeros((wide.shape[1] + 1) * HEIGHT, dtype=np.float32)
    for y in range(rows * CELL):
        row = y // CELL
        if not mask[row].any():
            continue
        for p in range(HEIGHT):
            for x in range(wide.shape[1]):
                strip[x * HEIGHT + p] = wide[y + p, x]
        v = min(max((y + 0.5) / CELL - 0.5, 0.0), rows - 1.0)
        top = int(v)
        below = min(top + 1, rows - 1)
        b = np.float32(v - top)
        for x in range(columns * CELL):
            column = x // CELL
            if not mask[row, column]:
                continue
            u = min(max((x + 0.5) / CELL - 0.5, 0.0), columns - 1.0)
            left = int(u)
            right = min(left + 1, columns - 1)
            a = np.float32(u - left)
            c = (1 - b) * ((1 - a) * cosine[top, left] + a * cosine[top, right]) + b * (
                (1 - a) * cosine[below, left] + a * cosine[below, right]
            )
            s = (1 - b) * ((1 - a) * sine[top, left] + a * sine[top, right]) + b * (
                (1 - a) * sine[below, left] + a * sine[below, right]
            )
            turn = np.arctan2(s, c) / np.float32(2 * np.pi)
            weights = bank[int(np.floor(turn * DIRECTIONS + np.float32(0.5))) % DIRECTIONS, nearest[row, column]]
            pixels = strip[x * HEIGHT : x * HEIGHT + len(weights)]
            total = np.float32(0.0)
            for k in range(len(weights)):
                total += weights[k] * pixels[k]
            clear[y, x] = total
    return clear
