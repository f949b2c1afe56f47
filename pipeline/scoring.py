"""The whole chain from arrays to scores: describe, expand, three models, ensemble, level, confidence, reasons.

Pure but for the models, which a `ModelRunner` runs: ONNX Runtime in process, Triton, or whatever a test puts there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from pipeline.batch import Reason, Scores
from pipeline.features.describe import STEP, describe, observed
from pipeline.features.evidence import deviations
from pipeline.features.expand import expand
from pipeline.features.layout import STEP_SIZE, WINDOW
from pipeline.stages.autoencoder import odds_of, scale
from pipeline.stages.classify import classify, confidence
from pipeline.stages.ensemble import combine
from pipeline.stages.reasons import reasons_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.batch import Floats
    from pipeline.parameters import Parameters

ANOMALY: Final = "anomaly-detection"
SEQUENCE: Final = "sequence-analysis"
PATTERN: Final = "behavioral-transformer"
PRIOR_LOG_ODDS: Final = -2.2
"""Log odds of a takeover (about 0.1) while nothing in a window could be compared with the person: they are being
enrolled, and only their context speaks."""


class ModelRunner(Protocol):
    """Runs a named model of the repository over named arrays."""

    def run(self, name: str, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[Any]]:
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
        """One step an event, from the event alone: context [N, 15], sample [N, S], baseline [N, B] to float32[N, D].

        Values that are not finite count as not observed; every value of the answer lies in -4 to 4.
        """
        return describe(context, sample, baseline, self._parameters)

    def score(
        self, context: Floats, sample: Floats, baseline: Floats, window: Floats, lengths: NDArray[np.integer]
    ) -> Scores:
        """Score N events. `window` [N, 50, D] holds each event's steps, oldest first and newest last (`window[:, -1]`
        is the event's own); rows before the first of `lengths` [N] steps are zero.
        """
        parameters = self._parameters
        deviation = deviations(sample, baseline)
        features = scale(expand(context, deviation, window), parameters.feature_mean, parameters.feature_spread)
        rebuilt = self._models.run(ANOMALY, {"features": features})["reconstruction"]
        regime, compared = observed(window)
        anomaly = odds_of(features, rebuilt, parameters.error_weight, parameters.error_bias, regime)
        sequence = self._models.run(SEQUENCE, {"window": window})["log_odds"][:, 0]
        pattern = self._models.run(PATTERN, {"window": window})["log_odds"][:, 0]
        # Context has no recordings to learn from: it shifts each model's log odds by a fixed, documented amount.
        shift = window[:, -1, STEP["context_odds"]]
        prior = (1.0 / (1.0 + np.exp(-(PRIOR_LOG_ODDS + shift)))).astype(np.float32)
        three = (
            np.where(compared, parameters.anomaly.probability(anomaly, regime, shift), prior),
            np.where(compared, parameters.sequence.probability(sequence, regime, shift), prior),
            np.where(compared, parameters.pattern.probability(pattern, regime, shift), prior),
        )
        threat = combine(*three)
        return Scores(
            threat_score=threat,
            level=classify(threat),
            anomaly=three[0],
            sequence=three[1],
            pattern=three[2],
            confidence=confidence(*three, window),
            features=features,
            deviation=deviation,
        )

    def explain(self, scores: Scores, indices: Sequence[int]) -> list[list[Reason]]:
        """The reasons for those rows, strongest first, at most five each."""
        return [reasons_of(scores, index, self._parameters) for index in indices]
