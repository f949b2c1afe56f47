"""Minutiae from the skeleton: where ridges end and fork, without those that noise, gaps and the border make.

Crossing numbers on the skeleton; the clean-up follows Maltoni, Maio, Jain and Feng, "Handbook of Fingerprint
Recognition", 3rd edition (2022), section 3.7: spurs, islands, lakes, bridges, gaps and what lies at the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from servers.identity.compiled import compiled
from servers.identity.fingerprint.grid import CELL
from servers.identity.fingerprint.skeleton import crossings, neighbours, walk
from servers.identity.fingerprint.template import Minutiae

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes, Floats, Ints
    from servers.identity.fingerprint.fields import Mask

SPUR: Final = 10
"""Pixels, about a ridge distance: a shorter branch is a spur, a shorter ridge between forks a bridge."""
ISLAND: Final = 14
REACH: Final = 14
"""Pixels of ridge that give a minutia its direction."""
GAP: Final = 16.0
"""Pixels: two of a kind that face away from each other nearer than this are a broken ridge or a bridge."""
CLOSE: Final = 6.0
"""Pixels: nearer than two ridges can be, both are noise."""
_DY: Final = (0, -1, -1, -1, 0, 1, 1, 1)
_DX: Final = (1, 1, 0, -1, -1, -1, 0, 1)
_MOST: Final = 2048
_NONE: Final = -9.0


def find_minutiae(skeleton: Bytes, mask: Mask, quality: Floats) -> Minutiae:
    """Minutiae of a skeleton, best first. `quality` is 0 to 1 for each cell; minutiae in its border cells are dropped.

    The skeleton is cleaned in place.
    """
    _prune(skeleton)
    found = _detect(skeleton)
    y, x = found[:, 0], found[:, 1]
    cells = (y // CELL).astype(np.intp), (x // CELL).astype(np.intp)
    inner = eroded(mask)[cells]
    kept = found[inner & _plausible(found)]
    score = quality[(kept[:, 0] // CELL).astype(np.intp), (kept[:, 1] // CELL).astype(np.intp)]
    order = np.argsort(-score, kind="stable")
    kept, score = kept[order], score[order]
    return Minutiae(
        x=kept[:, 1].copy(),
        y=kept[:, 0].copy(),
        angle=np.mod(kept[:, 2], np.float32(2 * np.pi)),
        kind=kept[:, 3].astype(np.uint8),
        quality=np.clip(np.rint(100 * score), 1, 100).astype(np.uint8),
    )


def eroded(mask: Mask) -> Mask:
    """The mask without the cells that touch its border, corners included."""
    wide = np.pad(mask, 1)
    rows, columns = mask.shape
    inner = mask.copy()
    for y in range(3):
        for x in range(3):
            inner &= wide[y : y + rows, x : x + columns]
    return inner


@compiled
def _prune(image: Bytes) -> None:
    """Take away spurs (short branches that end) and islands (short ridges with two ends)."""
    path = np.empty((ISLAND, 2), dtype=np.int32)
    ys, xs = np.nonzero(image)
    for i in range(len(ys)):
        y, x = int(ys[i]), int(xs[i])
        ways = crossings(image, y, x) if image[y, x] else 2
        if ways == 0:
            image[y, x] = 0
        if ways != 1:
            continue
        code = neighbours(image, y, x)
        k = 0
        while not code >> k & 1:
            k += 1
        length = walk(image, y, x, y + _DY[k], x + _DX[k], ISLAND, path)
        goes_to = crossings(image, path[length - 1, 0], path[length - 1, 1])
        spur = goes_to >= 3 and length < SPUR
        if spur or (goes_to <= 1 and length < ISLAND):
            image[y, x] = 0
            for step in range(length - spur):
                image[path[step, 0], path[step, 1]] = 0


@compiled
def _detect(image: Bytes) -> Floats:
    """Rows of y, x, angle, kind for all endings and forks of plausible shape."""
    found = np.empty((_MOST, 4), dtype=np.float32)
    ends = np.empty((3, 2), dtype=np.float32)
    lengths = np.empty(3, dtype=np.int32)
    ys, xs = np.nonzero(image)
    count = 0
    for i in range(len(ys)):
        y, x = int(ys[i]), int(xs[i])
        ways = crossings(image, y, x)
        if count == _MOST or ways not in (1, 3) or _branches(image, y, x, ends, lengths) != ways:
            continue
        angle = _NONE
        if ways == 3:
            angle = _fork(y, x, ends, lengths)
        elif lengths[0] >= SPUR // 2:
            angle = float(np.arctan2(y - ends[0, 0], ends[0, 1] - x))
        if angle != _NONE:
            found[count, 0], found[count, 1], found[count, 2] = y, x, angle
            found[count, 3] = 1 if ways == 1 else 2
            count += 1
    return found[:count]


@compiled
def _branches(image: Bytes, y: int, x: int, ends: Floats, lengths: Ints) -> int:
    """Follow up to three ridges from a pixel: where each got (y, x) and after how many pixels. Returns their number."""
    path = np.empty((REACH, 2), dtype=np.int32)
    code = neighbours(image, y, x)
    branches = 0
    for k in range(8):
        # Of neighbours in a row only the one beside starts a branch, not the corner next to it.
        corner = k % 2 == 1 and (code >> (k - 1) & 1 or code >> ((k + 1) % 8) & 1)
        if not code >> k & 1 or corner or branches == 3:
            continue
        lengths[branches] = walk(image, y, x, y + _DY[k], x + _DX[k], REACH, path)
        ends[branches, 0] = path[lengths[branches] - 1, 0]
        ends[branches, 1] = path[lengths[branches] - 1, 1]
        branches += 1
    return branches


@compiled
def _fork(y: int, x: int, ends: Floats, lengths: Ints) -> float:
    """Direction between the two branches that run together, or `_NONE` when three branches do not look like a fork."""
    if lengths.min() < SPUR // 2:
        return _NONE
    best_y, best_x, closest = 0.0, 0.0, -2.0
    for k in range(3):
        a, b = ends[(k + 1) % 3], ends[(k + 2) % 3]
        # Two branches that meet again enclose a lake.
        if abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 2:
            return _NONE
        ay, ax, by, bx = a[0] - y, a[1] - x, b[0] - y, b[1] - x
        la, lb = np.sqrt(ay * ay + ax * ax) + 1e-6, np.sqrt(by * by + bx * bx) + 1e-6
        cosine = (ay * by + ax * bx) / (la * lb)
        if cosine > closest:
            best_y, best_x, closest = ay / la + by / lb, ax / la + bx / lb, cosine
    # Branches over 80 degrees apart: a ridge and a bridge that leaves it.
    return float(np.arctan2(-best_y, best_x)) if closest > 0.17 else _NONE


@compiled
def _plausible(found: Floats) -> Mask:
    """False for duplicates (after the first), for pairs that make a gap or a bridge, and for pairs too close."""
    count = len(found)
    good = np.ones(count, dtype=np.bool_)
    for i in range(count):
        for j in range(i + 1, count):
            dy, dx = found[j, 0] - found[i, 0], found[j, 1] - found[i, 1]
            if dy > GAP:
                break
            apart = np.sqrt(dy * dy + dx * dx)
            if apart > GAP:
                continue
            alike = np.cos(found[i, 2] - found[j, 2])
            same = found[i, 3] == found[j, 3]
            if same and apart <= 3.0 and alike > 0.5:
                good[j] = False
            elif apart < CLOSE or (same and alike < -0.7):
                good[i] = False
                good[j] = False
    return good
