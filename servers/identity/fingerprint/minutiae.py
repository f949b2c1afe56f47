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
    rows, columns = image.shape
    path = np.empty((ISLAND + 1, 2), dtype=np.int32)
    for y in range(1, rows - 1):
        for x in range(1, columns - 1):
            if not image[y, x]:
                continue
            ways = crossings(image, y, x)
            if ways == 0:
                image[y, x] = 0
                continue
            if ways != 1:
                continue
            code = neighbours(image, y, x)
            k = 0
            while not code >> k & 1:
                k += 1
            length = walk(image, y, x, y + _DY[k], x + _DX[k], ISLAND, path)
            last_y, last_x = path[length - 1, 0], path[length - 1, 1]
            goes_to = crossings(image, last_y, last_x)
            if goes_to >= 3 and length < SPUR:
                image[y, x] = 0
                for i in range(length - 1):
                    image[path[i, 0], path[i, 1]] = 0
            elif goes_to <= 1 and length < ISLAND:
                image[y, x] = 0
                for i in range(length):
                    image[path[i, 0], path[i, 1]] = 0


@compiled
def _detect(image: Bytes) -> Floats:
    """Rows of y, x, angle, kind for all endings and forks of plausible shape."""
    rows, columns = image.shape
    found = np.empty((_MOST, 4), dtype=np.float32)
    path = np.empty((REACH, 2), dtype=np.int32)
    ends = np.empty((3, 2), dtype=np.float32)
    lengths = np.empty(3, dtype=np.int32)
    count = 0
    for y in range(1, rows - 1):
        for x in range(1, columns - 1):
            if not image[y, x] or count == _MOST:
                continue
            ways = crossings(image, y, x)
            if ways not in (1, 3):
                continue
            branches = 0
            for k in range(8):
                ny, nx = y + _DY[k], x + _DX[k]
                if not image[ny, nx]:
                    continue
                # Of neighbours in a row only the one beside starts a branch.
                before, after = (k + 7) % 8, (k + 1) % 8
                if k % 2 == 1 and (image[y + _DY[before], x + _DX[before]] or image[y + _DY[after], x + _DX[after]]):
                    continue
                if branches == 3:
                    break
                lengths[branches] = walk(image, y, x, ny, nx, REACH, path)
                ends[branches, 0] = path[lengths[branches] - 1, 0]
                ends[branches, 1] = path[lengths[branches] - 1, 1]
                branches += 1
            if branches != ways:
                continue
            angle = np.float32(-9.0)
            if ways == 1:
                if lengths[0] >= SPUR // 2:
                    angle = np.float32(np.arctan2(y - ends[0, 0], ends[0, 1] - x))
            else:
                angle = _fork(y, x, ends, lengths)
            if angle > -9.0:
                found[count, 0], found[count, 1], found[count, 2] = y, x, angle
                found[count, 3] = 1 if ways == 1 else 2
                count += 1
    return found[:count]


@compiled
def _fork(y: int, x: int, ends: Floats, lengths: Ints) -> float:
    """Direction between the two branches that run together, or -9 when three branches do not look like a fork."""
    if lengths.min() < SPUR // 2:
        return np.float32(-9.0)
    best = 0
    closest = -2.0
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        # Two branches that meet again enclose a lake.
        if abs(ends[a, 0] - ends[b, 0]) + abs(ends[a, 1] - ends[b, 1]) <= 2:
            return np.float32(-9.0)
        ay, ax = ends[a, 0] - y, ends[a, 1] - x
        by, bx = ends[b, 0] - y, ends[b, 1] - x
        cosine = (ay * by + ax * bx) / (np.sqrt(ay * ay + ax * ax) * np.sqrt(by * by + bx * bx) + 1e-6)
        if cosine > closest:
            best, closest = k, cosine
    # Branches over 80 degrees apart: a ridge and a bridge that leaves it.
    if closest < 0.17:
        return np.float32(-9.0)
    a, b = (best + 1) % 3, (best + 2) % 3
    la = np.sqrt((ends[a, 0] - y) ** 2 + (ends[a, 1] - x) ** 2)
    lb = np.sqrt((ends[b, 0] - y) ** 2 + (ends[b, 1] - x) ** 2)
    dy = (ends[a, 0] - y) / la + (ends[b, 0] - y) / lb
    dx = (ends[a, 1] - x) / la + (ends[b, 1] - x) / lb
    return np.float32(np.arctan2(-dy, dx))


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
