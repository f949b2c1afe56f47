"""The layout of what comes in: names of the document's 15 features, of a sample's slots and of a baseline's values.

The threat service writes samples and baselines, the pipeline reads them, and neither imports the other: both follow
`docs/evidence.md`, and a test holds the two lists against each other. `EVIDENCE_VERSION` on the record says which
layout it follows.
"""

from __future__ import annotations

from typing import Final

EVIDENCE_VERSION: Final = 1
"""Version of the layout that this pipeline reads."""

WINDOW: Final = 50
"""Steps of a person's recent past that a score looks at."""

STEP_SIZE: Final = 32
"""Values of one step."""

FEATURE_COUNT: Final = 256
"""Values that the autoencoder looks at."""

CONTEXT: Final = (
    "user_behavior_score",
    "network_activity",
    "authentication_patterns",
    "biometric_confidence",
    "threat_indicators",
    "session_duration",
    "device_fingerprint_hash",
    "location_consistency",
    "api_usage_anomaly",
    "data_access_risk",
    "typing_pattern_deviation",
    "mouse_dynamic_variance",
    "navigation_anomaly",
    "privilege_escalation_attempt",
    "failed_auth_ratio",
)
"""The document's 15 features, in its order."""

KEYS: Final = 16
HOLD_SLOTS: Final = tuple(f"hold_{i:02}" for i in range(1, KEYS + 1))
FLIGHT_SLOTS: Final = tuple(f"flight_{i:02}" for i in range(2, KEYS + 1))
PRESSURE_SLOTS: Final = tuple(f"pressure_{i:02}" for i in range(1, KEYS + 1))
SIZE_SLOTS: Final = tuple(f"size_{i:02}" for i in range(1, KEYS + 1))
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
MEASURES: Final = (*HOLD_SLOTS, *FLIGHT_SLOTS, *PRESSURE_SLOTS, *SIZE_SLOTS, *TYPING_SLOTS, *MOUSE_SLOTS)
"""Slots that have a mean and a spread in the baseline."""

SLOTS: Final = ("prompt", *MEASURES)
"""A sample's slots, in order."""

GROUPS: Final = ("hold", "flight", "pressure", "size", "typing", "mouse")
BASELINE_HEADER: Final = (
    "typing_samples",
    "mouse_samples",
    "prompt_samples",
    "prompt",
    *(f"self_mean_{group}" for group in GROUPS),
    *(f"self_spread_{group}" for group in GROUPS),
)
SAMPLE_SIZE: Final = len(SLOTS)
BASELINE_SIZE: Final = len(BASELINE_HEADER) + 2 * len(MEASURES)


def _slice(first: str, last: str) -> slice:
    return slice(MEASURES.index(first), MEASURES.index(last) + 1)


GROUP_SLICES: Final = (
    _slice(HOLD_SLOTS[0], HOLD_SLOTS[-1]),
    _slice(FLIGHT_SLOTS[0], FLIGHT_SLOTS[-1]),
    _slice(PRESSURE_SLOTS[0], PRESSURE_SLOTS[-1]),
    _slice(SIZE_SLOTS[0], SIZE_SLOTS[-1]),
    _slice(TYPING_SLOTS[0], TYPING_SLOTS[-1]),
    _slice(MOUSE_SLOTS[0], MOUSE_SLOTS[-1]),
)
"""Where each group lies among `MEASURES`."""
