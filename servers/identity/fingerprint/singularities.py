"""Cores and deltas by the Poincare index, and the class of ridge pattern that they give.

Kawagoe and Tojo, "Fingerprint pattern classification", Pattern Recognition 17(3), 1984; the direction of a core from
the rotation of its orientation field (Bazen and Gerez, 2002).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from servers.identity.fingerprint.grid import CELL, smooth
from servers.identity.fingerprint.minutiae import eroded
from servers.identity.fingerprint.template import Pattern, SingularPoint

if TYPE_CHECKING:
    from servers.identity.compiled import Floats
    from servers.identity.fingerprint.fields import Mask, Orientation

# The eight cells around one, in the order of growing angle on a screen whose y points down.
_RING: Final = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
SMOOTHING: Final = 2.0
"""Cells: singular points are a matter of the whole flow, not of single ridges."""
MERGE: Final = 3.0 * CELL
UPRIGHT: Final = np.radians(12.0)
"""A loop that opens this near to straight down is a tented arch when its delta lies below it."""


def find_singularities(field: Orientation, mask: Mask) -> tuple[tuple[SingularPoint, ...], tuple[SingularPoint, ...]]:
    """Cores and deltas inside the finger, in pixels."""
    cosine = smooth(field.cosine * mask, SMOOTHING)
    sine = smooth(field.sine * mask, SMOOTHING)
    angle = np.arctan2(sine, cosine)
    inner = eroded(eroded(mask))
    index = np.zeros(angle.shape, dtype=np.float32)
    turns = [np.roll(angle, (-dy, -dx), (0, 1)) for dy, dx in _RING]
    for here, there in zip(turns, turns[1:] + turns[:1], strict=True):
        index += (np.mod(there - here + np.pi, 2 * np.pi) - np.pi).astype(np.float32)
    index = np.where(inner, np.rint(index / (2 * np.pi)), 0).astype(np.float32)
    cores = tuple(SingularPoint(x, y, _opening(angle, int(y // CELL), int(x // CELL))) for y, x in _clusters(index > 0))
    return cores, tuple(SingularPoint(x, y) for y, x in _clusters(index < 0))


def classify(cores: tuple[SingularPoint, ...], deltas: tuple[SingularPoint, ...], coverage: float = 1.0) -> Pattern:
    """Henry class of an upright finger. `coverage` is the part of a whole finger that is seen: with little of it,
    missing cores prove nothing.
    """
    if len(cores) > 2 or len(deltas) > 2:
        return Pattern.UNKNOWN
    if len(cores) == 2 or len(deltas) == 2:
        return Pattern.WHORL
    if not cores:
        return Pattern.ARCH if not deltas and coverage > 0.5 else Pattern.UNKNOWN
    core = cores[0]
    # From straight down towards the right of the picture.
    lean = float(np.angle(np.exp(1j * ((core.angle or 0.0) + np.pi / 2))))
    if deltas and abs(np.arctan2(deltas[0].x - core.x, max(deltas[0].y - core.y, 1.0))) < UPRIGHT:
        return Pattern.TENTED_ARCH
    if abs(lean) > np.pi / 2:
        return Pattern.UNKNOWN
    return Pattern.RIGHT_LOOP if lean > 0 else Pattern.LEFT_LOOP


def _clusters(hits: Mask) -> list[tuple[float, float]]:
    """Middle (y, x) in pixels of hits that lie together."""
    groups: list[list[tuple[float, float]]] = []
    for row, column in np.argwhere(hits):
        place = (float(row * CELL + CELL / 2), float(column * CELL + CELL / 2))
        near = [group for group in groups if any(np.hypot(place[0] - y, place[1] - x) <= MERGE for y, x in group)]
        groups = [group for group in groups if not any(group is other for other in near)]
        groups.append([place, *(point for group in near for point in group)])
    return [(float(np.mean([y for y, _ in group])), float(np.mean([x for _, x in group]))) for group in groups]


def _opening(doubled: Floats, row: int, column: int) -> float:
    """Direction that the loop opens to. Around a core the doubled angle turns as the place does; where both agree, the
    ridge runs straight away from the core.
    """
    rows, columns = doubled.shape
    total = 0j
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            y, x = row + dy, column + dx
            if (dy or dx) and 0 <= y < rows and 0 <= x < columns:
                total += np.exp(1j * (float(doubled[y, x]) - np.arctan2(dy, dx)))
    return float(np.mod(-np.angle(total), 2 * np.pi))
