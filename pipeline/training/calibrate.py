"""Gives the levels their meaning: at 0.3 both kinds of error weigh the same, at 0.7 one owner's session in a hundred is called a threat.

All on people whom the scoring networks never saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.parameters import Calibration
from pipeline.stages.ensemble import combine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats

    Doubles = NDArray[np.float64]

SESSION: Final = 30
"""Events of the session that the false-alarm rate is stated for."""

FALSE_ALARMS: Final = 0.008
"""Share of owners' sessions that reach the level 'threat': a little under the nominal one in a hundred, as strangers do worse."""

LENGTHS: Final = (1, 3, 5, 10, 20)
_SUSPICIOUS, _THREAT, _CRITICAL = (float(np.log(p / (1 - p))) for p in (0.3, 0.7, 0.9))


def calibrate(raw: Doubles, intruder: NDArray[np.bool_], steps: Floats) -> tuple[Calibration, Calibration, Calibration]:
    """Calibrations of the three models from raw log odds [Q, 50, 3] of sessions with known intruders [Q, 50]."""
    own = raw[~intruder.any(1)][:, :SESSION]
    taken_at = np.where(intruder.any(1), intruder.argmax(1), -1)
    balanced = np.array([_balanced(raw[:, :, model], taken_at, own[:, :, model]) for model in range(3)])
    highest = own.max(1)

    def build(share: float, offset: float) -> tuple[Calibration, ...]:
        found = []
        for model in range(3):
            alarm = max(float(np.quantile(highest[:, model], 1 - share)), balanced[model] + 0.3)
            grave = max(float(np.quantile(highest[:, model], 1 - share / 8)), alarm + 0.3)
            middle = balanced[model] + offset * (alarm - balanced[model])
            found.append(_lines(middle, alarm, grave))
        return tuple(found)

    def scores(calibrations: tuple[Calibration, ...], values: Doubles) -> Doubles:
        parts = [calibrations[model].probability(values[..., model]) for model in range(3)]
        return combine(*parts).astype(np.float64)

    share, offset = FALSE_ALARMS, 0.0
    for _ in range(3):
        low, high = 1e-4, 0.2
        for _ in range(16):
            share = float(np.sqrt(low * high))
            alarms = float((scores(build(share, offset), own).max(1) >= 0.7).mean())
            low, high = (low, share) if alarms > FALSE_ALARMS else (share, high)
        tries = np.linspace(-0.6, 0.6, 25)
        costs = [_cost(scores(build(share, value), raw), scores(build(share, value), own), taken_at, 0.3) for value in tries]
        offset = float(tries[int(np.argmin(costs))])
    first, second, third = build(share, offset)
    return first, second, third


def _lines(suspicious: float, threat: float, critical: float) -> Calibration:
    """Straight lines in log odds through the three levels, going on below and above with the lines' own slopes."""
    slope = (_THREAT - _SUSPICIOUS) / (threat - suspicious)
    upper = (_CRITICAL - _THREAT) / (critical - threat)
    raw = [suspicious - 4.0 / slope, suspicious, threat, critical, critical + 3.0 / upper]
    odds = [_SUSPICIOUS - 4.0, _SUSPICIOUS, _THREAT, _CRITICAL, _CRITICAL + 3.0]
    return Calibration(np.array(raw, np.float32), np.array(odds, np.float32))


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


