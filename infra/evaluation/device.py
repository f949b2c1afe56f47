"""Is the person recognised, or the recorder? Mouse recorders report every 16 ms or every 109 ms, and that alone would
tell two people apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.evaluation.dataset import enrolled, mouse_samples, spread_out
from infra.evaluation.protocol import MOUSE_ENROLMENT
from infra.evaluation.recordings import THIN_MS
from pipeline.features.layout import GROUP_SLICES, STEP_SIZE, WINDOW
from pipeline.training.cohort import fit_discriminant
from pipeline.training.sequences import NEUTRAL_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.evaluation.recordings import MouseSession, MouseUser
    from pipeline.scoring import Scorer
    from servers.threat.behavior import Floats, MousePath

EVENTS = 10
"""Events of the sessions that are compared."""


def same_person_other_recorder(users: Sequence[MouseUser], scorer: Scorer) -> dict[str, Any]:
    """The same movements of the same people, as recorded and as a slow recorder would have them: does anything tell
    them apart?

    An area under the curve of 0.5 is chance. `rate_as_recorded` compares the time between reports, `rate_thinned` the
    same after thinning, `slots` what a logistic regression over all
    mouse slots, fitted on the other people, makes of it, `score` the threat score after ten events of the owner,
    enrolled from the fast recordings.
    """
    fast = [user for user in users if any(session.slowed for session in user.training)]
    if not fast:
        return {"people": 0}
    rates, thinned, scores = [], [], []
    for user in fast:
        sessions = [session for session in (*user.training, *user.test) if not session.illegal and session.slowed]
        rates += [(session.gap_ms, 109.0) for session in sessions]
        thinned += [
            (_gap(own), _gap(slow))
            for session in sessions
            for own, slow in zip(session.windows, session.slowed, strict=False)
        ]
        half = max(len(sessions) // 2, 1)
        early, late = sessions[:half], sessions[half:]
        profile = enrolled(spread_out([mouse_samples(session) for session in early], MOUSE_ENROLMENT)).vector()
        scores += _pairs(late, profile, scorer)
    return {
        "people": len(fast),
        "rate_as_recorded": _area(rates),
        "rate_thinned": _area(thinned),
        "slots": _slots(fast),
        "score": _area(scores),
        "mean_score": [round(float(mean), 4) for mean in np.mean(scores, 0)] if scores else None,
        "comparisons": len(scores),
    }


def _slots(users: Sequence[MouseUser]) -> float | None:
    """Area under the curve of telling the recorders apart by a sample's mouse slots, each person by what was fitted
    on the others."""
    if len(users) < 2:
        return None
    part = slice(1 + GROUP_SLICES[5].start, 1 + GROUP_SLICES[5].stop)
    sides = []
    for user in users:
        sessions = [session for session in user.training if session.slowed]
        own = np.concatenate([mouse_samples(session) for session in sessions])[:, part]
        slow = np.concatenate([mouse_samples(replace(session, windows=session.slowed)) for session in sessions])[
            :, part
        ]
        middle = np.nanmean(own, 0)
        sides.append(tuple(np.where(np.isfinite(side), side, middle) - middle for side in (own, slow)))
    pairs: list[tuple[float, float]] = []
    for person, (own, slow) in enumerate(sides):
        others = [sides[other] for other in range(len(sides)) if other != person]
        features = np.concatenate([side for pair in others for side in pair])
        is_slow = np.concatenate([np.full(len(side), at == 1) for pair in others for at, side in enumerate(pair)])
        fitted = fit_discriminant(features, is_slow, 1e-2)
        pairs += zip(fitted.log_odds(own).tolist(), fitted.log_odds(slow).tolist(), strict=False)
    return _area(pairs)


def _gap(window: MousePath) -> float:
    gaps = np.diff(window.time_ms)
    gaps = gaps[(gaps >= THIN_MS) & (gaps < 300)]
    return float(np.mean(gaps)) if len(gaps) else THIN_MS


def _pairs(sessions: Sequence[MouseSession], baseline: Floats, scorer: Scorer) -> list[tuple[float, float]]:
    found = []
    for session in sessions:
        own = mouse_samples(session)
        slow = mouse_samples(replace(session, windows=session.slowed))
        starts = range(0, min(len(own), len(slow)) - EVENTS + 1, EVENTS)
        found += [
            (_score(own[at : at + EVENTS], baseline, scorer), _score(slow[at : at + EVENTS], baseline, scorer))
            for at in starts
        ]
    return found


def _score(samples: Floats, baseline: Floats, scorer: Scorer) -> float:
    count = len(samples)
    context = np.broadcast_to(NEUTRAL_CONTEXT, (count, len(NEUTRAL_CONTEXT)))
    baselines = np.broadcast_to(baseline, (count, len(baseline)))
    window = np.zeros((1, WINDOW, STEP_SIZE), np.float32)
    window[0, -count:] = scorer.describe(context, samples, baselines)
    last = slice(count - 1, count)
    return float(scorer.score(context[last], samples[last], baselines[last], window, np.array([count])).threat_score[0])


def _area(pairs: list[tuple[float, float]]) -> float | None:
    """Probability that the second of a pair drawn at random is higher than the first of another."""
    if not pairs:
        return None
    first, second = (np.sort(np.array(column)) for column in zip(*pairs, strict=True))
    below = np.searchsorted(first, second, "left") + np.searchsorted(first, second, "right")
    return round(float(below.mean() / (2 * len(first))), 4)
