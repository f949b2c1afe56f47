"""Raw behaviour to numbers: one event's keystrokes and pointer movement become one *sample*.

A sample is a float32 vector with one named slot a measure (`SLOTS`, described in `docs/evidence.md`); NaN means "not
observed". It holds timing, touch and geometry only: never a character, a screen position or a sampling rate.

Pointer movement is read on a common time grid of `GRID_MS`, because mice report at anything between 8 and 125 ms: measured at
the native rate, the device and not the person would be recognised.
"""

from __future__ import annotations

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
    return np.log(np.clip(values, 1.0, ceiling))


def _unit_log(values: Floats) -> Floats:
    """Logarithm of a touch reading in 0 to 1, floored where sensors report nothing."""
    return np.log(np.clip(values, 0.005, 1.0))


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


def _summary(values: Floats) -> tuple[float, float, float, float]:
    """Mean, spread, and the values a tenth of the way from either end."""
    count = len(values)
    if not count:
        return np.nan, np.nan, np.nan, np.nan
    ordered = np.sort(values)
    mean = float(ordered.sum()) / count
    offset = ordered - mean
    spread = (float(offset @ offset) / count) ** 0.5
    tenth = count // 10
    return mean, spread if count > 1 else np.nan, float(ordered[tenth]), float(ordered[count - 1 - tenth])


def _mean_where(values: Floats, chosen: NDArray[np.bool_]) -> float:
    count = int(np.count_nonzero(chosen))
    return float(values @ chosen) / count if count else np.nan


def _typing_summary(run: KeystrokeRun) -> list[float]:
    hold = _log_ms(np.nan_to_num(run.hold_ms, nan=1.0), 10_000.0)
    flight = _log_ms(np.nan_to_num(run.flight_ms, nan=1.0), 60_000.0)
    left, right = run.key_classes == LETTER_LEFT, run.key_classes == LETTER_RIGHT
    special = ~(left | right)
    flowing = run.flight_ms > 0
    flowing[0] = False
    same = (left[1:] & left[:-1]) | (right[1:] & right[:-1])
    other = (left[1:] & right[:-1]) | (right[1:] & left[:-1])
    after, moves = flight[1:], flowing[1:]
    overlapped = (run.flight_ms[1:] < run.hold_ms[:-1]) & moves
    moved = int(np.count_nonzero(moves))
    pressure, size = _summary(_unit_log(run.pressure)), _summary(_unit_log(run.contact_size))
    return [
        *_summary(hold),
        _mean_where(hold, left),
        _mean_where(hold, right),
        _mean_where(hold, special),
        *_summary(after[moves]),
        _mean_where(after, same & moves),
        _mean_where(after, other & moves),
        _mean_where(after, moves & ~(same | other)),
        float(np.count_nonzero(overlapped)) / moved if moved else np.nan,
        float(np.count_nonzero(run.key_classes == CORRECTION)) / len(hold),
        pressure[0],
        pressure[1],
        size[0],
        size[1],
    ]


@dataclass(frozen=True, slots=True)
class _Track:
    """Movement on the time grid: displacement of each step, and the pauses between reports."""

    dx: Doubles
    dy: Doubles
    pauses: Doubles


def _track(path: MousePath) -> _Track | None:
    time = np.asarray(path.time_ms, np.float64)
    x, y = np.asarray(path.x_px, np.float64), np.asarray(path.y_px, np.float64)
    gap = np.diff(time)
    pause = gap > PAUSE_MS
    if pause.any():
        # A pointer that rested reports nothing: it left its place one grid step before the next report, not at the last one.
        at = np.flatnonzero(pause) + 1
        # Rests are shortened to two steps here, since only their own slots (pause_*) should know how long they were.
        shortened = gap.copy()
        shortened[pause] = 3.0 * GRID_MS
        time = np.concatenate(([0.0], np.cumsum(shortened)))
        time = np.insert(time, at, time[at] - GRID_MS)
        x, y = np.insert(x, at, x[at - 1]), np.insert(y, at, y[at - 1])
    steps = min(int((time[-1] - time[0]) / GRID_MS), _GRID_MAX)
    if steps < 2:
        return None
    grid = time[0] + GRID_MS * np.arange(steps + 1)
    return _Track(np.diff(np.interp(grid, time, x)), np.diff(np.interp(grid, time, y)), gap[pause])


def _fill_mouse(sample: Floats, paths: Sequence[MousePath]) -> None:
    tracks = [track for path in paths if len(path.time_ms) > 1 and (track := _track(path)) is not None]
    if not tracks:
        return
    # A step of zeros parts two stretches, so that no turn is measured across them.
    part = np.zeros(1)
    dx = np.concatenate([values for track in tracks for values in (track.dx, part)])
    dy = np.concatenate([values for track in tracks for values in (track.dy, part)])
    pauses = np.concatenate([track.pauses for track in tracks])
    length = np.hypot(dx, dy)
    moving = length > 0.5
    if np.count_nonzero(moving) < _MIN_MOVING_STEPS:
        return
    seconds = np.count_nonzero(moving) * GRID_MS / 1000.0
    strokes = int(np.count_nonzero(moving[1:] & ~moving[:-1])) + int(moving[0])
    values = [
        *_speed_slots(length, moving),
        *_shape_slots(dx, dy, length, moving),
        *_pause_slots(pauses, moving, seconds),
        *_stroke_slots(dx, dy, length, moving),
        *_click_slots(paths, strokes),
    ]
    sample[MOUSE] = np.where(np.isfinite(values), values, np.nan)


def _speed_slots(length: Doubles, moving: NDArray[np.bool_]) -> list[float]:
    speed = np.log(length[moving])
    ordered = np.sort(speed)
    count = len(ordered)
    change = np.abs(np.diff(length))[moving[1:] & moving[:-1]]
    change_log = np.log(change + 3.0)
    jerk = np.abs(np.diff(length, 2))[moving[2:] & moving[1:-1] & moving[:-2]]
    return [
        float(speed.mean()),
        float(speed.std()),
        float(ordered[count // 10]),
        float(ordered[count // 2]),
        float(ordered[count - 1 - count // 10]),
        float(change_log.mean()) if len(change) else np.nan,
        float(change_log.std()) if len(change) > 1 else np.nan,
        float(np.log(jerk + 5.0).mean()) if len(jerk) else np.nan,
    ]


def _shape_slots(dx: Doubles, dy: Doubles, length: Doubles, moving: NDArray[np.bool_]) -> list[float]:
    angle = np.arctan2(dy, dx)
    turn = np.diff(angle)
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    both = moving[1:] & moving[:-1]
    turn = turn[both]
    size = np.abs(turn)
    count = len(turn)
    sector = np.floor((angle[moving] + np.pi / 8) / (np.pi / 4)).astype(np.int64) % 8
    share = np.bincount(sector, length[moving], 8)
    total = float(share.sum())
    across = float(np.abs(dx).sum())
    if count:
        curvature = np.log((size + 0.15) / (length[1:][both] + length[:-1][both]))
        turned = [
            float(size.mean()),
            float(size.std()),
            float(turn.mean()),
            float(np.count_nonzero(size < 0.4)) / count,
            float(np.count_nonzero(size > 1.6)) / count,
            float(curvature.mean()),
            float(curvature.std()),
        ]
    else:
        turned = [np.nan] * 7
    return [*turned, *(share / total), across / (across + float(np.abs(dy).sum()) + _TINY)]


def _pause_slots(pauses: Doubles, moving: NDArray[np.bool_], seconds: float) -> list[float]:
    logs = np.log(np.clip(pauses, PAUSE_MS, 60_000.0))
    return [
        1.0 - float(np.count_nonzero(moving)) / len(moving),
        float(logs.mean()) if len(logs) else np.nan,
        float(logs.std()) if len(logs) > 1 else np.nan,
        float(pauses.sum()) / (float(pauses.sum()) + 1000.0 * seconds),
    ]


def _stroke_slots(dx: Doubles, dy: Doubles, length: Doubles, moving: NDArray[np.bool_]) -> list[float]:
    """Strokes are runs of movement between rests."""
    edge = np.diff(np.concatenate(([False], moving, [False])).astype(np.int8))
    starts, ends = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    lengths = np.add.reduceat(np.append(length, 0.0), np.column_stack((starts, ends)).ravel())[::2]
    net_x = np.add.reduceat(np.append(dx, 0.0), np.column_stack((starts, ends)).ravel())[::2]
    net_y = np.add.reduceat(np.append(dy, 0.0), np.column_stack((starts, ends)).ravel())[::2]
    return [
        float(np.log(ends - starts).mean()),
        float(np.log(lengths + _TINY).mean()),
        float(np.hypot(net_x, net_y).sum() / (lengths.sum() + _TINY)),
        float(np.log(length[starts]).mean()),
        float(np.log(length[ends - 1]).mean()),
    ]


def _click_slots(paths: Sequence[MousePath], strokes: int) -> list[float]:
    holds: list[float] = []
    waits: list[float] = []
    presses = scrolls = drags = reports = 0
    for path in paths:
        actions = np.asarray(path.actions)
        reports += len(actions)
        scrolls += int(np.count_nonzero(actions == SCROLL))
        drags += int(np.count_nonzero(actions == DRAG))
        down = np.flatnonzero(actions == PRESS)
        presses += len(down)
        if not len(down):
            continue
        time = np.asarray(path.time_ms, np.float64)
        up = np.flatnonzero(actions == RELEASE)
        follow = np.searchsorted(up, down)
        paired = follow < len(up)
        holds += (time[up[follow[paired]]] - time[down[paired]]).tolist()
        inner = down[down > 0]
        waits += (time[inner] - time[inner - 1]).tolist()
    return [
        presses / max(strokes, 1),
        float(np.log(np.clip(holds, 10.0, 10_000.0)).mean()) if holds else np.nan,
        float(np.log(np.clip(waits, 50.0, 10_000.0)).mean()) if waits else np.nan,
        scrolls / reports,
        drags / reports,
    ]
