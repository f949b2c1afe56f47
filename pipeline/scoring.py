"""The whole chain from arrays to scores: describe, expand, three models, ensemble, level, confidence, reasons.

Pure but for the models, which a `ModelRunner` runs: ONNX Runtime in process, Triton, or whatever a test puts there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from pipeline.batch import Reason, Scores
from pipeline.features.layout import FEATURE_COUNT, GROUP_SLICES, MEASURES, STEP_SIZE, WINDOW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.batch import Floats
    from pipeline.parameters import Parameters

ANOMALY: Final = "anomaly-detection"
SEQUENCE: Final = "sequence-analysis"
PATTERN: Final = "behavioral-transformer"


class ModelRunner(Protocol):
    """Runs a named model of the repository over named arrays."""

    def run(self, name: str, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        """The model's outputs by name.

        Raises:
            KeyError: there is no such model.
        """
        ...


class Scorer:
    """Scores batches of events. Keeps no state between calls: windows are the caller's."""

    window = WINDOW
    step_size = STEP_SIZE

    def __init__(self, models: ModelRunner, parameters: Parameters) -> None:
        self._models = models
        self._parameters = parameters

    def describe(self, context: Floats, sample: Floats, baseline: Floats) -> Floats:
        """One step an event, from the event alone: context [N, 15], sample [N, S], baseline [N, B] to float32[N, D]."""
        deviation = deviations(sample, baseline)
        step = np.zeros((len(sample), STEP_SIZE), np.float32)
        step[:, 0] = 1.0
        for index, part in enumerate(GROUP_SLICES):
            seen = np.isfinite(deviation[:, part])
            size = np.where(seen, np.minimum(np.abs(deviation[:, part]), 6.0), 0.0)
            step[:, 1 + index] = size.sum(1) / np.maximum(seen.sum(1), 1)
        return step

    def score(
        self, context: Floats, sample: Floats, baseline: Floats, window: Floats, lengths: NDArray[np.integer]
    ) -> Scores:
        """Score N events. `window` [N, 50, D] holds each event's steps, oldest first and newest last (`window[:, -1]` is
        the event's own); rows before the first of `lengths` [N] steps are zero.
        """
        features = np.zeros((len(sample), FEATURE_COUNT), np.float32)
        features[:, : 4 * STEP_SIZE] = window[:, -4:].reshape(len(sample), -1)
        rebuilt = self._models.run(ANOMALY, {"features": features})["reconstruction"]
        sequence = self._models.run(SEQUENCE, {"window": window})["log_odds"][:, 0]
        pattern = self._models.run(PATTERN, {"window": window})["log_odds"][:, 0]
        anomaly = np.square(features - rebuilt).mean(1)
        scores = [(1.0 / (1.0 + np.exp(-value))).astype(np.float32) for value in (anomaly - 1.0, sequence, pattern)]
        threat = (0.4 * scores[0] + 0.3 * scores[1] + 0.3 * scores[2]).astype(np.float32)
        level = np.digitize(threat, (0.3, 0.7, 0.9)).astype(np.uint8)
        return Scores(threat, level, *scores, np.abs(2 * threat - 1), features, deviations(sample, baseline))

    def explain(self, scores: Scores, indices: Sequence[int]) -> list[list[Reason]]:
        """The reasons for those rows, strongest first, at most five each."""
        return [[] for _ in indices]


def deviations(sample: Floats, baseline: Floats) -> Floats:
    """Each measure's distance from the person's mean, in the person's own spreads: float32[N, measures], NaN where unknown."""
    mean, spread = baseline[:, -2 * len(MEASURES) : -len(MEASURES)], baseline[:, -len(MEASURES) :]
    return (sample[:, 1:] - mean) / spread
