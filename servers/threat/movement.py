"""What stretches of pointer movement say, as compiled loops: see `servers.threat.behavior` for the slots.

Movement is read on a common time grid of `GRID_MS`, because mice report at anything between 8 and 125 ms: measured at
the native rate, the device and not the person would be recognised.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from servers.threat.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Numbers = NDArray[np.int64]

GRID_MS: Final = 120.0
"""Step of the time grid on which pointer movement is read, milliseconds."""

PAUSE_MS: Final = 450.0
"""A gap between two pointer reports longer than this is a pause: the pointer rested."""

GRID_MAX: Final = 1024
"""Steps read of one stretch at most."""

DRAG, PRESS, RELEASE, SCROLL = 2, 3, 4, 7
MAX_STRETCH_MS: Final = 600_000
MAX_PIXELS: Final = 100_000

FINE, UNEVEN_COLUMNS, TIME_RANGE, TIME_FALLS, PIXEL_RANGE, UNKNOWN_ACTION = range(6)

_MIN_MOVING_STEPS: Final = 6
_MOVES: Final = 0.5
_TINY: Final = 1e-6


@compiled
def stroke_fault(time: Doubles, x: Doubles, y: Doubles, actions: Numbers) -> int:
    """What is wrong with the columns of a stretch of at least one report: `FINE` or the number of the fault."""
    count = len(time)
    if len(x) != count or len(y) != count or len(actions) != count:
        return UNEVEN_COLUMNS
    if time[0] != 0 or time[-1] > MAX_STRETCH_MS:
        return TIME_RANGE
    for report in range(1, count):
        if time[report] < time[report - 1]:
            return TIME_FALLS
    for report in range(count):
        if not (abs(x[report]) <= MAX_PIXELS and abs(y[report]) <= MAX_PIXELS):
            return PIXEL_RANGE
    for action in actions:
        if action < 0 or action > 7:  # PointerAction's last value
            return UNKNOWN_ACTION
    return FINE


@compiled
def _without_rests(time: Doubles, x: Doubles, y: Doubles, pauses: Doubles) -> tuple[Doubles, Doubles, Doubles, int]:
    """The reports with rests shortened to three grid steps, since only their own slots (`pause_*`) should know how long
    they were; the rests go into `pauses`.

    A pointer that rested reports nothing: it left its place one grid step before the next report, not at the last.
    """
    count, rests = len(time), 0
    for report in range(1, count):
        rests += time[report] - time[report - 1] > PAUSE_MS
    if not rests:
        return time, x, y, 0
    at_time, at_x, at_y = np.empty(count + rests), np.empty(count + rests), np.empty(count + rests)
    at_time[0], at_x[0], at_y[0] = 0.0, x[0], y[0]
    place = rests = 0
    for report in range(1, count):
        gap = time[report] - time[report - 1]
        if gap > PAUSE_MS:
            pauses[rests] = gap
            rests += 1
            at_time[place + 1] = at_time[place] + 2.0 * GRID_MS
            at_x[place + 1], at_y[place + 1] = at_x[place], at_y[place]
            place, gap = place + 1, GRID_MS
        at_time[place + 1] = at_time[place] + gap
        at_x[place + 1], at_y[place + 1] = x[report], y[report]
        place += 1
    return at_time, at_x, at_y, rests


@compiled
def _steps_on_grid(time: Doubles, x: Doubles, y: Doubles, dx: Doubles, dy: Doubles) -> int:
    """Displacement of each grid step into `dx`, `dy`; how many there are, 0 for a stretch of less than two."""
    count = len(time)
    steps = min(int((time[-1] - time[0]) / GRID_MS), GRID_MAX)
    if steps < 2:
        return 0
    report = 0
    before_x = before_y = 0.0
    for step in range(steps + 1):
        moment = time[0] + step * GRID_MS
        while report + 1 < count and time[report + 1] <= moment:
            report += 1
        at_x, at_y = x[report], y[report]
        if report + 1 < count and moment > time[report]:
            share = (moment - time[report]) / (time[report + 1] - time[report])
            at_x += share * (x[report + 1] - x[report])
            at_y += share * (y[report + 1] - y[report])
        if step:
            dx[step - 1], dy[step - 1] = at_x - before_x, at_y - before_y
        before_x, before_y = at_x, at_y
    return steps


@compiled
def _moments(values: Doubles) -> tuple[float, float]:
    """Mean and standard deviation; NaN of nothing."""
    count = len(values)
    mean = values.sum() / count
    return mean, math.sqrt(max((values * values).sum() / count - mean * mean, 0.0)) if count else math.nan


@compiled
def _speed_slots(length: Doubles, out: Floats) -> None:
    """`speed_*`, `acceleration_*` and `jerk_mean` into `out` [8]."""
    total = len(length)
    speed, change, jerk = np.empty(total), np.empty(total), np.empty(total)
    speeds = changes = jerks = 0
    for step in range(total):
        if length[step] <= _MOVES:
            continue
        speed[speeds] = math.log(length[step])
        speeds += 1
        if not step or length[step - 1] <= _MOVES:
            continue
        slope = length[step] - length[step - 1]
        change[changes] = math.log(abs(slope) + 3.0)
        changes += 1
        if step > 1 and length[step - 2] > _MOVES:
            jerk[jerks] = math.log(abs(slope - (length[step - 1] - length[step - 2])) + 5.0)
            jerks += 1
    ordered = speed[:speeds]
    ordered.sort()
    out[0], out[1] = _moments(ordered)
    out[2], out[3], out[4] = ordered[speeds // 10], ordered[speeds // 2], ordered[speeds - 1 - speeds // 10]
    out[5], spread = _moments(change[:changes])
    out[6] = spread if changes > 1 else math.nan
    out[7] = _moments(jerk[:jerks])[0]


@compiled
def _shape_slots(dx: Doubles, dy: Doubles, length: Doubles, out: Floats) -> None:
    """`turn_*`, `curvature_*`, `direction_*` and `horizontal_share` into `out` [16]."""
    total = len(length)
    size, curvature, share = np.empty(total), np.empty(total), np.zeros(8)
    turns = straight = back = 0
    bias = across = down = angle = before = 0.0
    for step in range(total):
        angle = math.atan2(dy[step], dx[step])
        across += abs(dx[step])
        down += abs(dy[step])
        if length[step] > _MOVES:
            share[int((angle + (math.pi / 8 + 2 * math.pi)) * (4 / math.pi)) & 7] += length[step]
            if step and length[step - 1] > _MOVES:
                turn = (angle - before + math.pi) % (2 * math.pi) - math.pi
                bias += turn
                size[turns] = abs(turn)
                straight += size[turns] < 0.4
                back += size[turns] > 1.6
                curvature[turns] = math.log((size[turns] + 0.15) / (length[step] + length[step - 1]))
                turns += 1
        before = angle
    out[0], out[1] = _moments(size[:turns])
    out[2], out[3], out[4] = bias / turns, straight / turns, back / turns
    out[5], out[6] = _moments(curvature[:turns])
    out[7:15] = share / share.sum()
    out[15] = across / (across + down + _TINY)


@compiled
def _pause_slots(pauses: Doubles, moving: int, total: int, out: Floats) -> None:
    """`rest_share` and `pause_*` into `out` [4]."""
    count = len(pauses)
    logs = np.log(np.minimum(np.maximum(pauses, PAUSE_MS), 60_000.0))
    mean = logs.sum() / count
    out[0] = 1.0 - moving / total
    out[1] = mean
    out[2] = math.sqrt(((logs - mean) ** 2).sum() / count) if count > 1 else math.nan
    out[3] = pauses.sum() / (pauses.sum() + moving * GRID_MS)


@compiled
def _stroke_slots(dx: Doubles, dy: Doubles, length: Doubles, out: Floats) -> int:
    """`stroke_*` into `out` [5]; how many strokes there are. Strokes are runs of movement between rests; the last step
    is always one of rest, so that every stroke has ended.
    """
    durations = reaches = starts = ends = path = net = 0.0
    count = steps = 0
    reach = x = y = last = 0.0
    for step in range(len(length)):
        if length[step] > _MOVES:
            if not steps:
                count += 1
                starts += math.log(length[step])
                reach = x = y = 0.0
            steps += 1
            last = length[step]
            reach, x, y = reach + last, x + dx[step], y + dy[step]
        elif steps:
            durations += math.log(steps)
            reaches += math.log(reach + _TINY)
            ends += math.log(last)
            path += reach
            net += math.hypot(x, y)
            steps = 0
    out[0], out[1], out[2] = durations / count, reaches / count, net / (path + _TINY)
    out[3], out[4] = starts / count, ends / count
    return count


@compiled
def _click_slots(time: Doubles, actions: Numbers, starts: Numbers, strokes: int, out: Floats) -> None:
    """`click_*`, `scroll_share` and `drag_share` into `out` [5]."""
    holds = waits = 0.0
    held = waited = presses = scrolls = drags = 0
    for stretch in range(len(starts) - 1):
        released = -1
        for report in range(starts[stretch + 1] - 1, starts[stretch] - 1, -1):
            action = actions[report]
            scrolls += action == SCROLL
            drags += action == DRAG
            if action == RELEASE:
                released = report
            elif action == PRESS:
                presses += 1
                if released >= 0:
                    holds += math.log(min(max(time[released] - time[report], 10.0), 10_000.0))
                    held += 1
                if report > starts[stretch]:
                    waits += math.log(min(max(time[report] - time[report - 1], 50.0), 10_000.0))
                    waited += 1
    out[0] = presses / max(strokes, 1)
    out[1], out[2] = holds / held, waits / waited
    out[3], out[4] = scrolls / len(actions), drags / len(actions)


@compiled
def mouse_summary(time: Doubles, x: Doubles, y: Doubles, actions: Numbers, starts: Numbers, out: Floats) -> None:
    """The slots of `MOUSE_SLOTS` into `out` [38], which holds NaN and keeps it where nothing can be said.

    Args:
        time: ms since the first report of each stretch; never falls within one.
        x: pixels.
        y: pixels.
        actions: values of the contract's `PointerAction`.
        starts: places at which stretches begin, and the number of reports last.
        out: float32[38].
    """
    room = (len(starts) - 1) * (GRID_MAX + 1)
    dx, dy, pauses = np.empty(room), np.empty(room), np.empty(len(time))
    total = rested = 0
    for stretch in range(len(starts) - 1):
        part = slice(starts[stretch], starts[stretch + 1])
        if starts[stretch + 1] - starts[stretch] < 2:
            continue
        at_time, at_x, at_y, rests = _without_rests(time[part], x[part], y[part], pauses[rested:])
        steps = _steps_on_grid(at_time, at_x, at_y, dx[total:], dy[total:])
        if steps:
            rested += rests
            # A step of zeros parts two stretches, so that no turn is measured across them.
            dx[total + steps] = dy[total + steps] = 0.0
            total += steps + 1
    dx, dy = dx[:total], dy[:total]
    length = np.sqrt(dx * dx + dy * dy)
    moving = 0
    for step in range(total):
        moving += length[step] > _MOVES
    if moving < _MIN_MOVING_STEPS:
        return
    _speed_slots(length, out[0:8])
    _shape_slots(dx, dy, length, out[8:24])
    _pause_slots(pauses[:rested], moving, total, out[24:28])
    strokes = _stroke_slots(dx, dy, length, out[28:33])
    _click_slots(time, actions, starts, strokes, out[33:38])
    for slot in range(len(out)):
        if not math.isfinite(out[slot]):
            out[slot] = math.nan
