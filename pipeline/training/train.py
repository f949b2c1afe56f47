"""Fits everything from recordings: cohorts, discriminants, networks, calibration.

What scores a person in training was fitted without that person (four inner folds), so that the networks learn from
odds as good as they will be for strangers, and not better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.features.describe import REGIMES, steps_of
from pipeline.features.evidence import (
    GENERIC_FEATURES,
    MOUSE_FEATURES,
    PHRASE_FEATURES,
    TIMING_FEATURES,
    Evidence,
    deviations,
    gather,
)
from pipeline.features.layout import FEATURE_COUNT, STEP_SIZE, WINDOW
from pipeline.parameters import Calibration, Discriminant, Parameters
from pipeline.training import networks
from pipeline.training.calibrate import calibrate
from pipeline.training.cohort import fit_discriminant, fit_mouse, fit_typing
from pipeline.training.described import Described
from pipeline.training.sequences import NEUTRAL_CONTEXT, Cast, Sessions, Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.parameters import Floats
    from pipeline.training.data import Recordings

INNER_FOLDS: Final = 4
RIDGE: Final = 3e-3


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and on how much to train."""

    seed: int = 7
    sessions: int = 3200
    epochs: int = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """A whole model repository in memory."""

    parameters: Parameters
    nets: networks.Networks


@dataclass(frozen=True, slots=True)
class _Part:
    """Sessions of one inner fold, with what fits their owners and was fitted without them."""

    fold: int
    sessions: Sessions
    parameters: Parameters


def train(
    recordings: Recordings,
    typists: Sequence[int],
    mouse_users: Sequence[int],
    settings: Settings,
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train on these people and no others."""
    whole = _template(recordings, typists, mouse_users)
    parts = _parts(recordings, list(typists), list(mouse_users), whole, settings)
    say(f"{sum(len(part.sessions.intruder) for part in parts)} sessions drawn")
    gathered = [_gathered(part) for part in parts]
    final = _with_discriminants(whole, gathered)
    say("discriminants fitted")
    described = _described(parts, gathered)
    # Networks that are calibrated on people they never saw: each half of the folds scores the other half.
    raw = np.zeros((*described.intruder.shape, 3))
    for half in (0, 1):
        seen = described.fold % 2 == half
        nets, scaling = networks.fit(described.where(seen), settings.seed + half, settings.epochs)
        raw[~seen] = networks.raw_scores(nets, scaling, described.where(~seen))
        say(f"half {half + 1} of 2 trained")
    calibrations = calibrate(raw, described.intruder, described.steps)
    nets, scaling = networks.fit(described, settings.seed, settings.epochs)
    say("networks trained")
    return Trained(
        replace(
            final,
            feature_mean=scaling.mean,
            feature_spread=scaling.spread,
            error_weight=scaling.error_weight,
            error_bias=scaling.error_bias,
            anomaly=calibrations[0],
            sequence=calibrations[1],
            pattern=calibrations[2],
        ),
        nets,
    )


def _template(recordings: Recordings, typists: Sequence[int], mouse_users: Sequence[int]) -> Parameters:
    """Cohorts of these people; everything else still empty."""
    nothing = np.zeros(1, np.float32)
    empty = Discriminant(nothing, nothing + 1, nothing, 0.0)
    lines = np.tile(np.array([-1.0, 1.0], np.float32), (len(REGIMES), 1))
    flat = Calibration(lines, lines)
    return Parameters(
        version="untrained",
        accuracy=0.0,
        model_accuracy=dict.fromkeys(("anomaly-detection", "sequence-analysis", "behavioral-transformer"), 0.0),
        typing=fit_typing(recordings.typists.sample[list(typists)]),
        mouse=fit_mouse([np.concatenate(recordings.mouse.sample[person]) for person in mouse_users]),
        typing_full=empty,
        typing_timing=empty,
        typing_generic=empty,
        mouse_event=empty,
        feature_mean=np.zeros(FEATURE_COUNT, np.float32),
        feature_spread=np.ones(FEATURE_COUNT, np.float32),
        error_weight=np.zeros((2 * FEATURE_COUNT, len(REGIMES)), np.float32),
        error_bias=np.zeros(len(REGIMES), np.float32),
        anomaly=flat,
        sequence=flat,
        pattern=flat,
    )


def _parts(
    recordings: Recordings, typists: list[int], mouse_users: list[int], whole: Parameters, settings: Settings
) -> list[_Part]:
    order = np.random.default_rng(settings.seed).permutation(typists)
    parts = []
    each = max(settings.sessions // (INNER_FOLDS * len(mouse_users)), 1)
    for fold in range(INNER_FOLDS):
        owners = order[fold::INNER_FOLDS].tolist()
        typing = fit_typing(recordings.typists.sample[[person for person in typists if person not in owners]])
        for index, mouse_owner in enumerate(mouse_users):
            others = [person for person in mouse_users if person != mouse_owner]
            mouse = fit_mouse([np.concatenate(recordings.mouse.sample[person]) for person in others])
            cast = Cast(owners, owners, [mouse_owner], others)
            seed = settings.seed * 1000 + fold * 50 + index
            sessions = Simulator(recordings.typists, recordings.mouse, cast, seed).draw(each)
            parts.append(_Part(fold, sessions, replace(whole, typing=typing, mouse=mouse)))
    return parts


def _gathered(part: _Part) -> tuple[_Part, Evidence]:
    sample, baseline = part.sessions.sample, part.sessions.baseline
    return part, gather(sample.reshape(-1, sample.shape[-1]), baseline.reshape(-1, baseline.shape[-1]), part.parameters)


def _with_discriminants(
    parameters: Parameters, gathered: list[tuple[_Part, Evidence]], without_fold: int | None = None
) -> Parameters:
    """Discriminants from all inner folds but one."""
    chosen = [(part, evidence) for part, evidence in gathered if part.fold != without_fold]
    intruder = np.concatenate([part.sessions.intruder.ravel() for part, _ in chosen])
    generic, phrase, mouse, seen = (
        np.concatenate([getattr(evidence, name) for _, evidence in chosen])
        for name in ("generic", "phrase", "mouse", "seen")
    )
    known, touch = (np.concatenate([getattr(evidence, name) for _, evidence in chosen]) for name in ("known", "touch"))
    typed = seen[:, :5].any(1)
    full = np.concatenate([phrase, generic], 1)
    timing = np.concatenate([phrase[:, TIMING_FEATURES], generic], 1)
    assert full.shape[1] == len(PHRASE_FEATURES) + len(GENERIC_FEATURES)  # noqa: S101  a slip here would train nonsense
    assert mouse.shape[1] == len(MOUSE_FEATURES)  # noqa: S101

    def fit(features: Floats, which: NDArray[np.bool_]) -> Discriminant:
        return fit_discriminant(features[which], ~intruder[which], RIDGE)

    return replace(
        parameters,
        typing_full=fit(full, touch),
        typing_timing=fit(timing, known & ~touch),
        typing_generic=fit(generic, typed & ~known),
        mouse_event=fit(mouse, seen[:, 5]),
    )


def _described(parts: list[_Part], gathered: list[tuple[_Part, Evidence]]) -> Described:
    steps, deviation = [], []
    by_fold = {
        fold: _with_discriminants(parts[0].parameters, gathered, without_fold=fold) for fold in range(INNER_FOLDS)
    }
    for part, evidence in gathered:
        count = len(part.sessions.intruder)
        context = np.broadcast_to(NEUTRAL_CONTEXT, (count * WINDOW, len(NEUTRAL_CONTEXT)))
        steps.append(steps_of(context, evidence, by_fold[part.fold]).reshape(count, WINDOW, STEP_SIZE))
        sample, baseline = part.sessions.sample, part.sessions.baseline
        found = deviations(sample.reshape(-1, sample.shape[-1]), baseline.reshape(-1, baseline.shape[-1]))
        deviation.append(found.reshape(count, WINDOW, -1))
    return Described(
        np.concatenate(steps),
        np.concatenate(deviation),
        np.concatenate([part.sessions.intruder for part in parts]),
        np.concatenate([np.full(len(part.sessions.intruder), part.fold) for part in parts]),
    )
