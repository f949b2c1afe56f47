"""The autoencoder's stage: scale the features, weigh the errors of their reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats


@compiled
def scale(features: Floats, mean: Floats, spread: Floats) -> Floats:
    """StandardScaler of genuine behaviour, held to eight spreads: [N, 256] to [N, 256]."""
    scaled = np.empty(features.shape, np.float32)
    for event in range(features.shape[0]):
        for feature in range(features.shape[1]):
            value = (features[event, feature] - mean[feature]) / spread[feature]
            scaled[event, feature] = min(max(value, np.float32(-8.0)), np.float32(8.0))
    return scaled


def errors(scaled: Floats, rebuilt: Floats) -> Floats:
    """Signed and squared reconstruction errors, held to bounds: [N, 512]."""
    found = np.empty((len(scaled), 2 * scaled.shape[1]), np.float32)
    signed, squared = found[:, : scaled.shape[1]], found[:, scaled.shape[1] :]
    np.clip(np.subtract(scaled, rebuilt, out=signed), -4.0, 4.0, out=signed)
    np.square(signed, out=squared)
    return found


@compiled
def odds_of(
    scaled: Floats, rebuilt: Floats, weight: Floats, bias: Floats, regime: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Raw log odds of takeover [N]: the `errors` of N reconstructions by the weights [512, R] of each one's regime."""
    count = scaled.shape[1]
    # By regime first: then the weights of one event lie side by side.
    by_regime = np.ascontiguousarray(weight.T)
    odds = np.empty(len(scaled), np.float32)
    for event in range(len(scaled)):
        signed, squared = by_regime[regime[event], :count], by_regime[regime[event], count:]
        total = np.float32(0.0)
        for feature in range(count):
            error = min(max(scaled[event, feature] - rebuilt[event, feature], np.float32(-4.0)), np.float32(4.0))
            total += error * signed[feature] + error * error * squared[feature]
        odds[event] = total + bias[regime[event]]
    return odds
