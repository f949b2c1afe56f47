"""Raw behaviour to numbers: one event's keystrokes and pointer movement become one *sample*.

A sample is a float32 vector with one named slot a measure (`SLOTS`, described in `docs/evidence.md`); NaN means "not
observed". It holds timing, touch and geometry only: never a character, a screen position or a sampling rate.

Pointer movement is read on a common time grid of `GRID_MS`, because mice report at anything between 8 and 125 ms:
measured at the native rate, the device and not the person would be recognised.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Bytes = NDArray[np.uint8]

EVIDENCE_VERSION: Final = 1
"""Version of the layout of samples and baselines; a change to `SLOTS` or to what a slot means raises it."""

KEYS: Final = 16
"""Key positions of a known text that are kept; later keys count in the summaries alone."""

GRID_MS: Final = 120.0
"""Step of the time grid on which pointer movement is read, milliseconds."""

PAUSE_MS: Final = 450.0
"""A gap between two pointer reports longer than this is a pause: the pointer rested."""

# Values of `KeyClass` and `PointerAction` in the contract.
LETTER_LEFT, LETTER_RIGHT, DIGIT, PUNCTUATION, SPACE, MODIFIER, ENTER, CORRECTION, NAVIGATION = range(1, 10)
MOVE, DRAG, PRESS, RELEASE, SECONDARY_PRESS, SECONDARY_RELEASE, SCROLL = range(1, 8)

POSITION_SLOTS: Final = (
    *(f"hold_{i:02}" for i in range(1, KEYS + 1)),
    *(f"flight_{i:02}" for i in range(2, KEYS + 1)),
    *(f"pressure_{i:02}" for i in range(1, KEYS + 1)),
    *(f"size_{i:02}" for i in range(1, KEYS + 1)),
)
TYPING_SLOTS: Final = (
    "hold_mean",
    "hold_spread",
    "hold_low",
    "hold_high",
    "hold_left",
    "hold_right",
    "hold_special",
    "flight_mean",
    "flight_spread",
    "flight_low",
    "flight_high",
    "flight_same_hand",
    "flight_other_hand",
    "flight_special",
    "overlap_share",
    "correction_share",
    "pressure_mean",
    "pressure_spread",
    "size_mean",
    "size_spread",
)
MOUSE_SLOTS: Final = (
    "speed_mean",
    "speed_spread",
    "speed_low",
    "speed_median",
    "speed_high",
    "acceleration_mean",
    "acceleration_spread",
    "jerk_mean",
    "turn_mean",
    "turn_spread",
    "turn_bias",
    "turn_straight_share",
    "turn_back_share",
    "curvature_mean",
    "curvature_spread",
    *(f"direction_{name}" for name in ("e", "se", "s", "sw", "w", "nw", "n", "ne")),
    "horizontal_share",
    "rest_share",
    "pause_mean",
    "pause_spread",
    "pause_share",
    "stroke_duration",
    "stroke_length",
    "stroke_straightness",
    "stroke_start_speed",
    "stroke_end_speed",
    "click_rate",
    "click_hold",
    "click_wait",
    "scroll_share",
    "drag_share",
)
SLOTS: Final = ("prompt", *POSITION_SLOTS, *TYPING_SLOTS, *MOUSE_SLOTS)
"""Names of a sample's slots, in order."""

SLOT_INDEX: Final = {name: index for index, name in enumerate(SLOTS)}
PROMPT: Final = 0
POSITIONS: Final = slice(1, 1 + len(POSITION_SLOTS))
TYPING: Final = slice(POSITIONS.stop, POSITIONS.stop + len(TYPING_SLOTS))
MOUSE: Final = slice(TYPING.stop, TYPING.stop + len(MOUSE_SLOTS))

_HOLD_AT, _FLIGHT_AT = POSITIONS.start, POSITIONS.start + KEYS
_PRESSURE_AT = _FLIGHT_AT + KEYS - 1
_SIZE_AT = _PRESSURE_AT + KEYS
_MIN_MOVING_STEPS: Final = 6
_GRID_MAX: Final = 1024
_TINY: Final = 1e-6
_LETTERS: Final = frozenset((LETTER_LEFT, LETTER_RIGHT))
_ZERO: Final = np.zeros(1)
_GRID: Final = GRID_MS * np.arange(_GRID_MAX + 1)


def _no_floats() -> Floats:
    return np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class KeystrokeRun:
    """A run of K keystrokes.

    Attributes:
        prompt_id: names the known text that was typed; empty for free text.
        key_classes: uint8[K], values of the contract's `KeyClass`.
        hold_ms: float32[K], how long each key was held.
        flight_ms: float32[K], from the press before to this press; 0 first.
        pressure: float32[K] in 0 to 1, or empty.
        contact_size: float32[K] in 0 to 1, or empty.
    """

    prompt_id: str
    key_classes: Bytes
    hold_ms: Floats
    flight_ms: Floats
    pressure: Floats = field(default_factory=_no_floats)
    contact_size: Floats = field(default_factory=_no_floats)


@dataclass(frozen=True, slots=True)
class MousePath:
    """A stretch of pointer movement of K reports.

    Attributes:
        time_ms: milliseconds since the first report, never falling.
        x_px: pixels right of the first point.
        y_px: pixels below the first point.
        actions: uint8[K], values of the contract's `PointerAction`.
    """

    time_ms: NDArray[np.generic]
    x_px: NDArray[np.generic]
    y_px: NDArray[np.generic]
    actions: Bytes


def prompt_code(prompt_id: str) -> float:
    """A whole number in 1 to 2**24 - 1 that float32 holds exactly and that names a known text; 0 for free text."""
    return float(1 + zlib.crc32(prompt_id.encode()) % (2**24 - 2)) if prompt_id else 0.0


def sample_of(runs: Sequence[KeystrokeRun], paths: Sequence[MousePath]) -> Floats:
    """One event's sample: float32[len(SLOTS)], NaN where nothing was observed.

    Values that are not finite count as not observed; durations are held to their contract's range.
    """
    sample = np.full(len(SLOTS), np.nan, np.float32)
    runs = [run for run in runs if len(run.hold_ms)]
    if runs:
        _fill_typing(sample, runs)
    if paths:
        _fill_mouse(sample, paths)
    return sample


def _log_ms(values: Floats, ceiling: float) -> Floats:
    """Natural logarithm of a duration in ms, floored at 1 ms: people's timing varies by ratios, not by differences."""
    return np.log(np.minimum(np.maximum(values, 1.0), ceiling))


def _unit_log(values: Floats) -> Floats:
    """Logarithm of a touch reading in 0 to 1, floored where sensors report nothing."""
    return np.log(np.minimum(np.maximum(values, 0.005), 1.0))


def _fill_typing(sample: Floats, runs: list[KeystrokeRun]) -> None:
    known = next((run for run in runs if run.prompt_id), None)
    sample[PROMPT] = prompt_code(known.prompt_id) if known else 0.0
    if known is not None:
        kept = min(len(known.hold_ms), KEYS)
        sample[_HOLD_AT : _HOLD_AT + kept] = _log_ms(known.hold_ms[:kept], 10_000.0)
        sample[_FLIGHT_AT : _FLIGHT_AT + kept - 1] = _log_ms(known.flight_ms[1:kept], 60_000.0)
        if len(known.pressure):
            sample[_PRESSURE_AT : _PRESSURE_AT + kept] = _unit_log(known.pressure[:kept])
        if len(known.contact_size):
            sample[_SIZE_AT : _SIZE_AT + kept] = _unit_log(known.contact_size[:kept])
    single = runs[0] if len(runs) == 1 else _joined(runs)
    sample[TYPING] = _typing_summary(single)
    typed = sample[: TYPING.stop]
    typed[~np.isfinite(typed)] = np.nan


def _joined(runs: list[KeystrokeRun]) -> KeystrokeRun:
    """All runs as one; the zero flight at each start marks where a run begins."""
    flights = [run.flight_ms.copy() for run in runs]
    for flight in flights:
        flight[0] = 0.0
    return KeystrokeRun(
        prompt_id="",
        key_classes=np.concatenate([run.key_classes for run in runs]),
        hold_ms=np.concatenate([run.hold_ms for run in runs]),
        flight_ms=np.concatenate(flights),
        pressure=np.concatenate([run.pressure for run in runs]),
        contact_size=np.concatenate([run.contact_size for run in runs]),
    )


def _summary(values: list[float]) -> tuple[float, float, float, float]:
    """Mean, spread, and the values a tenth of the way from either end."""
    count = len(values)
    if not count:
        return math.nan, math.nan, math.nan, math.nan
    ordered = sorted(values)
    mean = sum(ordered) / count
    spread = math.sqrt(sum([(value - mean) ** 2 for value in ordered]) / count) if count > 1 else math.nan
    tenth = count // 10
    return mean, spread, ordered[tenth], ordered[count - 1 - tenth]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _held(value: float, ceiling: float) -> float:
    """The logarithm of a duration as `_log_ms` takes it; of what is not a number, the shortest."""
    return math.log(min(value, ceiling)) if value > 1.0 else 0.0


def _typing_summary(run: KeystrokeRun) -> list[float]:
    holds, flights, classes = run.hold_ms.tolist(), run.flight_ms.tolist(), run.key_classes.tolist()
    hold = [_held(value, 10_000.0) for value in holds]
    flight: list[float] = []
    hands: tuple[list[float], list[float], list[float]] = ([], [], [])
    overlapped = 0
    for key in range(1, len(holds)):
        if not flights[key] > 0.0:
            continue
        value = _held(flights[key], 60_000.0)
        flight.append(value)
        overlapped += flights[key] < holds[key - 1]
        now, before = classes[key], classes[key - 1]
        letters = now in _LETTERS and before in _LETTERS
        hands[(0 if now == before else 1) if letters else 2].append(value)
    pressure, size = _touch_summary(run.pressure), _touch_summary(run.contact_size)
    return [
        *_summary(hold),
        _mean([value for value, key in zip(hold, classes, strict=True) if key == LETTER_LEFT]),
        _mean([value for value, key in zip(hold, classes, strict=True) if key == LETTER_RIGHT]),
        _mean([value for value, key in zip(hold, classes, strict=True) if key not in _LETTERS]),
        *_summary(flight),
        *(_mean(values) for values in hands),
        overlapped / len(flight) if flight else math.nan,
        classes.count(CORRECTION) / len(hold),
        *pressure,
        *size,
    ]


def _touch_summary(values: Floats) -> tuple[float, float]:
    return _summary(_unit_log(values).tolist())[:2]


@dataclass(frozen=True, slots=True)
class _Track:
    """Movement on the time grid: displacement of each step, and the pauses between reports."""

    dx: Doubles
    dy: Doubles
    pauses: Doubles


def _track(path: MousePath) -> _Track | None:
    time = np.asarray(path.time_ms, np.float64)
    x, y = np.asarray(path.x_px, np.float64), np.asarray(path.y_px, np.float64)
    gap = time[1:] - time[:-1]
    rested = np.flatnonzero(gap > PAUSE_MS)
    pauses = gap[rested]
    if rested.size:
        # A pointer that rested reports nothing: it left its place one grid step before the next report, not at the
        # last.
        at = rested + 1
        # Rests are shortened to three steps here, since only their own slots (pause_*) should know how long they were.
        gap[rested] = 3.0 * GRID_MS
        time = np.concatenate((_ZERO, np.add.accumulate(gap)))
        order = np.argsort(np.concatenate((time, time[at] - GRID_MS)), kind="stable")
        time = np.concatenate((time, time[at] - GRID_MS))[order]
        x, y = np.concatenate((x, x[rested]))[order], np.concatenate((y, y[rested]))[order]
    steps = min(int((time[-1] - time[0]) / GRID_MS), _GRID_MAX)
    if steps < 2:
        return None
    grid = time[0] + _GRID[: steps + 1]
    at_x, at_y = np.interp(grid, time, x), np.interp(grid, time, y)
    return _Track(at_x[1:] - at_x[:-1], at_y[1:] - at_y[:-1], pauses)


def _fill_mouse(sample: Floats, paths: Sequence[MousePath]) -> None:
    tracks = [track for path in paths if len(path.time_ms) > 1 and (track := _track(path)) is not None]
    if not tracks:
        return
    # A step of zeros parts two stretches, so that no turn is measured across them.
    dx = np.concatenate([values for track in tracks for values in (track.dx, _ZERO)])
    dy = np.concatenate([values for track in tracks for values in (track.dy, _ZERO)])
    pauses = [pause for track in tracks for pause in track.pauses.tolist()]
    length = np.sqrt(dx * dx + dy * dy)
    moving = length > 0.5
    count = int(np.count_nonzero(moving))
    if count < _MIN_MOVING_STEPS:
        return
    strokes, stroke_slots = _stroke_slots(dx.tolist(), dy.tolist(), length.tolist())
    values = np.array(
        [
            *_speed_slots(length, moving),
            *_shape_slots(dx, dy, length, moving),
            *_pause_slots(pauses, 1.0 - count / len(moving), count * GRID_MS / 1000.0),
            *stroke_slots,
            *_click_slots(paths, strokes),
        ]
    )
    values[~np.isfinite(values)] = np.nan
    sample[MOUSE] = values


def _moments(values: Doubles) -> tuple[float, float]:
    """Mean and standard deviation; NaN of nothing."""
    count = len(values)
    if not count:
        return math.nan, math.nan
    mean = float(np.add.reduce(values)) / count
    return mean, math.sqrt(max(float(values @ values) / count - mean * mean, 0.0))


def _speed_slots(length: Doubles, moving: NDArray[np.bool_]) -> list[float]:
    speed = np.log(length[moving])
    speed.sort()
    count = len(speed)
    step = length[1:] - length[:-1]
    both = moving[1:] & moving[:-1]
    change = np.log(np.abs(step)[both] + 3.0)
    jerk = np.log(np.abs(step[1:] - step[:-1])[both[1:] & both[:-1]] + 5.0)
    change_mean, change_spread = _moments(change)
    return [
        *_moments(speed),
        float(speed[count // 10]),
        float(speed[count // 2]),
        float(speed[count - 1 - count // 10]),
        change_mean,
        change_spread if len(change) > 1 else math.nan,
        _moments(jerk)[0],
    ]


def _shape_slots(dx: Doubles, dy: Doubles, length: Doubles, moving: NDArray[np.bool_]) -> list[float]:
    angle = np.arctan2(dy, dx)
    both = moving[1:] & moving[:-1]
    turn = (angle[1:] - angle[:-1])[both]
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    size = np.abs(turn)
    count = len(turn)
    # Movements of no length weigh nothing, so that all steps may be counted.
    sector = ((angle + (np.pi / 8 + 2 * np.pi)) * (4 / np.pi)).astype(np.int64) & 7
    share = np.bincount(sector, np.where(moving, length, 0.0), 8)
    across = float(np.add.reduce(np.abs(dx)))
    if count:
        curvature = np.log((size + 0.15) / (length[1:] + length[:-1])[both])
        turned = [
            *_moments(size),
            float(np.add.reduce(turn)) / count,
            float(np.count_nonzero(size < 0.4)) / count,
            float(np.count_nonzero(size > 1.6)) / count,
            *_moments(curvature),
        ]
    else:
        turned = [math.nan] * 7
    total = float(np.add.reduce(share))
    return [*turned, *(share / total).tolist(), across / (across + float(np.add.reduce(np.abs(dy))) + _TINY)]


def _pause_slots(pauses: list[float], resting: float, seconds: float) -> list[float]:
    logs = [math.log(min(max(pause, PAUSE_MS), 60_000.0)) for pause in pauses]
    total = sum(pauses)
    mean = sum(logs) / len(logs) if logs else math.nan
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs)) if len(logs) > 1 else math.nan
    return [resting, mean, spread, total / (total + 1000.0 * seconds)]


def _stroke_slots(dx: list[float], dy: list[float], length: list[float]) -> tuple[int, list[float]]:
    """Strokes are runs of movement between rests: how many, and their slots."""
    durations = reaches = starts = ends = path = net = 0.0
    count = steps = 0
    reach = x = y = last = 0.0
    for step_x, step_y, step in zip(dx, dy, length, strict=True):
        if step > 0.5:
            if not steps:
                count += 1
                starts += math.log(step)
                reach = x = y = 0.0
            steps += 1
            reach, x, y, last = reach + step, x + step_x, y + step_y, step
        elif steps:
            durations += math.log(steps)
            reaches += math.log(reach + _TINY)
            ends += math.log(last)
            path += reach
            net += math.hypot(x, y)
            steps = 0
    # The last step is always one of rest, so that every stroke has ended.
    return count, [durations / count, reaches / count, net / (path + _TINY), starts / count, ends / count]


def _click_slots(paths: Sequence[MousePath], strokes: int) -> list[float]:
    holds: list[float] = []
    waits: list[float] = []
    presses = scrolls = drags = reports = 0
    for path in paths:
        actions = path.actions.tolist()
        reports += len(actions)
        scrolls += actions.count(SCROLL)
        drags += actions.count(DRAG)
        if PRESS not in actions:
            continue
        time = path.time_ms.tolist()
        released = len(actions)
        for index in range(len(actions) - 1, -1, -1):
            if actions[index] == RELEASE:
                released = index
            elif actions[index] == PRESS:
                presses += 1
                if released < len(actions):
                    holds.append(math.log(min(max(time[released] - time[index], 10.0), 10_000.0)))
                if index:
                    waits.append(math.log(min(max(time[index] - time[index - 1], 50.0), 10_000.0)))
    return [
        presses / max(strokes, 1),
        sum(holds) / len(holds) if holds else math.nan,
        sum(waits) / len(waits) if waits else math.nan,
        scrolls / reports,
        drags / reports,
    ]
