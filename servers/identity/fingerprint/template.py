"""What is kept of a finger: minutiae and what is known beside them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from servers.identity.compiled import Bytes, Floats


class Kind(IntEnum):
    """What a ridge does, with the codes of ISO/IEC 19794-2."""

    OTHER = 0
    ENDING = 1
    BIFURCATION = 2


class Pattern(StrEnum):
    """Henry's classes of ridge patterns."""

    ARCH = "arch"
    TENTED_ARCH = "tented_arch"
    LEFT_LOOP = "left_loop"
    RIGHT_LOOP = "right_loop"
    WHORL = "whorl"
    UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Minutiae:
    """Minutiae in columns of one length.

    `x` rightwards and `y` downwards in pixels; `angle` in radians in [0, 2 pi), anticlockwise on the screen from the
    right, along the ridge that ends or along the valley that a fork encloses; `kind` as `Kind`; `quality` 1 to 100.
    """

    x: Floats
    y: Floats
    angle: Floats
    kind: Bytes
    quality: Bytes

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: object) -> Minutiae:
        """Those at `indices` (an array of positions or truths)."""
        chosen = np.asarray(indices)
        return Minutiae(self.x[chosen], self.y[chosen], self.angle[chosen], self.kind[chosen], self.quality[chosen])


@dataclass(frozen=True)
class SingularPoint:
    """A core or a delta: place in pixels; for a core the direction that its loop opens to, radians as `Minutiae`."""

    x: float
    y: float
    angle: float | None = None


@dataclass(frozen=True, eq=False)
class Template:
    """A finger's minutiae in an image of `width` by `height` pixels, 500 an inch, and the capture's quality, 0 to 1."""

    width: int
    height: int
    minutiae: Minutiae
    cores: tuple[SingularPoint, ...] = ()
    deltas: tuple[SingularPoint, ...] = ()
    pattern: Pattern = Pattern.UNKNOWN
    quality: float = 0.0
