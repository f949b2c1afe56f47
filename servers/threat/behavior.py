"""Raw behaviour to numbers: one event's keystrokes and pointer movement become one *sample*.

A sample is a float32 vector with one named slot a measure (`SLOTS`, described in `docs/evidence.md`); NaN means "not
observed". It holds timing, touch and geometry only: never a character, a screen position or a sampling rate.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from servers.threat.compiled import compiled
from servers.threat.keystrokes import key_positions, typing_summary
from servers.threat.movement import mouse_summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]
    Numbers = NDArray[np.int64]

EVIDENCE_VERSION: Final = 1
"""Version of the layout of samples and baselines; a change to `SLOTS` or to what a slot means raises it."""

KEYS: Final = 16
"""Key positions of a known text that are kept; later keys count in the summaries alone."""

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
_UNOBSERVED: Final = np.full(len(SLOTS), np.nan, np.float32)
_NO_FLOATS: Final = np.empty(0, np.float32)


class KeystrokeRun(NamedTuple):
    """A run of K keystrokes.

    Attributes:
        prompt_id: names the known text that was typed; empty for free text.
        key_classes: int64[K], values of the contract's `KeyClass`.
        hold_ms: float32[K], how long each key was held.
        flight_ms: float32[K], from the press before to this press; 0 first.
        pressure: float32[K] in 0 to 1, or empty.
        contact_size: float32[K] in 0 to 1, or empty.
    """

    prompt_id: str
    key_classes: Numbers
    hold_ms: Floats
    flight_ms: Floats
    pressure: Floats = _NO_FLOATS
    contact_size: Floats = _NO_FLOATS


class MousePath(NamedTuple):
    """A stretch of pointer movement of K reports.

    Attributes:
        time_ms: float64[K], milliseconds since the first report, never falling.
        x_px: float64[K], pixels right of the first point.
        y_px: float64[K], pixels below the first point.
        actions: int64[K], values of the contract's `PointerAction`.
    """

    time_ms: Doubles
    x_px: Doubles
    y_px: Doubles
    actions: Numbers


_NO_NUMBERS: Final = np.empty(0, np.int64)
_NO_DOUBLES: Final = np.empty(0)
_NO_RUN: Final = KeystrokeRun("", _NO_NUMBERS, _NO_FLOATS, _NO_FLOATS)
_NO_PATH: Final = MousePath(_NO_DOUBLES, _NO_DOUBLES, _NO_DOUBLES, _NO_NUMBERS)
_POSITIONS_FROM, _POSITIONS_TO, _TYPING_TO = POSITIONS.start, POSITIONS.stop, TYPING.stop


def prompt_code(prompt_id: str) -> float:
    """A whole number in 1 to 2**24 - 1 that float32 holds exactly and that names a known text; 0 for free text."""
    return float(1 + zlib.crc32(prompt_id.encode()) % (2**24 - 2)) if prompt_id else 0.0


def sample_of(runs: Sequence[KeystrokeRun], paths: Sequence[MousePath]) -> Floats:
    """One event's sample: float32[len(SLOTS)], NaN where nothing was observed.

    Values that are not finite count as not observed; durations are held to their contract's range.
    """
    sample = _UNOBSERVED.copy()
    runs = [run for run in runs if len(run.hold_ms)]
    paths = [path for path in paths if len(path.time_ms)]
    known = next((run for run in runs if run.prompt_id), None)
    if runs:
        sample[PROMPT] = prompt_code(known.prompt_id) if known is not None else 0.0
    if known is not None and len(runs) > 1:
        key_positions(*known[2:], sample[POSITIONS])
        known = None
    run = _NO_RUN if not runs else runs[0] if len(runs) == 1 else _joined(runs)
    path, starts = _one_path(paths)
    _describe(*run[1:], known is not None, *path, starts, sample)
    return sample


@compiled
def _describe(  # noqa: PLR0913, PLR0917 - a compiled loop takes arrays, not the objects that hold them
    classes: Numbers,
    holds: Floats,
    flights: Floats,
    pressure: Floats,
    size: Floats,
    known: bool,
    time: Doubles,
    x: Doubles,
    y: Doubles,
    actions: Numbers,
    starts: Numbers,
    sample: Floats,
) -> None:
    """All of an event in one call, because a call costs as much as the work."""
    if len(holds):
        if known:
            key_positions(holds, flights, pressure, size, sample[_POSITIONS_FROM:_POSITIONS_TO])
        typing_summary(classes, holds, flights, pressure, size, sample[_POSITIONS_TO:_TYPING_TO])
    if len(time):
        mouse_summary(time, x, y, actions, starts, sample[_TYPING_TO:])


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


def _one_path(paths: list[MousePath]) -> tuple[MousePath, Numbers]:
    """All stretches as one, and where each begins, with the end last."""
    if not paths:
        return _NO_PATH, _NO_NUMBERS
    if len(paths) == 1:
        return paths[0], np.array((0, len(paths[0].time_ms)))
    time, x, y, actions = (np.concatenate(columns) for columns in zip(*paths, strict=True))
    return MousePath(time, x, y, actions), np.cumsum([0, *(len(path.time_ms) for path in paths)])
