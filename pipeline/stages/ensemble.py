"""The ensemble's stage: one score of three."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from pipeline.parameters import Floats

WEIGHTS: Final = (0.4, 0.3, 0.3)
"""Weights of anomaly, sequence and pattern score, from the document."""


def combine(anomaly: Floats, sequence: Floats, pattern: Floats) -> Floats:
    """The weighted mean, float32 in 0..1."""
    total: Floats = np.asarray(WEIGHTS[0] * anomaly + WEIGHTS[1] * sequence + WEIGHTS[2] * pattern, dtype=np.float32)
    return total
