"""The document's 15 features of an event, and the risk that they alone suggest before any model has seen it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from servers.threat.places import NEUTRAL

if TYPE_CHECKING:
    from servers.threat.baseline import Deviations
    from servers.threat.context import ContextScores
    from servers.threat.observations import Observation

FEATURES: Final = (
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
"""Names of the features, in the document's order (`ThreatEventRecord`)."""

# What each context field feeds, so that a simulated field marks every feature that rests on it.
_FED_BY: Final = {
    "ip_address": ("network_activity", "location_consistency"),
    "network_fingerprint": ("network_activity",),
    "location": ("location_consistency",),
    "device_fingerprint": ("device_fingerprint_hash",),
    "authentication": ("authentication_patterns", "biometric_confidence", "failed_auth_ratio"),
    "api_call_frequency": ("api_usage_anomaly",),
    "data_access_patterns": ("data_access_risk", "privilege_escalation_attempt"),
    "navigation_pattern": ("navigation_anomaly",),
    "session_duration": ("session_duration",),
}

# How much of the risk a feature can carry when it is fully raised. Behaviour leads: it is what was measured and
# evaluated on people; the context weights are set by judgement, low enough that none of them alone makes an event a
# threat.
_WEIGHTS: Final = {
    # name: (weight, neutral value, worst value)
    "user_behavior_score": (0.70, NEUTRAL, 1.0),
    "network_activity": (0.10, NEUTRAL, 1.0),
    "authentication_patterns": (0.20, NEUTRAL, 1.0),
    "biometric_confidence": (0.35, NEUTRAL, 0.0),
    "location_consistency": (0.45, NEUTRAL, 0.0),
    "api_usage_anomaly": (0.25, 0.0, 1.0),
    "data_access_risk": (0.35, 0.0, 1.0),
    "navigation_anomaly": (0.15, 0.0, 1.0),
    "privilege_escalation_attempt": (0.40, 0.0, 1.0),
    "failed_auth_ratio": (0.25, 0.0, 1.0),
}
_RISKS: Final = tuple((name, FEATURES.index(name), *how) for name, how in _WEIGHTS.items())
_MAX_INDICATORS: Final = 10
_LEAST_RISK: Final = 0.02


class FeatureVector(NamedTuple):
    """The 15 features of one event."""

    values: tuple[float | int, ...]
    """In the order of `FEATURES`; all 0 to 1 but `threat_indicators` (0 to 10) and `session_duration` (seconds)."""
    simulated: tuple[str, ...]
    """Names of the features that rest on simulated values."""

    def value(self, name: str) -> float:
        """One feature by its name."""
        return float(self.values[FEATURES.index(name)])


def features_of(seen: Observation, behavior: Deviations, context: ContextScores) -> FeatureVector:
    """The 15 features, from how far the behaviour is from the person's own and from what the context says."""
    simulated = simulated_features(seen.context.simulated)
    values = (
        behavior.overall,
        context.network_activity,
        context.authentication_patterns,
        context.biometric_confidence,
        _indicators(behavior, context, simulated),
        seen.session_seconds,
        context.device_fingerprint_hash,
        context.location_consistency,
        context.api_usage_anomaly,
        context.data_access_risk,
        behavior.typing,
        behavior.mouse,
        context.navigation_anomaly,
        context.privilege_escalation_attempt,
        context.failed_auth_ratio,
    )
    return FeatureVector(values, simulated)


def simulated_features(fields: frozenset[str]) -> tuple[str, ...]:
    """Features that rest on any of these simulated context fields; names that feed nothing are ignored."""
    if not fields:
        return ()
    marked = {feature for name in fields for feature in _FED_BY.get(name, ())}
    return tuple(name for name in FEATURES if name in marked)


def preliminary_risk(features: FeatureVector, *, behavior_known: float) -> float:
    """Risk by the 15 features alone, 0 to 1.

    Independent pieces of evidence, each between its neutral value and its worst, joined as "at least one is right"
    (noisy or). Simulated features carry nothing. `behavior_known` (0 to 1) says how far the baseline is learnt:
    behaviour counts that much.
    """
    values, simulated = features.values, features.simulated
    safe = 1.0 - _LEAST_RISK
    for name, index, weight, neutral, worst in _RISKS:
        raised = (values[index] - neutral) / (worst - neutral)
        if raised > 0.0 and name not in simulated:
            safe *= 1.0 - (weight * behavior_known if index == 0 else weight) * raised
    return 1.0 - safe


def _indicators(behavior: Deviations, context: ContextScores, simulated: tuple[str, ...]) -> int:
    """How many independent indicators are raised, 0 to 10; simulated features raise none."""
    raised = {
        "typing_pattern_deviation": behavior.typing > 0.8,
        "mouse_dynamic_variance": behavior.mouse > 0.8,
        "network_activity": context.network_activity > 0.7,
        "device_fingerprint_hash": context.device_novelty > 0.7,
        "location_consistency": context.location_consistency < 0.25,
        "authentication_patterns": context.authentication_patterns > 0.7 or context.failed_auth_ratio > 0.6,
        "biometric_confidence": context.biometric_confidence < 0.3,
        "api_usage_anomaly": context.api_usage_anomaly > 0.8,
        "data_access_risk": context.data_access_risk > 0.7,
        "navigation_anomaly": context.navigation_anomaly > 0.8,
        "privilege_escalation_attempt": context.privilege_escalation_attempt > 0.6,
    }
    if simulated:
        raised = {name: on for name, on in raised.items() if name not in simulated}
    return min(_MAX_INDICATORS, sum(raised.values()))
