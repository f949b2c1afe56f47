"""The classification's stage: the document's four levels, and how sure the ensemble is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.features.describe import STEP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats

THRESHOLDS: Final = (0.3, 0.7, 0.9)
"""Scores from which an event is suspicious, a threat, critical."""


def classify(score: Floats) -> NDArray[np.uint8]:
    """Level [N] of scores [N]: 0 normal, 1 suspicious, 2 threat, 3 critical (from above 0.9)."""
    return np.digitize(score, np.array(THRESHOLDS, np.float32)).astype(np.uint8)


def confidence(anomaly: Floats, sequence: Floats, pattern: Floats, window: Floats) -> Floats:
    """How sure the ensemble is, 0..1: how far its models agree, times how much there was to judge by.

    Args:
        anomaly: [N] in 0..1.
        sequence: [N] in 0..1.
        pattern: [N] in 0..1.
        window: [N, 50, D], newest step last.
    """
    three = np.stack((anomaly, sequence, pattern))
    agreement = 1.0 - (three.max(0) - three.min(0))
    newest = window[:, -1]
    observed = newest[:, STEP["typing_present"]] * 0.6 + newest[:, STEP["mouse_present"]] * 0.4
    learnt = np.maximum(newest[:, STEP["typing_maturity"]], newest[:, STEP["mouse_maturity"]])
    events = window[:, -10:, STEP["present"]].sum(1) / 10.0
    basis = np.clip(0.3 * events + 0.4 * observed + 0.3 * learnt, 0.0, 1.0)
    result: Floats = np.clip(agreement * basis, 0.0, 1.0).astype(np.float32)
    return result
