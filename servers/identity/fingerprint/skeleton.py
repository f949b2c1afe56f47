"""Ridges one pixel wide, and the walk along them.

Pixels are taken away from the north, south, west and east in turn as long as that parts, joins or shortens nothing:
sequential thinning by simple points (Rosenfeld, "Connectivity in digital pictures", JACM 17(1), 1970; connectivity
number of Yokoi, Toriwaki and Fukumura, 1975).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from servers.identity.compiled import compiled
from servers.identity.fingerprint.grid import CELL

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes, Floats, Ints
    from servers.identity.fingerprint.fields import Mask

# The eight neighbours from the east, anticlockwise on the screen.
_DY: Final = (0, -1, -1, -1, 0, 1, 1, 1)
_DX: Final = (1, 1, 0, -1, -1, -1, 0, 1)
Places = npt.NDArray[np.intp]

# Of the neighbours: north, south, west, east.
_SIDES: Final = (2, 6, 4, 0)


def skeleton(clear: Floats, mask: Mask) -> Bytes:
    """1 on the middle line of each ridge, else 0; the outermost pixels are 0."""
    inside = np.kron(mask, np.ones((CELL, CELL), dtype=np.bool_))
    ridges = ((clear > 0) & inside).astype(np.uint8)
    ridges[[0, -1]] = 0
    ridges[:, [0, -1]] = 0
    _thin(ridges, _removable())
    return ridges


@cache
def _removable() -> Bytes:
    """For each of the 256 neighbourhoods: may the pixel go?"""
    table = np.zeros(256, dtype=np.uint8)
    for code in range(256):
        empty = [1 - (code >> k & 1) for k in range(8)]
        pieces = sum(empty[k] - empty[k] * empty[k + 1] * empty[(k + 2) % 8] for k in (0, 2, 4, 6))
        table[code] = pieces == 1 and sum(empty) < 7
    return table


@compiled
def neighbours(image: Bytes, y: int, x: int) -> int:
    """Bits of the eight neighbours that are set: bit 0 east, bit 2 north, bit 4 west, bit 6 south."""
    code = 0
    for k in range(8):
        if image[y + _DY[k], x + _DX[k]]:
            code |= 1 << k
    return code


@compiled
def crossings(image: Bytes, y: int, x: int) -> int:
    """How many ridges leave the pixel: 1 an ending, 2 along a ridge, 3 a bifurcation (Rutovitz's crossing number)."""
    changes = 0
    for k in range(8):
        here = image[y + _DY[k], x + _DX[k]]
        there = image[y + _DY[(k + 1) % 8], x + _DX[(k + 1) % 8]]
        changes += here != there
    return changes // 2


@compiled
def _thin(image: Bytes, removable: Bytes) -> None:
    ys, xs = np.nonzero(image)
    marked = np.empty(len(ys), dtype=np.int32)
    count = len(ys)
    changed = True
    while changed:
        changed = False
        for side in _SIDES:
            changed |= _peel(image, removable, side, ys[:count], xs[:count], marked)
            kept = 0
            for i in range(count):
                if image[ys[i], xs[i]]:
                    ys[kept], xs[kept] = ys[i], xs[i]
                    kept += 1
            count = kept


@compiled
def _peel(image: Bytes, removable: Bytes, side: int, ys: Places, xs: Places, marked: Ints) -> bool:
    """Take away what may go of the pixels with nothing on that side."""
    border = 0
    for i in range(len(ys)):
        if not image[ys[i] + _DY[side], xs[i] + _DX[side]]:
            marked[border] = i
            border += 1
    changed = False
    for j in range(border):
        y, x = ys[marked[j]], xs[marked[j]]
        if removable[neighbours(image, y, x)]:
            image[y, x] = 0
            changed = True
    return changed


@compiled
def walk(image: Bytes, from_y: int, from_x: int, y: int, x: int, steps: int, path: Ints) -> int:
    """Follow the ridge that leaves (from_y, from_x) by (y, x) until it ends or forks, at most `steps` pixels. The
    pixels walked go into `path` (y, x; at least `steps` rows). Returns how many there are.
    """
    before_y, before_x = from_y, from_x
    length = 0
    while True:
        path[length, 0], path[length, 1] = y, x
        length += 1
        if length >= steps or crossings(image, y, x) != 2:
            return length
        next_y, next_x, nearest = -1, -1, 9
        for k in range(8):
            ny, nx = y + _DY[k], x + _DX[k]
            if not image[ny, nx] or (ny == before_y and nx == before_x) or (ny == from_y and nx == from_x):
                continue
            if length >= 2 and ny == path[length - 2, 0] and nx == path[length - 2, 1]:
                continue
            # Side by side before corner to corner: the skeleton may step around a corner.
            apart = abs(ny - y) + abs(nx - x)
            # Not back beside where the walk came from.
            if abs(ny - before_y) <= 1 and abs(nx - before_x) <= 1:
                apart += 4
            if apart < nearest:
                next_y, next_x, nearest = ny, nx, apart
        if next_y < 0:
            return length
        before_y, before_x = y, x
        y, x = next_y, next_x
