"""Why an event scored as it did, in words a person can judge: which measures, how far from this person's own normal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.batch import Reason
from pipeline.features.expand import NAMES
from pipeline.features.layout import GROUP_SLICES, GROUPS, MEASURES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.batch import Floats, Scores
    from pipeline.parameters import Parameters

AT_MOST: Final = 5
LEAST: Final = 1.0
"""Spreads from the person's mean below which a measure is no reason."""

# Subject, verb, and what more and less of it are called.
_WORDS: Final[dict[str, tuple[str, str, str]]] = {
    "hold": ("Keys are held", "longer", "shorter"),
    "flight": ("Pauses between keys are", "longer", "shorter"),
    "pressure": ("Touch pressure is", "higher", "lower"),
    "size": ("The finger's contact area is", "larger", "smaller"),
    "hold_mean": ("Keys are held", "longer", "shorter"),
    "hold_spread": ("The time keys are held varies", "more", "less"),
    "hold_low": ("The shortest key presses are", "longer", "shorter"),
    "hold_high": ("The longest key presses are", "longer", "shorter"),
    "hold_left": ("Left-hand keys are held", "longer", "shorter"),
    "hold_right": ("Right-hand keys are held", "longer", "shorter"),
    "hold_special": ("Shift, digits and symbols are held", "longer", "shorter"),
    "flight_mean": ("Pauses between keys are", "longer", "shorter"),
    "flight_spread": ("The rhythm between keys varies", "more", "less"),
    "flight_low": ("The quickest key pairs are", "slower", "quicker"),
    "flight_high": ("The slowest key pairs are", "slower", "quicker"),
    "flight_same_hand": ("Keys in a row on one hand come", "slower", "quicker"),
    "flight_other_hand": ("Keys on alternating hands come", "slower", "quicker"),
    "flight_special": ("Shift, digits and symbols come", "slower", "quicker"),
    "overlap_share": ("Keys overlap", "more often", "less often"),
    "correction_share": ("Corrections are", "more frequent", "rarer"),
    "pressure_mean": ("Touch pressure is", "higher", "lower"),
    "pressure_spread": ("Touch pressure varies", "more", "less"),
    "size_mean": ("The finger's contact area is", "larger", "smaller"),
    "size_spread": ("The finger's contact area varies", "more", "less"),
    "speed_mean": ("The pointer moves", "faster", "slower"),
    "speed_spread": ("The pointer's speed varies", "more", "less"),
    "speed_low": ("The pointer's slowest movements are", "faster", "slower"),
    "speed_median": ("The pointer typically moves", "faster", "slower"),
    "speed_high": ("The pointer's fastest movements are", "faster", "slower"),
    "acceleration_mean": ("The pointer changes speed", "more abruptly", "more gently"),
    "acceleration_spread": ("How the pointer changes speed varies", "more", "less"),
    "jerk_mean": ("Pointer movement is", "jerkier", "smoother"),
    "turn_mean": ("The pointer turns", "more sharply", "less sharply"),
    "turn_spread": ("The sharpness of the pointer's turns varies", "more", "less"),
    "turn_bias": ("The pointer turns clockwise", "more", "less"),
    "turn_straight_share": ("The pointer goes straight on", "more often", "less often"),
    "turn_back_share": ("The pointer turns back", "more often", "less often"),
    "curvature_mean": ("The pointer's path is", "more curved", "less curved"),
    "curvature_spread": ("The curvature of the pointer's path varies", "more", "less"),
    "horizontal_share": ("Pointer movement is sideways", "more", "less"),
    "rest_share": ("The pointer rests", "more", "less"),
    "pause_mean": ("The pointer's pauses are", "longer", "shorter"),
    "pause_spread": ("The length of the pointer's pauses varies", "more", "less"),
    "pause_share": ("The pointer pauses", "more", "less"),
    "stroke_duration": ("Pointer strokes last", "longer", "shorter"),
    "stroke_length": ("Pointer strokes reach", "further", "less far"),
    "stroke_straightness": ("Pointer strokes are", "straighter", "less straight"),
    "stroke_start_speed": ("Pointer strokes start", "faster", "slower"),
    "stroke_end_speed": ("Pointer strokes end", "faster", "slower"),
    "click_rate": ("Clicks are", "more frequent", "rarer"),
    "click_hold": ("The mouse button is held", "longer", "shorter"),
    "click_wait": ("The wait before a click is", "longer", "shorter"),
    "scroll_share": ("Scrolling is", "more frequent", "rarer"),
    "drag_share": ("Dragging is", "more frequent", "rarer"),
}
_DIRECTIONS: Final = {
    "direction_e": "to the right",
    "direction_se": "down and right",
    "direction_s": "down",
    "direction_sw": "down and left",
    "direction_w": "to the left",
    "direction_nw": "up and left",
    "direction_n": "up",
    "direction_ne": "up and right",
}
_CONTEXT: Final = {
    "network_activity": "The network is new for this person.",
    "authentication_patterns": "Signing in has been unusual lately.",
    "biometric_confidence": "The last biometric check was weak.",
    "location_consistency": "The place does not fit this person.",
    "api_usage_anomaly": "The rate of calls is unusual for this person.",
    "data_access_risk": "Sensitive data is being touched in an unusual way.",
    "navigation_anomaly": "The path through the application is unusual for this person.",
    "privilege_escalation_attempt": "Rights are being widened.",
    "failed_auth_ratio": "Many sign-ins failed lately.",
}
_CONTEXT_AT: Final = {NAMES.index(f"context.{name}"): name for name in _CONTEXT}
_POSITION_GROUPS: Final = GROUPS[:4]


def reasons_of(scores: Scores, index: int, parameters: Parameters) -> list[Reason]:
    """The strongest reasons for one event, at most five; contributions add up to at most 1."""
    found = [
        *_measure_reasons(scores.deviation[index]),
        *_context_reasons(scores.features[index], parameters),
        *_history_reasons(scores.features[index], parameters),
    ]
    found.sort(key=lambda reason: -reason.contribution)
    total = sum(reason.contribution for reason in found) or 1.0
    return [
        Reason(reason.feature, reason.text, reason.deviation, min(reason.contribution / total, 1.0), reason.modality)
        for reason in found[:AT_MOST]
    ]


def _measure_reasons(deviation: Floats) -> Iterable[Reason]:
    """Key positions speak as a group, through the one that stands out most; summaries and mouse measures for
    themselves."""
    for group, part in zip(_POSITION_GROUPS, GROUP_SLICES, strict=False):
        values = deviation[part]
        seen = np.flatnonzero(np.isfinite(values))
        if not len(seen):
            continue
        mean = float(values[seen].mean())
        place = int(seen[np.abs(values[seen]).argmax()])
        subject, more, less = _WORDS[group]
        feature = f"deviation.{MEASURES[part.start + place]}"
        if abs(mean) >= 0.7 * LEAST:
            text = _sentence(subject, more if mean > 0 else less, mean, "on average ")
            yield Reason(feature, text, round(mean, 2), _weight(mean) * 1.5, "typing")
        elif abs(value := float(values[place])) >= 2.5 * LEAST:
            key = place + 1 + (group == "flight")
            text = f"{_sentence(subject, more if value > 0 else less, value).removesuffix('.')}, at key {key}."
            yield Reason(feature, text, round(value, 2), _weight(value) * 0.5, "typing")
    for at in np.flatnonzero(np.abs(np.nan_to_num(deviation)) >= LEAST):
        name, value = MEASURES[at], float(deviation[at])
        modality = "mouse" if at >= GROUP_SLICES[5].start else "typing"
        if name in _DIRECTIONS:
            text = (
                f"The pointer goes {_DIRECTIONS[name]} {_phrase('more often' if value > 0 else 'less often', value)}."
            )
        elif name in _WORDS:
            subject, more, less = _WORDS[name]
            text = _sentence(subject, more if value > 0 else less, value)
        else:
            continue
        yield Reason(f"deviation.{name}", text, round(value, 2), _weight(value), modality)


def _context_reasons(features: Floats, parameters: Parameters) -> Iterable[Reason]:
    for at, name in _CONTEXT_AT.items():
        value = float(features[at] * parameters.feature_spread[at] + parameters.feature_mean[at])
        worse = -value if name in {"biometric_confidence", "location_consistency"} else value
        if worse > 0.15:
            modality = "navigation" if name == "navigation_anomaly" else "context"
            yield Reason(f"context.{name}", _CONTEXT[name], round(value, 2), 4.0 * worse, modality)


def _history_reasons(features: Floats, parameters: Parameters) -> Iterable[Reason]:
    """The events before this one speak too: a score may be high although the newest event alone is not far off."""
    at = NAMES.index("mean_10.event_odds")
    odds = float(features[at] * parameters.feature_spread[at] + parameters.feature_mean[at])
    if odds < -0.15:
        modality = (
            "typing"
            if _raw(features, parameters, "typing_odds") <= _raw(features, parameters, "mouse_odds")
            else "mouse"
        )
        text = "The last events, taken together, fit other people better than this person."
        yield Reason("mean_10.event_odds", text, round(odds, 2), 1.0 - 2.0 * odds, modality)


def _raw(features: Floats, parameters: Parameters, name: str) -> float:
    at = NAMES.index(f"mean_10.{name}")
    return float(features[at] * parameters.feature_spread[at] + parameters.feature_mean[at])


def _weight(deviation: float) -> float:
    return float(min(abs(deviation), 6.0) ** 1.5)


def _phrase(comparison: str, deviation: float) -> str:
    times = min(abs(deviation), 20.0)
    return f"{comparison} than usual, by {times:.1f} times this person's usual spread"


def _sentence(subject: str, comparison: str, deviation: float, how: str = "") -> str:
    return f"{subject} {how}{_phrase(comparison, deviation)}."
