"""What a run of keystrokes says, as compiled loops: see `servers.threat.behavior` for the slots."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from servers.threat.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MAX_HOLD_MS: Final = 10_000.0
MAX_FLIGHT_MS: Final = 60_000.0
LEAST_TOUCH: Final = 0.005
"""Touch readings are floored here: sensors report nothing below."""

LETTER_LEFT: Final = 1
LETTER_RIGHT: Final = 2
CORRECTION: Final = 8

FINE, UNEVEN_COLUMNS, UNKNOWN_CLASS, HOLD_RANGE, FLIGHT_RANGE, TOUCH_RANGE = range(6)


@compiled
def _outside(values: Floats, high: float) -> bool:
    """Whether a value is not in 0 to `high`; comparisons with NaN are false, so NaN is not."""
    for value in values:  # noqa: SIM110 - a compiled loop cannot hold a generator
        if not (0.0 <= value <= high):
            return True
    return False


@compiled
def keystroke_fault(classes: NDArray[np.int64], holds: Floats, flights: Floats, pressure: Floats, size: Floats) -> int:
    """What is wrong with the columns of a run of at least one keystroke: `FINE` or the number of the fault."""
    count = len(classes)
    fault = FINE
    if len(holds) != count or len(flights) != count:
        fault = UNEVEN_COLUMNS
    elif classes.min() < 0 or classes.max() > 9:  # KeyClass's last value
        fault = UNKNOWN_CLASS
    elif _outside(holds, MAX_HOLD_MS):
        fault = HOLD_RANGE
    elif _outside(flights, MAX_FLIGHT_MS):
        fault = FLIGHT_RANGE
    elif (
        _outside(pressure, 1.0) or _outside(size, 1.0) or len(pressure) not in (0, count) or len(size) not in (0, count)
    ):
        fault = TOUCH_RANGE
    return fault


@compiled
def _log_held(value: float, low: float, high: float) -> float:
    """Natural logarithm of a value held to a range; NaN stays NaN."""
    return math.log(min(max(value, low), high)) if value == value else math.nan  # noqa: PLR0124 - tells NaN


@compiled
def key_positions(holds: Floats, flights: Floats, pressure: Floats, size: Floats, out: Floats) -> None:
    """Logarithms of the first K keys' hold, flight, pressure and size, into `out` [4K - 1]: slots of `POSITION_SLOTS`.

    People's timing varies by ratios, not by differences: hence logarithms, of durations floored at 1 ms.
    """
    keys = (len(out) + 1) // 4
    for key in range(min(len(holds), keys)):
        out[key] = _log_held(holds[key], 1.0, MAX_HOLD_MS)
        if key:
            out[keys + key - 1] = _log_held(flights[key], 1.0, MAX_FLIGHT_MS)
        if len(pressure):
            out[2 * keys - 1 + key] = _log_held(pressure[key], LEAST_TOUCH, 1.0)
        if len(size):
            out[3 * keys - 1 + key] = _log_held(size[key], LEAST_TOUCH, 1.0)


@compiled
def _summarise(values: NDArray[np.float64], count: int, out: Floats) -> None:
    """Mean and spread of the first `count` values, and with room for them the values a tenth of the way from either
    end. Sorts them. Leaves `out` as it is where there is nothing to say.
    """
    if not count:
        return
    ordered = values[:count]
    ordered.sort()
    mean = ordered.sum() / count
    out[0] = mean
    if count > 1:
        out[1] = math.sqrt(((ordered - mean) ** 2).sum() / count)
    if len(out) > 2:
        out[2], out[3] = ordered[count // 10], ordered[count - 1 - count // 10]


@compiled
def typing_summary(
    classes: NDArray[np.int64], holds: Floats, flights: Floats, pressure: Floats, size: Floats, out: Floats
) -> None:
    """The slots of `TYPING_SLOTS` into `out` [20], which holds NaN where nothing can be said.

    A flight of 0 marks the start of a run: no time since the key before is known.
    """
    count = len(holds)
    values = np.empty(count)
    by_hand, hands = np.zeros(3), np.zeros(3)
    corrections = 0
    for key in range(count):
        value = math.log(min(holds[key], MAX_HOLD_MS)) if holds[key] > 1.0 else 0.0
        values[key] = value
        kind = classes[key]
        hand = 0 if kind == LETTER_LEFT else 1 if kind == LETTER_RIGHT else 2
        by_hand[hand] += value
        hands[hand] += 1
        corrections += kind == CORRECTION
    _summarise(values, count, out[0:4])
    out[4:7] = by_hand / hands
    flown = overlapped = 0
    by_pair, pairs = np.zeros(3), np.zeros(3)
    for key in range(1, count):
        if not flights[key] > 0.0:
            continue
        value = math.log(min(flights[key], MAX_FLIGHT_MS)) if flights[key] > 1.0 else 0.0
        values[flown] = value
        flown += 1
        overlapped += flights[key] < holds[key - 1]
        now, before = classes[key], classes[key - 1]
        letters = LETTER_LEFT <= now <= LETTER_RIGHT and LETTER_LEFT <= before <= LETTER_RIGHT
        pair = (0 if now == before else 1) if letters else 2
        by_pair[pair] += value
        pairs[pair] += 1
    _summarise(values, flown, out[7:11])
    out[11:14] = by_pair / pairs
    out[14] = overlapped / flown
    out[15] = corrections / count
    for place, touch in ((16, pressure), (18, size)):
        logs = np.empty(len(touch))
        for key in range(len(touch)):
            logs[key] = _log_held(touch[key], LEAST_TOUCH, 1.0)
        _summarise(logs, len(touch), out[place : place + 2])
    for slot in range(len(out)):
        if not math.isfinite(out[slot]):
            out[slot] = math.nan
