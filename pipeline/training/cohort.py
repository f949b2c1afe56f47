"""Cohort statistics and discriminants of single events, fitted in closed form or by Newton steps: no networks yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.features.evidence import SUBSETS
from pipeline.features.layout import GROUP_SLICES
from pipeline.parameters import Discriminant, MouseCohort, TypingCohort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.parameters import Floats

    Doubles = NDArray[np.float64]

CLUSTERS: Final = 8
MOUSE_SHRINKAGE: Final = 0.1


def fit_typing(samples: Floats) -> TypingCohort:
    """The cohort of P people with T entries each of one phrase: samples [P, T, S], all with touch readings."""
    observed = np.isfinite(samples[:, :, 1:].sum((0, 1)))
    parts = [np.flatnonzero(observed[part]) + part.start for part in GROUP_SLICES[:4]]
    columns = np.concatenate(parts)
    values = samples[:, :, 1 + columns].astype(np.float64)
    people, entries = values.shape[:2]
    own = values.mean(1)
    mean = own.mean(0)
    residual = (values - own[:, None]).reshape(-1, len(columns))
    within = residual.T @ residual / (len(residual) - people)
    between = np.cov(own.T) - within / entries
    at = np.cumsum([0, *map(len, parts)])
    hold, flight, pressure, size = (np.arange(at[i], at[i + 1]) for i in range(4))
    subsets = dict(
        zip(
            SUBSETS,
            (np.r_[hold, flight], hold, flight, pressure, size, np.r_[pressure, size], np.arange(len(columns))),
            strict=True,
        )
    )
    bases, variances, segments = [], [], []
    member = np.zeros((len(subsets), len(columns)))
    for index, chosen in enumerate(subsets.values()):
        base, variance = _diagonal_basis(within[np.ix_(chosen, chosen)], between[np.ix_(chosen, chosen)])
        full = np.zeros((len(columns), len(chosen)))
        full[chosen] = base
        segment = np.zeros((len(chosen), len(subsets)))
        segment[:, index] = 1.0
        member[index, chosen] = 1.0 / len(chosen)
        bases.append(full)
        variances.append(variance)
        segments.append(segment)
    spread = np.sqrt(np.diag(within))
    return TypingCohort(
        float(samples[0, 0, 0]),
        columns,
        *(
            array.astype(np.float32)
            for array in (
                mean,
                spread,
                np.concatenate(bases, 1),
                np.concatenate(variances),
                np.concatenate(segments),
                member,
                _clusters(own / spread, CLUSTERS),
            )
        ),
    )


def _diagonal_basis(within: Doubles, between: Doubles) -> tuple[Doubles, Doubles]:
    """A basis in which the covariance within people is 1 and that between people is diagonal."""
    value, vector = np.linalg.eigh(within)
    whiten = vector / np.sqrt(np.maximum(value, 1e-6))
    variance, rotate = np.linalg.eigh(whiten.T @ between @ whiten)
    return whiten @ rotate, np.maximum(variance, 1e-3)


def _clusters(points: Doubles, count: int) -> Doubles:
    """Centres of k-means, each of several people, so that no centre is one person's template."""
    generator = np.random.default_rng(0)
    best, best_cost = points[:1], np.inf
    count = max(1, min(count, len(points) // 3))
    for _ in range(20):
        centres = points[generator.choice(len(points), count, replace=False)]
        for _ in range(50):
            distance = np.square(points[:, None] - centres).sum(-1)
            owner = distance.argmin(1)
            # A centre left with fewer than two people moves to the middle of everybody.
            centres = np.stack(
                [points[owner == k].mean(0) if (owner == k).sum() > 1 else points.mean(0) for k in range(count)]
            )
        cost = float(np.square(points[:, None] - centres).sum(-1).min(1).sum())
        if cost < best_cost:
            best, best_cost = centres, cost
    return best


def fit_mouse(people: Sequence[Floats]) -> MouseCohort:
    """The background model of people's mouse samples, [W, S] each."""
    part = GROUP_SLICES[5]
    values = [person[:, 1 + part.start : 1 + part.stop].astype(np.float64) for person in people]
    mean = np.mean([np.nanmean(person, 0) for person in values], 0)
    spread = np.mean([np.nanstd(person, 0) for person in values], 0)
    scaled = [np.clip(np.nan_to_num((person - mean) / spread), -6.0, 6.0) for person in values]
    own = np.stack([person.mean(0) for person in scaled])
    within = np.mean([np.cov(person.T) for person in scaled], 0)
    within = (1.0 - MOUSE_SHRINKAGE) * within + MOUSE_SHRINKAGE * np.diag(np.diag(within))
    value, vector = np.linalg.eigh(within)
    project = vector / np.sqrt(np.maximum(value, 1e-6))
    between = np.var(own @ project, axis=0, ddof=1) if len(own) > 1 else np.full(len(mean), 0.2)
    # A handful of people say little about the variance between people in each direction: drawn half-way to the average.
    between = np.maximum(0.5 * between + 0.5 * between.mean(), 0.05)
    return MouseCohort(*(array.astype(np.float32) for array in (mean, spread, project, between)))


def fit_discriminant(
    features: Floats, owner: NDArray[np.bool_], ridge: float, weight: Floats | None = None
) -> Discriminant:
    """Ridge logistic regression: features [N, F], owner [N], weight [N]; without weights both classes weigh the same
    in sum."""
    values = features.astype(np.float64)
    mean, spread = values.mean(0), values.std(0)
    spread = np.where(spread < 1e-6, 1.0, spread)
    design = np.column_stack((np.clip((values - mean) / spread, -6.0, 6.0), np.ones(len(values))))
    share = np.where(owner, 0.5 / owner.sum(), 0.5 / (~owner).sum()) if weight is None else weight.astype(np.float64)
    share = share / share.sum()
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 0.0
    found = np.zeros(design.shape[1])
    for _ in range(25):
        probability = 1.0 / (1.0 + np.exp(-np.clip(design @ found, -30, 30)))
        gradient = design.T @ (share * (probability - owner)) + penalty * found
        curvature = (design * (share * probability * (1 - probability))[:, None]).T @ design + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        found -= step
        if np.abs(step).max() < 1e-6:
            break
    return Discriminant(
        mean.astype(np.float32), spread.astype(np.float32), found[:-1].astype(np.float32), float(found[-1])
    )
