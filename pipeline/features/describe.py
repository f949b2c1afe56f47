"""One event to one step: how well the event fits its owner, seen from several sides.

Log odds are natural logarithms; positive ones speak for the owner. Everything is computed for a whole batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.features.layout import BASELINE_HEADER, CONTEXT, GROUP_SLICES, GROUPS, MEASURES, STEP_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats, MouseCohort, Parameters, TypingCohort

SUBSETS: Final = ("timing", "hold", "flight", "pressure", "size", "touch", "all")
"""Groups of a phrase's measures that are compared with the cohort separately."""

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
assert len(STEP_NAMES) == STEP_SIZE  # noqa: S101  a layout that does not add up must not be importable

REGIMES: Final = ("touch", "timing", "text", "mouse")
"""What a window was judged by at best: the cohort's phrase with touch readings, its timing alone, other text, or the
mouse alone."""

LEARNT_FROM: Final = 5
"""Samples that a mean must rest on before an event is compared with it."""

_CLIP: Final = 4.0
_HEADER = {name: index for index, name in enumerate(BASELINE_HEADER)}
_STUDENT: Final = 40.0
_TOUCH: Final = (3, 4, 5, 6)
_TIMING_SUBSETS: Final = (0, 1, 2)

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


@dataclass(frozen=True, slots=True)
class Evidence:
    """What single events say, before discriminants weigh it.

    Attributes:
        deviation: [N, measures] in the person's own spreads; NaN where unknown.
        generic: [N, G] features for any text.
        phrase: [N, F] features for the cohort's phrase.
        mouse: [N, U] features of the mouse.
        seen: [N, 6] bool, which of `GROUPS` could be compared.
        known: [N] bool, the phrase is the cohort's and its timing could be compared.
        touch: [N] bool, and its touch readings could too.
    """

    deviation: Floats
    generic: Floats
    phrase: Floats
    mouse: Floats
    seen: NDArray[np.bool_]
    known: NDArray[np.bool_]
    touch: NDArray[np.bool_]


PHRASE_FEATURES: Final = (
    *(f"cohort_{subset}" for subset in SUBSETS),
    *(f"distance_{subset}" for subset in SUBSETS),
    *(f"distinct_{subset}" for subset in SUBSETS),
    *(f"steadiness_{subset}" for subset in SUBSETS),
    "rank_timing",
    "rank_touch",
    "rank_all",
    "nearest_timing",
    "nearest_touch",
    "nearest_all",
    "maturity",
)
TIMING_FEATURES: Final = np.array(
    [i for i, name in enumerate(PHRASE_FEATURES) if not name.endswith(("_pressure", "_size", "_touch", "_all"))]
)
"""Places of the phrase features that need no touch readings."""

GENERIC_FEATURES: Final = (
    *(f"distance_{group}" for group in GROUPS[:5]),
    *(f"self_{group}" for group in GROUPS[:5]),
    *(f"shift_{group}" for group in GROUPS[:5]),
    *(f"seen_{group}" for group in GROUPS[:4]),
    "self_mean",
    "self_highest",
    "maturity",
)
MOUSE_FEATURES: Final = ("background", "distance", "commonness", "own", "self", "maturity")


def deviations(sample: Floats, baseline: Floats) -> Floats:
    """Each measure's distance from the person's mean in the person's own spreads: float32[N, measures], NaN where
    unknown."""
    header = len(BASELINE_HEADER)
    mean, spread = baseline[:, header : header + len(MEASURES)], baseline[:, header + len(MEASURES) :]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scaled = (sample[:, 1:] - mean) / np.maximum(spread, 1e-3)
    scaled[~np.isfinite(scaled)] = np.nan
    held: Floats = np.clip(scaled, -20.0, 20.0).astype(np.float32, copy=False)
    return held


def context_odds(context: Floats) -> Floats:
    """Evidence of takeover in the context, as log odds 0 to 4: [N, 15] to [N]. Not finite, or neutral, counts as
    nothing."""
    values = context[:, _CONTEXT_AT]
    share = np.clip((values - _CONTEXT_FROM) / (_CONTEXT_TO - _CONTEXT_FROM), 0.0, 1.0)
    odds: Floats = np.minimum(np.nan_to_num(share) @ _CONTEXT_WEIGHT, np.float32(4.0))
    return odds


def gather(sample: Floats, baseline: Floats, parameters: Parameters) -> Evidence:
    """Everything that single events say: sample [N, S], baseline [N, B]."""
    return _evidence(sample, baseline, parameters.typing, parameters.mouse)


def _evidence(sample: Floats, baseline: Floats, typing: TypingCohort, mouse: MouseCohort) -> Evidence:
    deviation = deviations(sample, baseline)
    held = np.clip(deviation, -_CLIP, _CLIP)
    seen_slots = np.isfinite(held)
    held = np.where(seen_slots, held, np.float32(0.0))
    enough = np.stack([_header(baseline, name) >= LEARNT_FROM for name in ("typing_samples", "mouse_samples")], 1)
    enough = enough[:, (0, 0, 0, 0, 0, 1)]
    count = np.stack([seen_slots[:, part].sum(1) for part in GROUP_SLICES], 1)
    seen = (count >= np.array([1, 1, 1, 1, 4, 10])) & enough
    divisor = np.maximum(count, 1).astype(np.float32)
    size = np.abs(held)
    distance = np.stack([size[:, part].sum(1) for part in GROUP_SLICES], 1) / divisor
    shift = np.stack([held[:, part].sum(1) for part in GROUP_SLICES], 1) / divisor
    itself = _against_itself(distance, baseline)
    distance, shift, itself = (np.where(seen, values, np.float32(0.0)) for values in (distance, shift, itself))
    maturity = _maturity(_header(baseline, "typing_samples"))
    generic = np.concatenate(
        [
            distance[:, :5],
            itself[:, :5],
            shift[:, :5],
            seen[:, :4].astype(np.float32),
            (itself[:, :5].sum(1) / np.maximum(seen[:, :5].sum(1), 1))[:, None],
            np.where(seen[:, :5], itself[:, :5], np.float32(-6.0)).max(1)[:, None],
            maturity[:, None],
        ],
        1,
    ).astype(np.float32)
    phrase, known, touch = _phrase(sample, baseline, typing)
    moved = _mouse(sample, baseline, mouse, np.column_stack((distance[:, 5], itself[:, 5])))
    return Evidence(deviation, generic, phrase, moved, seen, known & seen[:, 0], touch & known & seen[:, 0])


def _header(baseline: Floats, name: str) -> Floats:
    return np.nan_to_num(baseline[:, _HEADER[name]], nan=0.0, posinf=0.0, neginf=0.0)


def _maturity(count: Floats) -> Floats:
    return np.log1p(np.clip(count, 0.0, 200.0)) * np.float32(0.25)


def _against_itself(distance: Floats, baseline: Floats) -> Floats:
    """Distance beyond what is usual for the person, in their usual variation of it."""
    at, count = _HEADER["self_mean_hold"], len(GROUPS)
    usual, stray = baseline[:, at : at + count], baseline[:, at + count : at + 2 * count]
    with np.errstate(invalid="ignore", over="ignore"):
        excess = (distance - usual) / np.maximum(stray, 0.05)
    return np.clip(np.nan_to_num(excess, nan=0.0, posinf=6.0, neginf=-6.0), -6.0, 6.0)


def _phrase(
    sample: Floats, baseline: Floats, cohort: TypingCohort
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Log odds of the owner against the cohort (two-covariance model, Student tails), by subset of the measures."""
    header, measures = len(BASELINE_HEADER), len(MEASURES)
    value = sample[:, 1 + cohort.columns]
    mean = baseline[:, header + cohort.columns]
    spread = baseline[:, header + measures + cohort.columns]
    finite = np.isfinite(value) & np.isfinite(mean) & np.isfinite(spread)
    count = np.clip(_header(baseline, "prompt_samples"), 1.0, 200.0)
    matches = (sample[:, 0] == cohort.prompt) & (baseline[:, _HEADER["prompt"]] == cohort.prompt)
    timing = cohort.member[0] > 0
    known = matches & (count >= LEARNT_FROM) & finite[:, timing].all(1)
    touch = known & finite[:, ~timing].all(1)
    value = np.where(finite, value - cohort.mean, np.float32(0.0))
    mean = np.where(finite, mean - cohort.mean, np.float32(0.0))
    steady = np.clip(np.where(finite, spread / cohort.spread, np.float32(1.0)), 0.2, 5.0)
    steadiness = np.square(steady) @ cohort.member.T
    within = np.sqrt(steadiness) @ cohort.segment.T
    projected, centre = value @ cohort.project, mean @ cohort.project
    between = cohort.between
    # Matrices [N, J] are the largest of a batch: they are computed in place as far as they can be.
    error = within / count[:, None]
    share = between / (between + error)
    centre *= share
    predicted = np.multiply(share, error, out=error)
    predicted += within
    total = np.add(between, within, out=within)
    own = np.square(np.subtract(projected, centre, out=share), out=share)
    own /= predicted
    any_ = np.square(projected, out=projected)
    any_ /= total
    size = cohort.segment.sum(0)
    own_sum, any_sum = own @ cohort.segment, any_ @ cohort.segment
    tails = np.float32(0.5) * (_STUDENT + size)
    odds = tails * (np.log1p(any_sum / _STUDENT) - np.log1p(own_sum / _STUDENT))
    predicted /= total
    odds -= np.float32(0.5) * (np.log(predicted, out=predicted) @ cohort.segment)
    distinct = np.square(centre, out=centre) @ (cohort.segment / between[:, None]) / size
    rank, nearest = _ranks(value / cohort.spread, mean / cohort.spread, cohort)
    features = np.concatenate(
        [
            odds / np.sqrt(size),
            np.log(own_sum / size + 1e-3),
            distinct,
            np.log(steadiness + 1e-3),
            rank,
            nearest,
            _maturity(count)[:, None],
        ],
        1,
    )
    return np.clip(np.nan_to_num(features), -50.0, 50.0).astype(np.float32), known, touch


def _ranks(value: Floats, mean: Floats, cohort: TypingCohort) -> tuple[Floats, Floats]:
    """Distance to the owner against distances to the cohort's clusters (t-norm), for timing, touch and all measures."""
    member = cohort.member[[0, 5, 6]].T
    own = np.minimum(np.abs(value - mean), 6.0) @ member
    origin = cohort.centroids - cohort.mean / cohort.spread
    others = np.empty((len(value), len(origin), member.shape[1]), np.float32)
    room = np.empty_like(value)
    for index, centre in enumerate(origin):  # one cluster at a time stays in the cache
        np.abs(np.subtract(value, centre, out=room), out=room)
        others[:, index] = np.minimum(room, np.float32(6.0), out=room) @ member
    rank = (own - others.mean(1)) / (others.std(1) + 0.05)
    return rank, own - others.min(1)


def _mouse(sample: Floats, baseline: Floats, cohort: MouseCohort, own: Floats) -> Floats:
    """Log odds of the owner against the background model, Student tails."""
    part = GROUP_SLICES[5]
    header = len(BASELINE_HEADER)
    value = sample[:, 1 + part.start : 1 + part.stop]
    mean = baseline[:, header + part.start : header + part.stop]
    count = np.clip(_header(baseline, "mouse_samples"), 1.0, 60.0)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        value, mean = ((values - cohort.mean) / cohort.spread for values in (value, mean))
    # Held to six spreads, and to the cohort's mean where nothing was observed.
    value, mean = (np.clip(np.nan_to_num(values, posinf=6.0, neginf=-6.0), -6.0, 6.0) for values in (value, mean))
    projected, centre = value @ cohort.project, mean @ cohort.project
    between = cohort.between
    error = 3.0 / count  # neighbouring stretches of movement resemble each other: three count as one
    centre = centre * (between / (between + error))
    predicted = 1.0 + between * error / (between + error)
    total = 1.0 + between
    size = float(len(between))
    own_sum = (np.square(projected - centre) / predicted).sum(1)
    any_sum = (np.square(projected) / total).sum(1)
    tails = 0.5 * (30.0 + size)
    odds = tails * (np.log1p(any_sum / 30.0) - np.log1p(own_sum / 30.0)) - 0.5 * np.log(predicted / total).sum(1)
    features = np.column_stack(
        (odds, np.log(own_sum / size + 1e-3), np.log(any_sum / size + 1e-3), own, _maturity(count[:, 0]))
    )
    held: Floats = np.clip(np.nan_to_num(features), -50.0, 50.0).astype(np.float32)
    return held


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
    # The flags are 0 or 1: adding them up takes a quarter of the time of looking for the highest.
    flags = (np.ones(window.shape[1], np.float32) @ window)[:, STEP["typing_present"] : STEP["phrase_known"] + 1] > 0
    typing, touch, known = flags[:, 0], flags[:, 2], flags[:, 3]
    return np.where(touch, 0, np.where(known, 1, np.where(typing, 2, 3)))
