"""From an event and its window of steps to the 256 named features that the autoencoder looks at.

In order: the newest step, means of its main values over the last 3 to 50 steps, their changes, spreads and extremes,
the deviation of every measure from the person's mean in the person's own spreads, the measures' signs of life, and
the document's features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.features.describe import STEP, STEP_NAMES
from pipeline.features.layout import CONTEXT, FEATURE_COUNT, MEASURES, WINDOW

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
_FOLLOWED_AT: Final = slice(STEP["typing_odds"], STEP["event_odds"] + 1)
_FOLLOWED_IN_TRACKED: Final = slice(0, 3)
_LAST: Final = np.array([[age < span for age in range(WINDOW - 1, -1, -1)] for span in SPANS], np.float32)
_BASE: Final = len(STEP_NAMES)


def expand(context: Floats, deviation: Floats, window: Floats) -> Floats:
    """The 256 features of N events: context [N, 15], deviation [N, measures] (NaN where unknown), window [N, 50, D]
    with the newest step last and rows of zeros before the first. Every value is finite and lies in -6 to 6.
    """
    features = np.empty((len(window), FEATURE_COUNT), np.float32)
    features[:, :_BASE] = window[:, -1]
    sums = np.matmul(_LAST, window)
    total, count = sums[:, :, _TRACKED_AT], sums[:, :, _OBSERVED_AT]
    parts = [
        (total / np.maximum(count, 1.0)).reshape(len(window), -1),
        _changes(total, count),
        *_extremes(window, total, count),
        sums[:, -1, [STEP[name] for name in _COUNTED]] / np.maximum(sums[:, -1, :1], 1.0),
        np.nan_to_num(np.clip(deviation, -6.0, 6.0)),
        np.nan_to_num(np.clip(context[:, _CONTEXT_AT], 0.0, 1.0) - _NEUTRAL),
        sums[:, -1, :1] / WINDOW,
    ]
    at = _BASE
    for part in parts:
        features[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return features


def _changes(total: Floats, count: Floats) -> Floats:
    """How the latest steps differ from those before them; 0 where there are none before."""
    followed, seen = total[:, :, _FOLLOWED_IN_TRACKED], count[:, :, _FOLLOWED_IN_TRACKED]
    changes = []
    for span in _DRIFT:
        index = SPANS.index(span)
        late, late_count = followed[:, index], seen[:, index]
        early_count = seen[:, -1] - late_count
        early = (followed[:, -1] - late) / np.maximum(early_count, 1.0)
        changes.append(np.where((early_count > 0) & (late_count > 0), late / np.maximum(late_count, 1.0) - early, 0.0))
    return np.concatenate(changes, 1)


def _extremes(window: Floats, total: Floats, count: Floats) -> tuple[Floats, Floats, Floats]:
    # Steps first: then all events are reduced at once instead of three values at a time.
    followed = np.ascontiguousarray(window[:, :, _FOLLOWED_AT].transpose(1, 0, 2))
    square = np.tensordot(_LAST, np.square(followed), 1)
    spreads = []
    for span in _SPREAD_SPANS:
        index = SPANS.index(span)
        seen = np.maximum(count[:, index, _FOLLOWED_IN_TRACKED], 1.0)
        mean = total[:, index, _FOLLOWED_IN_TRACKED] / seen
        spreads.append(np.sqrt(np.maximum(square[index] / seen - np.square(mean), 0.0)))
    lowest = np.concatenate([followed[-5:].min(0), followed[-20:].min(0)], 1)
    return np.concatenate(spreads, 1), lowest, followed[-5:, :, 2].max(0)[:, None]
