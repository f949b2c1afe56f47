"""Global consistency: one finger laid over the other, and how much of what both show agrees.

A pair of minutiae that survived the relaxation fixes the turn and the shift. Minutiae then match inside a tolerance box
that grows with the distance from that pair, because skin stretches (tolerance boxes: Maltoni, Maio, Jain and Feng,
"Handbook of Fingerprint Recognition", 3rd edition, section 4.3; growing ones: Luo, Tian and Wu, "A minutiae matching
algorithm in fingerprint verification", ICPR 2000). Only minutiae inside both prints count, so a part of a finger can
match a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from servers.identity.compiled import compiled

if TYPE_CHECKING:
    import numpy.typing as npt

    from servers.identity.compiled import Floats, Ints

PLACE: Final = 10.0
"""Pixels, about a ridge distance: how far off a minutia may lie beside the pair that was laid over."""
STRETCH: Final = 0.06
"""How much further off it may lie for every pixel away from that pair."""
TURN: Final = np.pi / 6
BORDER: Final = 10.0
"""Pixels beyond the other print's minutiae where a minutia still should have been seen."""
CAUTION: Final = 6.0
"""Minutiae without a partner that every print is taken to have: small overlaps prove little."""


@compiled
def aligned_similarity(
    likeness: Floats,
    a: Floats,
    b: Floats,
    hull_a: npt.NDArray[np.float64],
    hull_b: npt.NDArray[np.float64],
    first: int,
    second: int,
    partner: Ints,
) -> float:
    """Similarity (0 to 1) with minutia `first` of `a` laid over `second` of `b`; rows are x, y (upwards) and angle.
    `partner[i]` becomes the minutia of `b` that `a`'s minutia `i` matches, or -1.
    """
    turn = b[second, 2] - a[first, 2]
    cos, sin = np.cos(turn), np.sin(turn)
    free = np.ones(len(b), dtype=np.bool_)
    matched, in_b, in_a = 0, 0, 0
    total = np.float32(0.0)
    for i in range(len(a)):
        dx, dy = a[i, 0] - a[first, 0], a[i, 1] - a[first, 1]
        x = b[second, 0] + cos * dx - sin * dy
        y = b[second, 1] + sin * dx + cos * dy
        in_b += _inside(x, y, hull_b)
        reach = PLACE + STRETCH * np.sqrt(dx * dx + dy * dy)
        nearest = reach * reach
        partner[i] = -1
        for j in range(len(b)):
            apart = (b[j, 0] - x) ** 2 + (b[j, 1] - y) ** 2
            if not free[j] or apart > nearest:
                continue
            if abs((b[j, 2] - a[i, 2] - turn + np.pi) % (2 * np.pi) - np.pi) <= TURN:
                partner[i], nearest = j, apart
        if partner[i] >= 0:
            free[partner[i]] = False
            matched += 1
            total += likeness[i, partner[i]]
    for j in range(len(b)):
        dx, dy = b[j, 0] - b[second, 0], b[j, 1] - b[second, 1]
        in_a += _inside(a[first, 0] + cos * dx + sin * dy, a[first, 1] - sin * dx + cos * dy, hull_a)
    return float(total / (np.sqrt(float(max(in_a, matched)) * max(in_b, matched)) + CAUTION))


@compiled
def _inside(x: float, y: float, hull: npt.NDArray[np.float64]) -> bool:
    """Is the point in the convex hull (corners anticlockwise), or at most `BORDER` beyond each of its sides?"""
    for i in range(len(hull)):
        ax, ay = hull[i]
        bx, by = hull[(i + 1) % len(hull)]
        dx, dy = bx - ax, by - ay
        if dx * (y - ay) - dy * (x - ax) < -BORDER * np.sqrt(dx * dx + dy * dy):
            return False
    return True
