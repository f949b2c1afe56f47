"""What lies around each minutia, as bits: the Minutia Cylinder-Code.

Cappelli, Ferrara and Maltoni, "Minutia Cylinder-Code: a new representation and matching technique for fingerprint
recognition", IEEE TPAMI 32(12), 2010; its bit variant with 16 by 16 by 6 cells and the paper's parameters (MCC16b).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import erf
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from servers.identity.compiled import compiled

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes, Floats, Ints, Words
    from servers.identity.fingerprint.template import Minutiae

RADIUS: Final = 70.0
"""Pixels around a minutia that its cylinder covers."""
SIDE: Final = 16
LAYERS: Final = 6
CELLS: Final = 208
"""Cells of a layer, `SIDE` by `SIDE`, whose middle lies within `RADIUS`."""
SIGMA_PLACE: Final = 28 / 3
SIGMA_ANGLE: Final = 2 * np.pi / 9
OCCUPIED: Final = 0.01
MARGIN: Final = 50.0
"""Pixels beyond the minutiae's convex hull where a lack of minutiae still means something."""
MIN_VALID: Final = 0.75
MIN_NEIGHBOURS: Final = 2
WORDS: Final = SIDE * SIDE // 64
_ANGLE_STEPS: Final = 256


@dataclass(frozen=True, eq=False)
class Cylinders:
    """Cylinders of the minutiae that have enough around them.

    `places` has a row of x, y (upwards) and angle for each, `sources` its position among the template's minutiae;
    `hull` holds the corners around all of the template's minutiae. `bits` is minutia by layer by word, `valid` minutia
    by word: bit `j` of word `i` is the cell `64 * i + j` of the square around the minutia, turned into its direction.
    """

    places: Floats
    bits: Words
    valid: Words
    hull: npt.NDArray[np.float64]
    sources: Ints

    def __len__(self) -> int:
        return len(self.places)


def describe(minutiae: Minutiae) -> Cylinders:
    """Describe each minutia by those around it."""
    x, y, angle = minutiae.x, -minutiae.y, minutiae.angle
    hull = _convex_hull(np.column_stack((x, y)).astype(np.float64))
    bits, valid, usable = _fill(x, y, angle, hull, _angle_table())
    kept = np.nonzero(usable)[0]
    places = np.column_stack((x, y, angle)).astype(np.float32)[kept]
    return Cylinders(places, bits[kept], valid[kept], hull, kept.astype(np.int32))


@cache
def _angle_table() -> Floats:
    """Part of a Gaussian around each of 256 angles that falls into each layer."""
    half = np.pi / LAYERS
    table = np.zeros((_ANGLE_STEPS, LAYERS), dtype=np.float32)
    for step in range(_ANGLE_STEPS):
        for layer in range(LAYERS):
            centre = -np.pi + (2 * layer + 1) * half
            away = (centre - 2 * np.pi * step / _ANGLE_STEPS + np.pi) % (2 * np.pi) - np.pi
            scale = SIGMA_ANGLE * np.sqrt(2)
            table[step, layer] = (erf((away + half) / scale) - erf((away - half) / scale)) / 2
    return table


def _convex_hull(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Corners of the convex hull, anticlockwise (Andrew's monotone chain)."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(run: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        corners: list[tuple[float, ...]] = []
        for point in run:
            while len(corners) > 1 and _turn(corners[-2], corners[-1], point) <= 0:
                corners.pop()
            corners.append(point)
        return corners[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]) or ordered[:1], dtype=np.float64).reshape(-1, 2)


def _turn(a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


@compiled
def _near_hull(px: float, py: float, hull: npt.NDArray[np.float64]) -> bool:
    """Is the point in the hull or at most `MARGIN` away from it?"""
    inside = True
    nearest = 1e18
    count = len(hull)
    for i in range(count):
        ax, ay = hull[i, 0], hull[i, 1]
        bx, by = hull[(i + 1) % count, 0], hull[(i + 1) % count, 1]
        dx, dy = bx - ax, by - ay
        if dx * (py - ay) - dy * (px - ax) < 0:
            inside = False
        t = min(max(((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy + 1e-12), 0.0), 1.0)
        nearest = min(nearest, (ax + t * dx - px) ** 2 + (ay + t * dy - py) ** 2)
    return (inside and count > 2) or nearest <= MARGIN * MARGIN


@compiled
def _fill(
    x: Floats, y: Floats, angle: Floats, hull: npt.NDArray[np.float64], table: Floats
) -> tuple[Words, Words, Bytes]:
    count = len(x)
    bits = np.zeros((count, LAYERS, WORDS), dtype=np.uint64)
    valid = np.zeros((count, WORDS), dtype=np.uint64)
    usable = np.zeros(count, dtype=np.uint8)
    step = 2 * RADIUS / SIDE
    for m in range(count):
        apart = (x - x[m]) ** 2 + (y - y[m]) ** 2
        apart[m] = np.inf
        around = np.nonzero(apart <= (RADIUS + 3 * SIGMA_PLACE) ** 2)[0]
        if len(around) < MIN_NEIGHBOURS:
            continue
        near_x, near_y, near_angle = x[around], y[around], angle[around]
        cos, sin = np.cos(angle[m]), np.sin(angle[m])
        in_hull = 0
        for cell in range(SIDE * SIDE):
            u = (cell // SIDE - (SIDE - 1) / 2) * step
            v = (cell % SIDE - (SIDE - 1) / 2) * step
            px, py = x[m] + cos * u - sin * v, y[m] + sin * u + cos * v
            if u * u + v * v > RADIUS * RADIUS or not _near_hull(px, py, hull):
                continue
            in_hull += 1
            bit = np.uint64(1) << np.uint64(cell % 64)
            valid[m, cell // 64] |= bit
            sums = _contributions(px, py, angle[m], near_x, near_y, near_angle, table)
            for layer in range(LAYERS):
                if sums[layer] >= OCCUPIED:
                    bits[m, layer, cell // 64] |= bit
        usable[m] = in_hull >= MIN_VALID * CELLS
    return bits, valid, usable


@compiled
def _contributions(px: float, py: float, toward: float, x: Floats, y: Floats, angle: Floats, table: Floats) -> Floats:
    """What the minutiae around add to the layers of the cell at (px, py)."""
    sums = np.zeros(LAYERS, dtype=np.float32)
    for t in range(len(x)):
        apart = (x[t] - px) ** 2 + (y[t] - py) ** 2
        if apart > (3 * SIGMA_PLACE) ** 2:
            continue
        place = np.exp(-apart / (2 * SIGMA_PLACE**2)) / (SIGMA_PLACE * np.sqrt(2 * np.pi))
        turned = int(np.rint((toward - angle[t]) * (_ANGLE_STEPS / (2 * np.pi)))) % _ANGLE_STEPS
        for layer in range(LAYERS):
            sums[layer] += place * table[turned, layer]
    return sums
