"""Gives the levels their meaning: at 0.3 both kinds of error weigh the same, at 0.7 one owner's session in a hundred
is called a threat.

All on people whom the scoring networks never saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.features.describe import REGIMES, regime_of
from pipeline.parameters import Calibration
from pipeline.stages.ensemble import combine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats

    Doubles = NDArray[np.float64]

SESSION: Final = 30
"""Events of the session that the false-alarm rate is stated for."""

FALSE_ALARMS: Final = 0.006
"""Share of owners' sessions in training that reach the level 'threat'. The nominal rate is one in a hundred;
strangers differ from those trained on, and cross-validation at 0.01 realised 0.025."""

LENGTHS: Final = (1, 3, 5, 10, 20)
_SUSPICIOUS, _THREAT, _CRITICAL = (float(np.log(p / (1 - p))) for p in (0.3, 0.7, 0.9))


def calibrate(raw: Doubles, intruder: NDArray[np.bool_], steps: Floats) -> tuple[Calibration, Calibration, Calibration]:
    """Calibrations of the three models, for each regime, from raw log odds [Q, 50, 3] of sessions with known
    intruders [Q, 50]."""
    taken_at = np.where(intruder.any(1), intruder.argmax(1), -1)
    regime = regime_of(steps[:, :SESSION])
    knots = np.stack([_regime(raw[regime == index], taken_at[regime == index]) for index in range(len(REGIMES))])
    first, second, third = (Calibration(knots[:, model, 0], knots[:, model, 1]) for model in range(3))
    return first, second, third


def _regime(raw: Doubles, taken_at: NDArray[np.int64]) -> Floats:
    """Knots [3 models, 2, K] for one regime: the levels are placed for each model, then shifted together until the
    ensemble keeps them."""
    own = raw[taken_at < 0][:, :SESSION]
    balanced = [_balanced(raw[:, :, model], taken_at, own[:, :, model]) for model in range(3)]
    highest = own.max(1)

    def build(share: float, offset: float) -> Floats:
        found = []
        for model in range(3):
            alarm = max(_upper(highest[:, model], share), balanced[model] + 0.3)
            grave = max(_upper(highest[:, model], share / 8), alarm + 0.3)
            found.append(_lines(balanced[model] + offset * (alarm - balanced[model]), alarm, grave))
        return np.array(found, np.float32)

    def scores(knots: Floats, values: Doubles) -> Doubles:
        odds = [np.interp(values[..., model], *knots[model]) for model in range(3)]
        return combine(*(1.0 / (1.0 + np.exp(-part)) for part in odds)).astype(np.float64)

    share, offset = FALSE_ALARMS, 0.0
    for _ in range(2):
        low, high = 1e-4, 0.3
        for _ in range(14):
            share = float(np.sqrt(low * high))
            # The same extrapolation as for the models: a few hundred sessions say little about one in a hundred.
            alarm_at = _upper(_logit(scores(build(share, offset), own).max(1)), FALSE_ALARMS)
            low, high = (low, share) if alarm_at > _THREAT else (share, high)
        tries = np.linspace(-0.6, 0.6, 25)
        costs = []
        for value in tries:
            knots = build(share, float(value))
            costs.append(_cost(scores(knots, raw), scores(knots, own), taken_at, 0.3))
        offset = float(tries[int(np.argmin(costs))])
    return build(share, offset)


def _logit(score: Doubles) -> Doubles:
    held = np.clip(score, 1e-6, 1 - 1e-6)
    return np.log(held / (1 - held))


def _upper(values: Doubles, share: float) -> float:
    """The value that a share of the values exceeds; where that is too few to count, a Gumbel tail through the upper
    half."""
    counted = float(np.quantile(values, 1 - share))
    if share * len(values) >= 8:
        return counted
    middle, high = np.quantile(values, (0.5, 0.95))
    scale = (high - middle) / (_gumbel(0.95) - _gumbel(0.5))
    return float(middle + scale * (_gumbel(1 - share) - _gumbel(0.5)))


def _gumbel(level: float) -> float:
    return float(-np.log(-np.log(level)))


def _lines(suspicious: float, threat: float, critical: float) -> tuple[list[float], list[float]]:
    """Knots of straight lines in log odds through the three levels, going on below and above with the lines' own
    slopes."""
    slope = (_THREAT - _SUSPICIOUS) / (threat - suspicious)
    upper = (_CRITICAL - _THREAT) / (critical - threat)
    raw = [suspicious - 4.0 / slope, suspicious, threat, critical, critical + 3.0 / upper]
    odds = [_SUSPICIOUS - 4.0, _SUSPICIOUS, _THREAT, _CRITICAL, _CRITICAL + 3.0]
    return raw, odds


def _cost(scores: Doubles, own: Doubles, taken_at: NDArray[np.int64], threshold: float) -> float:
    """Mean over session lengths of the mean of both errors."""
    costs = []
    attacked = np.flatnonzero(taken_at >= 0)
    for length in LENGTHS:
        at = taken_at[attacked] + length - 1
        inside = at < scores.shape[1]
        missed = scores[attacked[inside], at[inside]] < threshold
        costs.append((missed.mean() + (own[:, length - 1] >= threshold).mean()) / 2)
    return float(np.mean(costs))


def _balanced(raw: Doubles, taken_at: NDArray[np.int64], own: Doubles) -> float:
    tries = np.quantile(raw, np.linspace(0.02, 0.98, 121))
    costs = [_cost(raw, own, taken_at, float(threshold)) for threshold in tries]
    return float(tries[int(np.argmin(costs))])
