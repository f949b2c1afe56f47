"""From an event and its window of steps to the 256 named features that the autoencoder looks at.

In order: the newest step, means of its main values over the last 3 to 50 steps, their changes, spreads and extremes,
the deviation of every measure from the person's mean in the person's own spreads, the measures' signs of life, and
the document's features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.compiled import compiled
from pipeline.features.describe import STEP, STEP_NAMES
from pipeline.features.layout import CONTEXT, FEATURE_COUNT, MEASURES

if TYPE_CHECKING:
    from pipeline.parameters import Floats

TRACKED: Final = (
    "typing_odds",
    "mouse_odds",
    "event_odds",
    "cohort_timing",
    "cohort_touch",
    "cohort_all",
    "rank_timing",
    "self_hold",
    "self_flight",
    "self_typing",
    "self_mouse",
    "mouse_background",
)
"""Values of a step that are followed over the window."""

SPANS: Final = (3, 5, 10, 20, 50)
"""Numbers of latest steps over which they are averaged."""

# The first of `TRACKED`, side by side in a step.
_FOLLOWED: Final = ("typing_odds", "mouse_odds", "event_odds")
_COUNTED: Final = ("typing_present", "mouse_present", "touch_present")
_DRIFT: Final = (3, 5, 10)
# A device's hash is an identifier and no measure: a model that read it would learn who has which telephone.
_UNREAD: Final = frozenset({"device_fingerprint_hash", "session_duration", "threat_indicators", "user_behavior_score"})
_READ_CONTEXT: Final = tuple(name for name in CONTEXT if name not in _UNREAD)
_CONTEXT_AT: Final = np.array([CONTEXT.index(name) for name in _READ_CONTEXT])
_NEUTRAL: Final = np.array(
    [
        0.5
        if name
        in {
            "network_activity",
            "authentication_patterns",
            "biometric_confidence",
            "location_consistency",
            "typing_pattern_deviation",
            "mouse_dynamic_variance",
        }
        else 0.0
        for name in _READ_CONTEXT
    ],
    np.float32,
)

_SPREAD_SPANS: Final = (5, 10, 20, 50)

NAMES: Final = (
    *(f"step.{name}" for name in STEP_NAMES),
    *(f"mean_{span}.{name}" for span in SPANS for name in TRACKED),
    *(f"change_{span}.{name}" for span in _DRIFT for name in _FOLLOWED),
    *(f"spread_{span}.{name}" for span in _SPREAD_SPANS for name in _FOLLOWED),
    *(f"lowest_{span}.{name}" for span in (5, 20) for name in _FOLLOWED),
    "highest_5.event_odds",
    *(f"share_50.{name}" for name in _COUNTED),
    *(f"deviation.{name}" for name in MEASURES),
    *(f"context.{name}" for name in _READ_CONTEXT),
    "window.fill",
)
"""Names of the 256 features, in order."""
assert len(NAMES) == FEATURE_COUNT  # noqa: S101  a layout that does not add up must not be importable

# What each tracked value is averaged over: the steps in which it could be observed.
_OBSERVED_BY: Final = {
    "typing_odds": "typing_present",
    "mouse_odds": "mouse_present",
    "event_odds": "present",
    "cohort_timing": "phrase_known",
    "cohort_touch": "touch_present",
    "cohort_all": "touch_present",
    "rank_timing": "phrase_known",
    "self_hold": "typing_present",
    "self_flight": "typing_present",
    "self_typing": "typing_present",
    "self_mouse": "mouse_present",
    "mouse_background": "mouse_present",
}
_TRACKED_AT: Final = np.array([STEP[name] for name in TRACKED])
_OBSERVED_AT: Final = np.array([STEP[_OBSERVED_BY[name]] for name in TRACKED])
_COUNTED_AT: Final = np.array([STEP[name] for name in _COUNTED])
_FOLLOWED_AT: Final = STEP["typing_odds"]
_PRESENT: Final = STEP["present"]
_BASE: Final = len(STEP_NAMES)
_SPAN_COUNT: Final = len(SPANS)
_SPANS: Final = np.array(SPANS)
_DRIFTS: Final = np.array([SPANS.index(span) for span in _DRIFT])
_SPREADS: Final = np.array([SPANS.index(span) for span in _SPREAD_SPANS])
_LIMIT: Final = 6.0


def expand(context: Floats, deviation: Floats, window: Floats) -> Floats:
    """The 256 features of N events: context [N, 15], deviation [N, measures] (NaN where unknown), window [N, 50, D]
    with the newest step last and rows of zeros before the first. Every value is finite and lies in -6 to 6.
    """
    features = np.empty((len(window), FEATURE_COUNT), np.float32)
    _expand(context, deviation, window, features)
    return features


@compiled
def _expand(context: Floats, deviation: Floats, window: Floats, features: Floats) -> None:
    sums, squares = np.empty((_SPAN_COUNT, window.shape[2]), np.float32), np.empty((_SPAN_COUNT, 3), np.float32)
    extremes = np.empty(7, np.float32)
    running, square = np.empty(window.shape[2], np.float32), np.empty(3, np.float32)
    for event in range(len(window)):
        out = features[event]
        out[:_BASE] = window[event, -1]
        _walk(window, event, running, square, sums, squares, extremes)
        at = _means(sums, out, _BASE)
        at = _changes(sums, out, at)
        at = _spreads(sums, squares, out, at)
        out[at : at + 7] = extremes
        at += 7
        present = sums[-1, _PRESENT]
        for counted in range(len(_COUNTED_AT)):
            out[at + counted] = sums[-1, _COUNTED_AT[counted]] / max(present, np.float32(1.0))
        at += len(_COUNTED_AT)
        for measure in range(deviation.shape[1]):
            value = deviation[event, measure]
            out[at + measure] = min(max(value, -_LIMIT), _LIMIT) if value == value else 0.0  # noqa: PLR0124 - tells NaN
        at += deviation.shape[1]
        for read in range(len(_CONTEXT_AT)):
            value = context[event, _CONTEXT_AT[read]]
            held = min(max(value, 0.0), 1.0) - _NEUTRAL[read]
            out[at + read] = held if value == value else 0.0  # noqa: PLR0124 - tells NaN
        out[at + len(_CONTEXT_AT)] = present / window.shape[1]


@compiled
def _walk(
    window: Floats, event: int, running: Floats, square: Floats, sums: Floats, squares: Floats, extremes: Floats
) -> None:
    """From the newest step back: sums of all values and of the followed ones' squares over each span, the followed
    ones' lowest of the last 5 and 20 steps, and the highest `event_odds` of the last 5.
    """
    running[:], square[:] = 0.0, 0.0
    extremes[:6], extremes[6] = np.inf, -np.inf
    steps, span = window.shape[1], 0
    for age in range(steps):
        # Indexed in full: a view of the step would cost as much as all that is done with it.
        at = steps - 1 - age
        for value in range(len(running)):
            running[value] += window[event, at, value]
        for followed in range(3):
            found = window[event, at, _FOLLOWED_AT + followed]
            square[followed] += found * found
            if age < 5:
                extremes[followed] = min(extremes[followed], found)
            if age < 20:
                extremes[3 + followed] = min(extremes[3 + followed], found)
        if age < 5:
            extremes[6] = max(extremes[6], window[event, at, _FOLLOWED_AT + 2])
        if age + 1 == _SPANS[span]:
            sums[span], squares[span] = running, square
            span += 1


@compiled
def _means(sums: Floats, out: Floats, at: int) -> int:
    """Means of the tracked values over the spans, each over the steps in which it was observed."""
    for span in range(len(sums)):
        for tracked in range(len(_TRACKED_AT)):
            out[at] = sums[span, _TRACKED_AT[tracked]] / max(sums[span, _OBSERVED_AT[tracked]], np.float32(1.0))
            at += 1
    return at


@compiled
def _changes(sums: Floats, out: Floats, at: int) -> int:
    """How the latest steps differ from those before them; 0 where there are none before."""
    for span in _DRIFTS:
        for followed in range(3):
            value, seen = _FOLLOWED_AT + followed, _OBSERVED_AT[followed]
            late, count = sums[span, value], sums[span, seen]
            before = sums[-1, seen] - count
            out[at] = late / count - (sums[-1, value] - late) / before if before > 0 and count > 0 else 0.0
            at += 1
    return at


@compiled
def _spreads(sums: Floats, squares: Floats, out: Floats, at: int) -> int:
    """Standard deviations of the followed values over the spans."""
    for span in _SPREADS:
        for followed in range(3):
            count = max(sums[span, _OBSERVED_AT[followed]], np.float32(1.0))
            mean = sums[span, _FOLLOWED_AT + followed] / count
            out[at] = np.sqrt(max(squares[span, followed] / count - mean * mean, np.float32(0.0)))
            at += 1
    return at
