"""The autoencoder's stage: scale the features, weigh the errors of their reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats


def scale(features: Floats, mean: Floats, spread: Floats) -> Floats:
    """StandardScaler of genuine behaviour, held to eight spreads: [N, 256] to [N, 256]."""
    scaled = (features - mean) / spread
    return np.clip(scaled, -8.0, 8.0, out=scaled)


def errors(scaled: Floats, rebuilt: Floats) -> Floats:
    """Signed and squared reconstruction errors, held to bounds: [N, 512]."""
    found = np.empty((len(scaled), 2 * scaled.shape[1]), np.float32)
    signed, squared = found[:, : scaled.shape[1]], found[:, scaled.shape[1] :]
    np.clip(np.subtract(scaled, rebuilt, out=signed), -4.0, 4.0, out=signed)
    np.square(signed, out=squared)
    return found


def weighed(found: Floats, weight: Floats, bias: Floats, regime: NDArray[np.intp]) -> Floats:
    """Raw log odds of takeover [N]: errors [N, 512] by the weights [512, R] of each event's regime."""
    odds: Floats = np.take_along_axis(found @ weight + bias, regime[:, None], 1)[:, 0]
    return odds
