"""The real pipeline with simple models in the trained ones' place: its scores depend on the event and on its user's
window.

Tests of the machinery then hold while models are being trained. A `sample` whose first value is -666 makes the models
fail.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from pipeline.app import MODELS, Judge, main
from pipeline.batch import Reason, Scores
from pipeline.features.layout import STEP_SIZE
from pipeline.stages.serialize import ModelVersion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.batch import Floats
    from pipeline.settings import PipelineSettings
    from pipeline.stages.monitor import Monitor

POISON = -666.0


class StandIn:
    """Scores by the mean of the event's step, of its window and of the window's order."""

    def describe(self, context: Floats, sample: Floats, baseline: Floats) -> Floats:
        steps = np.zeros((len(context), STEP_SIZE), np.float32)
        steps[:, 0] = 1.0
        steps[:, 1] = context.mean(axis=1) / 100
        steps[:, 2] = context[:, 0]
        return steps

    def score(
        self, context: Floats, sample: Floats, baseline: Floats, window: Floats, lengths: NDArray[np.integer]
    ) -> Scores:
        if (sample[:, 0] == POISON).any():
            raise ValueError("poison")
        weights = np.linspace(0.1, 1.0, window.shape[1], dtype=np.float32)
        sequence = (window[:, :, 2] * weights).sum(axis=1) / weights.sum()
        pattern = (window[:, :, 0].sum(axis=1) / window.shape[1]).astype(np.float32)
        anomaly = context[:, 0]
        threat = (0.4 * anomaly + 0.3 * sequence + 0.3 * pattern).astype(np.float32)
        level = np.digitize(threat, (0.3, 0.7, 0.9)).astype(np.uint8)
        features = np.zeros((len(context), 256), np.float32)
        return Scores(threat, level, anomaly, sequence, pattern, np.abs(2 * threat - 1), features, sample)

    def explain(self, scores: Scores, indices: Sequence[int]) -> list[list[Reason]]:
        return [[Reason("user_behavior_score", "Unlike this person.", 2.5, 1.0, "context")] for _ in indices]


def stand_in(_settings: PipelineSettings, _monitor: Monitor) -> Judge:
    return Judge(StandIn(), [ModelVersion(name, "stand-in", 0.5) for name in MODELS])


if __name__ == "__main__":
    sys.exit(main(stand_in))
