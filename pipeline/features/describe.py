"""One event to one step: how well the event fits its owner, seen from several sides.

Log odds are natural logarithms; positive ones speak for the owner. Everything is computed for a whole batch at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.compiled import compiled
from pipeline.features.evidence import PHRASE_FEATURES, SUBSETS, TIMING_FEATURES, gather
from pipeline.features.layout import CONTEXT, GROUPS, STEP_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.features.evidence import Evidence
    from pipeline.parameters import Floats, Parameters

STEP_NAMES: Final = (
    "present",
    "typing_present",
    "mouse_present",
    "touch_present",
    "phrase_known",
    "typing_odds",
    "mouse_odds",
    "event_odds",
    *(f"cohort_{subset}" for subset in SUBSETS),
    "rank_timing",
    "rank_all",
    *(f"self_{group}" for group in GROUPS),
    "mouse_background",
    "typing_distance",
    "mouse_distance",
    "typing_maturity",
    "mouse_maturity",
    "typing_distinct",
    "typing_steadiness",
    "context_odds",
    "typing_shift",
)
"""Names of a step's values, in order."""

STEP: Final = {name: index for index, name in enumerate(STEP_NAMES)}
_TYPED, _MOVED = STEP["typing_present"], STEP["mouse_present"]
_TOUCHED, _KNOWN = STEP["touch_present"], STEP["phrase_known"]
assert len(STEP_NAMES) == STEP_SIZE  # noqa: S101  a layout that does not add up must not be importable

REGIMES: Final = ("touch", "timing", "text", "mouse")
"""What a window was judged by at best: the cohort's phrase with touch readings, its timing alone, other text, or the
mouse alone."""

_TOUCH: Final = (3, 4, 5, 6)
"""Places in `SUBSETS` of those that need touch readings."""

# How far each context feature moves the log odds when it is at its worst; measured on nothing, set by hand, and zero
# at the neutral value.
_CONTEXT_NEUTRAL: Final = {
    "network_activity": (0.5, 1.0, 1.0),
    "authentication_patterns": (0.5, 1.0, 1.5),
    "biometric_confidence": (0.5, 0.0, 2.0),
    "location_consistency": (0.5, 0.0, 2.0),
    "api_usage_anomaly": (0.0, 1.0, 0.5),
    "data_access_risk": (0.0, 1.0, 0.5),
    "navigation_anomaly": (0.0, 1.0, 0.5),
    "privilege_escalation_attempt": (0.0, 1.0, 2.0),
    "failed_auth_ratio": (0.0, 1.0, 1.0),
}
_CONTEXT_AT: Final = np.array([CONTEXT.index(name) for name in _CONTEXT_NEUTRAL])
_CONTEXT_FROM, _CONTEXT_TO, _CONTEXT_WEIGHT = np.array(list(_CONTEXT_NEUTRAL.values()), np.float32).T


def context_odds(context: Floats) -> Floats:
    """Evidence of takeover in the context, as log odds 0 to 4: [N, 15] to [N]. Not finite, or neutral, counts as
    nothing."""
    values = context[:, _CONTEXT_AT]
    share = np.clip((values - _CONTEXT_FROM) / (_CONTEXT_TO - _CONTEXT_FROM), 0.0, 1.0)
    odds: Floats = np.minimum(np.nan_to_num(share) @ _CONTEXT_WEIGHT, np.float32(4.0))
    return odds


def describe(context: Floats, sample: Floats, baseline: Floats, parameters: Parameters) -> Floats:
    """One step an event, from the event alone: context [N, 15], sample [N, S], baseline [N, B] to float32[N, D].

    Never raises on values: what is not finite counts as not observed, and every value of the answer lies in -4 to 4.
    """
    return steps_of(context, gather(sample, baseline, parameters), parameters)


def steps_of(context: Floats, evidence: Evidence, parameters: Parameters) -> Floats:
    """Steps [N, D] of events whose evidence was gathered."""
    step = np.zeros((len(context), STEP_SIZE), np.float32)
    typed, moved = evidence.seen[:, :5].any(1), evidence.seen[:, 5]
    typing, mouse = event_odds(evidence, parameters)
    step[:, 0] = 1.0
    step[:, 1], step[:, 2], step[:, 3], step[:, 4] = typed, moved, evidence.touch, evidence.known
    step[:, 5], step[:, 6] = typing / 3.0, mouse / 2.0
    step[:, 7] = (typing + mouse) / 4.0
    phrase = evidence.phrase * evidence.known[:, None]
    step[:, 8:15] = phrase[:, :7] / 2.0
    step[:, 8 + np.array(_TOUCH)] *= evidence.touch[:, None]
    step[:, 15] = phrase[:, PHRASE_FEATURES.index("rank_timing")] / 3.0
    step[:, 16] = phrase[:, PHRASE_FEATURES.index("rank_all")] / 3.0 * evidence.touch
    step[:, 17:22] = evidence.generic[:, 5:10] / 2.0
    step[:, 22] = evidence.mouse[:, 4] / 2.0
    step[:, 23] = evidence.mouse[:, 0] / 6.0 * moved
    step[:, 24] = (evidence.generic[:, 4] - 0.8) * typed
    step[:, 25] = (evidence.mouse[:, 3] - 0.8) * moved
    step[:, 26] = evidence.generic[:, -1] * typed
    step[:, 27] = evidence.mouse[:, 5] * moved
    step[:, 28] = phrase[:, PHRASE_FEATURES.index("distinct_timing")] - evidence.known
    step[:, 29] = phrase[:, PHRASE_FEATURES.index("steadiness_timing")]
    step[:, 30] = context_odds(context)
    step[:, 31] = evidence.generic[:, 11] * typed
    return np.clip(np.nan_to_num(step), -4.0, 4.0, out=step)


def event_odds(evidence: Evidence, parameters: Parameters) -> tuple[Floats, Floats]:
    """Log odds of single events for the owner: typing [N], mouse [N]; 0 where nothing could be compared."""
    generic = parameters.typing_generic.log_odds(evidence.generic)
    timing = parameters.typing_timing.log_odds(
        np.concatenate([evidence.phrase[:, TIMING_FEATURES], evidence.generic], 1)
    )
    full = parameters.typing_full.log_odds(np.concatenate([evidence.phrase, evidence.generic], 1))
    typed = evidence.seen[:, :5].any(1)
    typing = np.where(evidence.touch, full, np.where(evidence.known, timing, generic)) * typed
    mouse = parameters.mouse_event.log_odds(evidence.mouse) * evidence.seen[:, 5]
    return typing, mouse


def regime_of(window: Floats) -> NDArray[np.intp]:
    """Place in `REGIMES` of each window [N, 50, D]: each has weights and calibration of its own, since evidence
    differs in strength."""
    return observed(window)[0]


@compiled
def observed(window: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The regime of each window [N, 50, D], and whether anything in it could be compared with the person at all."""
    regime, compared = np.empty(len(window), np.intp), np.empty(len(window), np.bool_)
    for event in range(len(window)):
        typed = moved = touched = known = False
        for step in range(window.shape[1]):
            typed |= window[event, step, _TYPED] > 0
            moved |= window[event, step, _MOVED] > 0
            touched |= window[event, step, _TOUCHED] > 0
            known |= window[event, step, _KNOWN] > 0
        regime[event] = 0 if touched else 1 if known else 2 if typed else 3
        compared[event] = typed or moved
    return regime, compared
