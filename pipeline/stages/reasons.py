"""Why an event scored as it did, in words a person can judge: which measures, how far from this person's own normal."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline.batch import Reason
from pipeline.features.expand import NAMES
from pipeline.features.layout import GROUP_SLICES, MEASURES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.batch import Floats, Scores
    from pipeline.parameters import Parameters

AT_MOST: Final = 5
LEAST: Final = 1.0
"""Spreads from the person's mean below which a measure is no reason."""

GROUP_LEAST: Final = 0.7
"""The same for the average of a group of key positions."""

SINGLE_LEAST: Final = 2.5
"""The same for a single key position of a group that does not stray as a whole."""

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
_FAMILIES: Final = (
    ("hold", ("hold",)),
    ("flight", ("flight", "overlap")),
    ("pressure", ("pressure",)),
    ("size", ("size",)),
    ("correction", ("correction",)),
    ("speed", ("speed", "acceleration", "jerk", "stroke_start", "stroke_end")),
    ("shape", ("turn", "curvature", "stroke_straightness")),
    ("direction", ("direction", "horizontal")),
    ("pause", ("pause", "rest")),
    ("stroke", ("stroke",)),
    ("click", ("click",)),
    ("scroll", ("scroll", "drag")),
)
_CONTEXT_AT: Final = {NAMES.index(f"context.{name}"): name for name in _CONTEXT}
_POSITIONS: Final = GROUP_SLICES[3].stop
_MOUSE_FROM: Final = GROUP_SLICES[5].start


def _family(name: str) -> str:
    return next(family for family, prefixes in _FAMILIES if name.startswith(prefixes))


_FAMILY_OF: Final = tuple(_family(name) for name in MEASURES)


class _Candidate(NamedTuple):
    """A reason before it is put into words."""

    weight: float
    measure: int
    deviation: float
    of_group: bool
    """True when a whole group of key positions strays by this much on average."""


def reasons_of(scores: Scores, index: int, parameters: Parameters) -> list[Reason]:
    """The strongest reasons for one event, at most five and at most one of a family; contributions add up to at most
    1."""
    strongest: dict[str, _Candidate] = {}
    for candidate in _candidates(scores.deviation[index].tolist()):
        family = _FAMILY_OF[candidate.measure]
        if family not in strongest or candidate.weight > strongest[family].weight:
            strongest[family] = candidate
    features = scores.features[index]
    found = [(candidate.weight, _worded(candidate)) for candidate in strongest.values()]
    found += [*_context_reasons(features, parameters), *_history_reasons(features, parameters)]
    found.sort(key=lambda pair: -pair[0])
    total = sum(weight for weight, _ in found) or 1.0
    return [replace(reason, contribution=min(weight / total, 1.0)) for weight, reason in found[:AT_MOST]]


def _candidates(deviation: list[float]) -> Iterable[_Candidate]:
    """Key positions speak as a group, or through the one that stands out most; summaries and mouse measures for
    themselves."""
    for part in GROUP_SLICES[:4]:
        seen = [(abs(value), at) for at, value in enumerate(deviation[part], part.start) if not isnan(value)]
        if not seen:
            continue
        place = max(seen)[1]
        mean = sum(deviation[at] for _, at in seen) / len(seen)
        if abs(mean) >= GROUP_LEAST:
            yield _Candidate(_weight(mean) * 1.5, place, mean, of_group=True)
        elif abs(deviation[place]) >= SINGLE_LEAST:
            yield _Candidate(_weight(deviation[place]) * 0.5, place, deviation[place], of_group=False)
    for at in range(_POSITIONS, len(deviation)):
        if abs(deviation[at]) >= LEAST:
            yield _Candidate(_weight(deviation[at]), at, deviation[at], of_group=False)


def _worded(candidate: _Candidate) -> Reason:
    name, value = MEASURES[candidate.measure], candidate.deviation
    if name in _DIRECTIONS:
        text = f"The pointer goes {_DIRECTIONS[name]} {_phrase('more often' if value > 0 else 'less often', value)}."
    elif candidate.measure < _POSITIONS:
        group, place = name.rsplit("_", 1)
        subject, more, less = _WORDS[group]
        where = "" if candidate.of_group else f", at key {int(place)}"
        how = "on average " if candidate.of_group else ""
        text = f"{subject} {how}{_phrase(more if value > 0 else less, value)}{where}."
    else:
        subject, more, less = _WORDS[name]
        text = f"{subject} {_phrase(more if value > 0 else less, value)}."
    modality = "mouse" if candidate.measure >= _MOUSE_FROM else "typing"
    return Reason(f"deviation.{name}", text, round(value, 2), 0.0, modality)


def _context_reasons(features: Floats, parameters: Parameters) -> Iterable[tuple[float, Reason]]:
    for at, name in _CONTEXT_AT.items():
        value = float(features[at] * parameters.feature_spread[at] + parameters.feature_mean[at])
        worse = -value if name in {"biometric_confidence", "location_consistency"} else value
        if worse > 0.15:
            modality = "navigation" if name == "navigation_anomaly" else "context"
            yield 8.0 * worse, Reason(f"context.{name}", _CONTEXT[name], round(value, 2), 0.0, modality)


def _history_reasons(features: Floats, parameters: Parameters) -> Iterable[tuple[float, Reason]]:
    """The events before this one speak too: a score may be high although the newest event alone is not far off."""
    odds, typing, mouse = (
        float(features[at] * parameters.feature_spread[at] + parameters.feature_mean[at]) for at in _HISTORY_AT
    )
    if odds < -0.15:
        text = "The last events, taken together, fit other people better than this person."
        modality = "typing" if typing <= mouse else "mouse"
        yield 1.0 - 2.0 * odds, Reason("mean_10.event_odds", text, round(odds, 2), 0.0, modality)


_HISTORY_AT: Final = tuple(NAMES.index(f"mean_10.{name}") for name in ("event_odds", "typing_odds", "mouse_odds"))


def _weight(deviation: float) -> float:
    return float(min(abs(deviation), 6.0) ** 1.5)


def _phrase(comparison: str, deviation: float) -> str:
    return f"{comparison} than usual, by {min(abs(deviation), 20.0):.1f} times this person's usual spread"
