"""Recordings as the arrays that training reads: the same samples and baselines as the threat service makes of live
events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.training.data import MouseUsers, Recordings, Typists
from servers.threat.baseline import BASELINE_SIZE, Profile
from servers.threat.behavior import SLOTS, sample_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.evaluation.recordings import MouseSession, MouseUser, Typist
    from servers.threat.behavior import Floats

ENROLMENT_STARTS: Final = (0, 4, 8, 12)
"""Entries at which a typist's enrolment begins, one baseline each: more people's worth of baselines than there are
people."""

MOUSE_ENROLMENTS: Final = ((40, 3), (80, 5), (150, 6), (150, 6), (150, 7))
"""Windows enrolled and the number of sessions they are spread over."""


def typing_samples(typist: Typist) -> Floats:
    """[T, S] samples of a typist's entries."""
    return np.stack([sample_of([entry], []) for entry in typist.entries])


def mouse_samples(session: MouseSession) -> Floats:
    """[W, S] samples of a session's windows; windows with too little movement are left out."""
    samples = np.array([sample_of([], [window]) for window in session.windows], np.float32).reshape(-1, len(SLOTS))
    return samples[np.isfinite(samples[:, -1])]


def enrolled(samples: Floats) -> Profile:
    """The profile of somebody who did just this."""
    profile = Profile()
    for sample in samples:
        profile.learn(sample)
    return profile


def spread_out(sessions: Sequence[Floats], count: int) -> Floats:
    """`count` samples evenly spread over the sessions, in order; all of them where there are fewer."""
    samples = np.concatenate(list(sessions))
    at = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.int64))
    return samples[at]


def recordings_of(typists: Sequence[Typist], users: Sequence[MouseUser]) -> Recordings:
    """Arrays for training.

    Raises:
        ValueError: people with different numbers of entries.
    """
    return Recordings(
        _typists(typists),
        _mouse_users(users),
        (*(typist.digest for typist in typists), *(user.digest for user in users)),
    )


def _typists(typists: Sequence[Typist]) -> Typists:
    samples = np.stack([typing_samples(typist) for typist in typists])
    people, entries = samples.shape[:2]
    baselines = np.full((people, len(ENROLMENT_STARTS), entries + 1, BASELINE_SIZE), np.nan, np.float32)
    for person in range(people):
        for index, start in enumerate(ENROLMENT_STARTS):
            profile = Profile()
            for entry in range(start, entries):
                profile.learn(samples[person, entry])
                baselines[person, index, entry + 1] = profile.vector(samples[person, entry])
    return Typists(samples, baselines, np.array(ENROLMENT_STARTS))


def _mouse_users(users: Sequence[MouseUser]) -> MouseUsers:
    samples, baselines, first_unseen = [], [], []
    for user in users:
        trained = sum(len(mouse_samples(session)) >= 3 for session in user.training)
        own = [session for session in (*user.training, *user.test) if not session.illegal]
        sessions = [found for session in own if len(found := mouse_samples(session)) >= 3]
        samples.append(sessions)
        vectors = []
        spreads = [max(min(spread, trained, len(sessions) - 1), 1) for _, spread in MOUSE_ENROLMENTS]
        for (count, _), spread in zip(MOUSE_ENROLMENTS, spreads, strict=True):
            vectors.append(enrolled(spread_out(sessions[:spread], count)).vector())
        baselines.append(np.stack(vectors))
        first_unseen.append(np.array(spreads))
    return MouseUsers(samples, baselines, first_unseen)
