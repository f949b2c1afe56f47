"""Simulated sessions as the networks see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.features.expand import expand
from pipeline.features.layout import WINDOW
from pipeline.training.sequences import NEUTRAL_CONTEXT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats


@dataclass(frozen=True, slots=True)
class Described:
    """Sessions as the networks see them.

    Attributes:
        steps: [Q, 50, D].
        deviation: [Q, 50, measures].
        intruder: [Q, 50].
        fold: [Q], inner fold of the owner.
    """

    steps: Floats
    deviation: Floats
    intruder: NDArray[np.bool_]
    fold: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_ | np.int64]) -> Described:
        """Some of the sessions, by mask or by index."""
        return Described(self.steps[chosen], self.deviation[chosen], self.intruder[chosen], self.fold[chosen])


def windows_at(steps: Floats, ends: NDArray[np.int64], lengths: NDArray[np.int64]) -> Floats:
    """Windows [M, 50, D] of sessions [M, 50, D] that end at `ends` and hold `lengths` steps, newest last, zeros
    before."""
    at = ends[:, None] - np.arange(WINDOW - 1, -1, -1)
    inside = np.arange(WINDOW - 1, -1, -1)[None] < np.minimum(lengths, ends + 1)[:, None]
    taken = np.take_along_axis(steps, np.clip(at, 0, WINDOW - 1)[:, :, None], 1)
    return np.where(inside[:, :, None], taken, np.float32(0.0))


def features_at(described: Described, ends: NDArray[np.int64], lengths: NDArray[np.int64]) -> Floats:
    """The 256 features of the events at `ends`, one a session."""
    context = np.broadcast_to(NEUTRAL_CONTEXT, (len(ends), len(NEUTRAL_CONTEXT)))
    deviation = described.deviation[np.arange(len(ends)), ends]
    return expand(context, deviation, windows_at(described.steps, ends, lengths))
