"""What single events say: the distance from the person's own normal, and the odds of the owner against the cohort and
against the background model, before discriminants weigh them.

Log odds are natural logarithms; positive ones speak for the owner. Everything is computed for a whole batch at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.compiled import compiled
from pipeline.features.layout import BASELINE_HEADER, GROUP_SLICES, GROUPS, MEASURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.parameters import Floats, MouseCohort, Parameters, TypingCohort

SUBSETS: Final = ("timing", "hold", "flight", "pressure", "size", "touch", "all")
"""Groups of a phrase's measures that are compared with the cohort separately."""

LEARNT_FROM: Final = 5
"""Samples that a mean must rest on before an event is compared with it."""

_CLIP: Final = 4.0
_HEADER = {name: index for index, name in enumerate(BASELINE_HEADER)}
_TYPING_SAMPLES, _MOUSE_SAMPLES = _HEADER["typing_samples"], _HEADER["mouse_samples"]
_PROMPT_SAMPLES, _PROMPT = _HEADER["prompt_samples"], _HEADER["prompt"]
_SELF_MEAN: Final = _HEADER["self_mean_hold"]
_MEANS: Final = len(BASELINE_HEADER)
_SPREADS: Final = _MEANS + len(MEASURES)
_GROUP_STARTS: Final = np.array([*(part.start for part in GROUP_SLICES), GROUP_SLICES[-1].stop])
_LEAST_SEEN: Final = np.array([1, 1, 1, 1, 4, 10])
"""Measures of each group that must be there for the group to be compared."""
_STUDENT: Final = 40.0


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
_STEADINESS: Final = PHRASE_FEATURES.index("steadiness_timing")
_RANKS: Final = PHRASE_FEATURES.index("rank_timing")
MOUSE_FEATURES: Final = ("background", "distance", "commonness", "own", "self", "maturity")


def deviations(sample: Floats, baseline: Floats) -> Floats:
    """Each measure's distance from the person's mean in the person's own spreads: float32[N, measures], NaN where
    unknown."""
    found = np.empty((len(sample), len(MEASURES)), np.float32)
    _deviate(sample, baseline, found)
    return found


@compiled
def _deviate(sample: Floats, baseline: Floats, found: Floats) -> None:
    for event in range(len(sample)):
        for measure in range(found.shape[1]):
            spread = max(baseline[event, _SPREADS + measure], np.float32(1e-3))
            scaled = (sample[event, 1 + measure] - baseline[event, _MEANS + measure]) / spread
            known = math.isfinite(scaled) and math.isfinite(baseline[event, _SPREADS + measure])
            found[event, measure] = min(max(scaled, np.float32(-20.0)), np.float32(20.0)) if known else math.nan


def gather(sample: Floats, baseline: Floats, parameters: Parameters) -> Evidence:
    """Everything that single events say: sample [N, S], baseline [N, B]."""
    return _evidence(sample, baseline, parameters.typing, parameters.mouse)


def _evidence(sample: Floats, baseline: Floats, typing: TypingCohort, mouse: MouseCohort) -> Evidence:
    deviation = deviations(sample, baseline)
    generic = np.empty((len(sample), len(GENERIC_FEATURES)), np.float32)
    own = np.empty((len(sample), 2), np.float32)
    seen = np.empty((len(sample), len(GROUPS)), np.bool_)
    _against_own(deviation, baseline, generic, own, seen)
    phrase, known, touch = _phrase(sample, baseline, typing)
    moved = _mouse(sample, baseline, mouse, own)
    return Evidence(deviation, generic, phrase, moved, seen, known & seen[:, 0], touch & known & seen[:, 0])


@compiled
def _against_own(deviation: Floats, baseline: Floats, generic: Floats, own: Floats, seen: NDArray[np.bool_]) -> None:
    """Distances from the person's own normal: fills `generic` [N, G], the mouse's distance and its place among the
    person's own into `own` [N, 2], and `seen` [N, 6].
    """
    groups = len(_LEAST_SEEN)
    for event in range(len(deviation)):
        typed = _finite(baseline[event, _TYPING_SAMPLES])
        moved = _finite(baseline[event, _MOUSE_SAMPLES])
        out = generic[event]
        total, highest, count = 0.0, -6.0, 0
        for group in range(groups):
            size, shift, measures = 0.0, 0.0, 0
            for measure in range(_GROUP_STARTS[group], _GROUP_STARTS[group + 1]):
                value = deviation[event, measure]
                if value == value:  # noqa: PLR0124 - tells NaN
                    held = min(max(value, -_CLIP), _CLIP)
                    size += abs(held)
                    shift += held
                    measures += 1
            known = measures >= _LEAST_SEEN[group] and (typed if group < 5 else moved) >= LEARNT_FROM
            distance = size / measures if known else 0.0
            itself = 0.0
            if known:
                usual, stray = baseline[event, _SELF_MEAN + group], baseline[event, _SELF_MEAN + groups + group]
                itself = _held((distance - usual) / max(stray, np.float32(0.05)), 6.0)
            seen[event, group] = known
            if group == 5:
                own[event, 0], own[event, 1] = distance, itself
                continue
            out[group], out[5 + group], out[10 + group] = distance, itself, shift / measures if known else 0.0
            if group < 4:
                out[15 + group] = known
            total += itself
            count += known
            highest = max(highest, itself if known else -6.0)
        out[19], out[20], out[21] = total / max(count, 1), highest, _maturity(typed)


@compiled
def _finite(value: float) -> float:
    """The value, or 0 for what is no finite number."""
    return value if math.isfinite(value) else 0.0


@compiled
def _held(value: float, limit: float) -> float:
    """The value held to -limit to limit; 0 for NaN."""
    return min(max(value, -limit), limit) if value == value else 0.0  # noqa: PLR0124 - tells NaN


@compiled
def _maturity(count: float) -> float:
    return math.log1p(min(max(count, 0.0), 200.0)) * 0.25


def _phrase(
    sample: Floats, baseline: Floats, cohort: TypingCohort
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Log odds of the owner against the cohort (two-covariance model, Student tails), by subset of the measures."""
    events, measures = len(sample), len(cohort.columns)
    value, mean = np.empty((events, measures), np.float32), np.empty((events, measures), np.float32)
    features = np.empty((events, len(PHRASE_FEATURES)), np.float32)
    known, touch = np.empty(events, np.bool_), np.empty(events, np.bool_)
    _centred(
        sample, baseline, cohort.prompt, cohort.columns, cohort.mean, cohort.spread, cohort.member,
        value, mean, features, known, touch,
    )  # fmt: skip
    _ranks(value, mean, cohort.spread, cohort.member, cohort.centroids - cohort.mean / cohort.spread, features)
    starts = np.searchsorted(cohort.segment.argmax(1), np.arange(len(SUBSETS) + 1))
    _weigh(value @ cohort.project, mean @ cohort.project, cohort.between, starts, baseline, features)
    return features, known, touch


@compiled
def _centred(  # noqa: PLR0913, PLR0917 - a compiled loop takes arrays, not the objects that hold them
    sample: Floats,
    baseline: Floats,
    prompt: float,
    columns: NDArray[np.int64],
    cohort_mean: Floats,
    cohort_spread: Floats,
    member: Floats,
    value: Floats,
    mean: Floats,
    features: Floats,
    known: NDArray[np.bool_],
    touch: NDArray[np.bool_],
) -> None:
    """Values and means around the cohort's mean (0 where not observed), the squared steadiness of each subset into its
    place of `features`, and whether timing and touch could be compared.
    """
    measures = len(columns)
    for event in range(len(sample)):
        timing_seen = touch_seen = True
        for subset in range(len(member)):
            features[event, _STEADINESS + subset] = 0.0
        for measure in range(measures):
            column = columns[measure]
            here = sample[event, 1 + column]
            usual, stray = baseline[event, _MEANS + column], baseline[event, _SPREADS + column]
            steady = np.float32(1.0)
            if math.isfinite(here) and math.isfinite(usual) and math.isfinite(stray):
                value[event, measure], mean[event, measure] = here - cohort_mean[measure], usual - cohort_mean[measure]
                steady = min(max(stray / cohort_spread[measure], np.float32(0.2)), np.float32(5.0))
            else:
                value[event, measure] = mean[event, measure] = 0.0
                if member[0, measure] > 0:
                    timing_seen = False
                else:
                    touch_seen = False
            for subset in range(len(member)):
                features[event, _STEADINESS + subset] += steady * steady * member[subset, measure]
        same = sample[event, 0] == prompt and baseline[event, _PROMPT] == prompt
        count = min(max(_finite(baseline[event, _PROMPT_SAMPLES]), 1.0), 200.0)
        known[event] = same and count >= LEARNT_FROM and timing_seen
        touch[event] = known[event] and touch_seen


@compiled
def _ranks(value: Floats, mean: Floats, spread: Floats, member: Floats, origin: Floats, features: Floats) -> None:
    """Distance to the owner against distances to the cohort's clusters (t-norm), for timing, touch and all measures."""
    centres, measures = origin.shape
    timing, touched, every = member[0], member[5], member[6]
    here, others = np.empty(measures, np.float32), np.empty((3, centres))
    own = np.empty(3)
    for event in range(len(value)):
        one = two = three = 0.0
        for measure in range(measures):
            here[measure] = value[event, measure] / spread[measure]
            far = min(abs(here[measure] - mean[event, measure] / spread[measure]), np.float32(6.0))
            one, two, three = one + far * timing[measure], two + far * touched[measure], three + far * every[measure]
        own[0], own[1], own[2] = one, two, three
        for centre in range(centres):
            first = second = third = np.float32(0.0)
            for measure in range(measures):
                far = min(abs(here[measure] - origin[centre, measure]), np.float32(6.0))
                first += far * timing[measure]
                second += far * touched[measure]
                third += far * every[measure]
            others[0, centre], others[1, centre], others[2, centre] = first, second, third
        for kind in range(3):
            average = others[kind].sum() / centres
            strays = math.sqrt(((others[kind] - average) ** 2).sum() / centres)
            features[event, _RANKS + kind] = _held((own[kind] - average) / (strays + 0.05), 50.0)
            features[event, _RANKS + 3 + kind] = _held(own[kind] - others[kind].min(), 50.0)


@compiled
def _weigh(
    projected: Floats, centre: Floats, between: Floats, starts: NDArray[np.int64], baseline: Floats, features: Floats
) -> None:
    """The odds, distances and distinctness of every subset, from projections [N, J] in which measures are independent,
    those of one subset side by side from `starts` on; the steadiness in `features` becomes its logarithm.
    """
    subsets = len(starts) - 1
    for event in range(len(projected)):
        count = min(max(_finite(baseline[event, _PROMPT_SAMPLES]), 1.0), 200.0)
        for part in range(subsets):
            steadiness = features[event, _STEADINESS + part]
            within = math.sqrt(steadiness)
            error = within / count
            own = everyone = distinct = 0.0
            narrower = 1.0  # one logarithm of a product instead of a sum of logarithms
            for at in range(starts[part], starts[part + 1]):
                share = between[at] / (between[at] + error)
                expected, found = centre[event, at] * share, projected[event, at]
                predicted, total = share * error + within, 1.0 / (between[at] + within)
                own += (found - expected) ** 2 / predicted
                everyone += found * found * total
                distinct += expected * expected / between[at]
                narrower *= predicted * total
            size = float(starts[part + 1] - starts[part])
            odds = 0.5 * (_STUDENT + size) * (math.log1p(everyone / _STUDENT) - math.log1p(own / _STUDENT))
            odds -= 0.5 * math.log(max(narrower, 1e-300))
            features[event, part] = _held(odds / math.sqrt(size), 50.0)
            features[event, subsets + part] = _held(math.log(own / size + 1e-3), 50.0)
            features[event, 2 * subsets + part] = _held(distinct / size, 50.0)
            features[event, _STEADINESS + part] = math.log(steadiness + 1e-3)
        features[event, -1] = _maturity(count)


def _mouse(sample: Floats, baseline: Floats, cohort: MouseCohort, own: Floats) -> Floats:
    """Log odds of the owner against the background model, Student tails."""
    part = GROUP_SLICES[5]
    value, mean = (
        _whitened(values, cohort.mean, cohort.spread)
        for values in (
            sample[:, 1 + part.start : 1 + part.stop],
            baseline[:, _MEANS + part.start : _MEANS + part.stop],
        )
    )
    features = np.empty((len(sample), len(MOUSE_FEATURES)), np.float32)
    _weigh_mouse(value @ cohort.project, mean @ cohort.project, cohort.between, baseline, own, features)
    return features


@compiled
def _whitened(values: Floats, mean: Floats, spread: Floats) -> Floats:
    """Values in the cohort's spreads, held to six, and at the cohort's mean where nothing was observed."""
    found = np.empty(values.shape, np.float32)
    for event in range(values.shape[0]):
        for measure in range(values.shape[1]):
            found[event, measure] = _held((values[event, measure] - mean[measure]) / spread[measure], 6.0)
    return found


@compiled
def _weigh_mouse(
    projected: Floats, centre: Floats, between: Floats, baseline: Floats, own: Floats, features: Floats
) -> None:
    size = float(len(between))
    for event in range(len(projected)):
        count = min(max(_finite(baseline[event, _MOUSE_SAMPLES]), 1.0), 60.0)
        error = 3.0 / count  # neighbouring stretches of movement resemble each other: three count as one
        own_sum = any_sum = 0.0
        narrower = 1.0
        for at in range(len(between)):
            share = between[at] / (between[at] + error)
            predicted, total = 1.0 + share * error, 1.0 + between[at]
            own_sum += (projected[event, at] - centre[event, at] * share) ** 2 / predicted
            any_sum += projected[event, at] ** 2 / total
            narrower *= predicted / total
        odds = 0.5 * (30.0 + size) * (math.log1p(any_sum / 30.0) - math.log1p(own_sum / 30.0))
        features[event, 0] = _held(odds - 0.5 * math.log(max(narrower, 1e-300)), 50.0)
        features[event, 1] = math.log(own_sum / size + 1e-3)
        features[event, 2] = math.log(any_sum / size + 1e-3)
        features[event, 3], features[event, 4] = own[event, 0], own[event, 1]
        features[event, 5] = _maturity(count)
