"""What scoring hands on: one column an array, one row an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N events.

    Attributes:
        threat_score: float32[N] in 0..1, the ensemble: 0.4 anomaly + 0.3 sequence + 0.3 pattern.
        level: uint8[N], index into `LEVELS`.
        anomaly: float32[N] in 0..1, calibrated autoencoder score.
        sequence: float32[N] in 0..1, calibrated LSTM score.
        pattern: float32[N] in 0..1, calibrated transformer score.
        confidence: float32[N] in 0..1.
        features: float32[N, 256], what the autoencoder saw; kept for the reasons.
        deviation: float32[N, measures], each measure's distance from the person's mean in the person's own spreads;
            NaN where unknown.
    """

    threat_score: Floats
    level: NDArray[np.uint8]
    anomaly: Floats
    sequence: Floats
    pattern: Floats
    confidence: Floats
    features: Floats
    deviation: Floats


LEVELS = ("normal", "suspicious", "threat", "critical")
"""Names of the levels; `Scores.level` holds their index."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an event scored as it did.

    Attributes:
        feature: the feature's name among the pipeline's 256.
        text: a sentence a person can judge.
        deviation: distance from the person's own normal in their own spreads; positive is higher.
        contribution: share of the score that the feature explains, 0 to 1.
        modality: "typing", "mouse", "navigation" or "context".
    """

    feature: str
    text: str
    deviation: float
    contribution: float
    modality: str
