"""Simulated sessions for training: an owner alone, somebody else from the start, or somebody else from some event
on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.features.layout import CONTEXT, GROUP_SLICES, WINDOW
from pipeline.training.data import BASELINE_IS_MOUSE, SAMPLE_IS_MOUSE, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.parameters import Floats
    from pipeline.training.data import MouseUsers, Typists

NEUTRAL_CONTEXT: Final = np.array(
    [
        0.5
        if name
        in {
            "user_behavior_score",
            "network_activity",
            "authentication_patterns",
            "biometric_confidence",
            "location_consistency",
            "typing_pattern_deviation",
            "mouse_dynamic_variance",
        }
        else 0.0
        for name in CONTEXT
    ],
    np.float32,
)
"""Context in training: neutral throughout, since the recordings have none. No model learns anything from it."""

ENROLMENT_RANGE: Final = (12, 30)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who may appear: owners and intruders among typists and mouse users, by index."""

    typing_owners: Sequence[int]
    typing_others: Sequence[int]
    mouse_owners: Sequence[int]
    mouse_others: Sequence[int]


@dataclass(frozen=True, slots=True)
class Sessions:
    """Q simulated sessions of 50 events.

    Attributes:
        sample: [Q, 50, S].
        baseline: [Q, 50, B].
        intruder: [Q, 50] bool, the event is somebody else's.
    """

    sample: Floats
    baseline: Floats
    intruder: NDArray[np.bool_]


class Simulator:
    """Draws sessions of a cast."""

    def __init__(self, typists: Typists, mouse: MouseUsers, cast: Cast, seed: int) -> None:
        self._typists, self._mouse, self._cast = typists, mouse, cast
        self._random = np.random.default_rng(seed)

    def draw(self, count: int) -> Sessions:
        """`count` sessions."""
        found = [self._session() for _ in range(count)]
        return Sessions(*(np.stack(column) for column in zip(*found, strict=True)))

    def _session(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        random = self._random
        kind = random.random()
        takeover = WINDOW if kind < 0.4 else (0 if kind < 0.7 else int(random.integers(1, 41)))
        intruder = np.arange(WINDOW) >= takeover
        typing_sample, typing_baseline = self._typing(takeover)
        mouse_sample, mouse_baseline = self._movement(takeover)
        sample = join(typing_sample, mouse_sample, SAMPLE_IS_MOUSE)
        baseline = join(typing_baseline, mouse_baseline, BASELINE_IS_MOUSE)
        self._forget(sample, baseline)
        return sample, baseline, intruder

    def _typing(self, takeover: int) -> tuple[Floats, Floats]:
        random, typists = self._random, self._typists
        owner = int(random.choice(self._cast.typing_owners))
        other = int(random.choice([person for person in self._cast.typing_others if person != owner]))
        entries = typists.sample.shape[1]
        enrolment = int(random.integers(len(typists.start)))
        first = int(typists.start[enrolment] + random.integers(*ENROLMENT_RANGE))
        later = np.arange(first, entries)
        # Half of the owners type on in the order recorded, so that drift is seen; the others in any order.
        own = np.roll(later, -int(random.integers(len(later)))) if random.random() < 0.3 else later
        own = random.permutation(own) if random.random() < 0.3 else own
        own = np.resize(own, WINDOW)
        theirs = np.resize(np.roll(np.arange(entries), -int(random.integers(entries))), WINDOW)
        is_other = np.arange(WINDOW) >= takeover
        sample = np.where(is_other[:, None], typists.sample[other, theirs], typists.sample[owner, own])
        # Half of the baselines stand still after enrolment, half learn from every event of the owner.
        learning = random.random() < 0.5
        known = np.where(learning & ~is_other, own, first)
        if learning and takeover > 0:
            known = np.where(is_other, max(int(own[: min(takeover, WINDOW)].max()), first), known)
        return sample, typists.baseline[owner, enrolment, known]

    def _movement(self, takeover: int) -> tuple[Floats, Floats]:
        random, mouse = self._random, self._mouse
        owner = int(random.choice(self._cast.mouse_owners))
        others = [person for person in self._cast.mouse_others if person != owner]
        other = int(random.choice(others)) if others else owner
        enrolment = int(random.integers(len(mouse.baseline[owner])))
        unseen = mouse.sample[owner][int(mouse.enrolled[owner][enrolment]) :]
        own = self._stretch(unseen)
        theirs = self._stretch(mouse.sample[other])
        sample = np.where((np.arange(WINDOW) >= takeover)[:, None], theirs, own)
        return sample, np.broadcast_to(mouse.baseline[owner][enrolment], (WINDOW, len(BASELINE_IS_MOUSE)))

    def _stretch(self, sessions: list[Floats]) -> Floats:
        """50 windows in a row of one session, starting anew where it is shorter; now and then every other window."""
        session = sessions[int(self._random.integers(len(sessions)))]
        start = int(self._random.integers(len(session)))
        return np.take(session, np.arange(start, start + WINDOW), axis=0, mode="wrap")

    def _forget(self, sample: Floats, baseline: Floats) -> None:
        """Leave out what live events may lack: a modality, touch readings, the cohort's phrase, key positions."""
        random = self._random
        kind = random.random()
        if kind < 0.25:
            sample[:, SAMPLE_IS_MOUSE] = np.nan
        elif kind < 0.5:
            sample[:, ~SAMPLE_IS_MOUSE] = np.nan
        elif kind < 0.75:
            gone = random.random(WINDOW)
            sample[np.ix_(gone < 0.25, SAMPLE_IS_MOUSE)] = np.nan
            sample[np.ix_(gone > 0.75, ~SAMPLE_IS_MOUSE)] = np.nan
        touch = [1 + np.arange(GROUP_SLICES[g].start, GROUP_SLICES[g].stop) for g in (2, 3)]
        if random.random() < 0.3:
            sample[:, np.concatenate(touch)] = np.nan
            sample[:, [1 + GROUP_SLICES[4].stop - k for k in (1, 2, 3, 4)]] = np.nan
        phrase = random.random()
        if phrase < 0.25:
            other = np.float32(1.0 if phrase < 0.15 else 0.0)
            baseline[:, 3] = other
            sample[:, 0] = np.where(np.isnan(sample[:, 0]), np.nan, other)
            positions = np.arange(GROUP_SLICES[0].start, GROUP_SLICES[3].stop)
            if not other:
                sample[:, 1 + positions] = np.nan
            else:
                kept = random.integers(4, 15)
                for group in GROUP_SLICES[:4]:
                    sample[:, 1 + group.start + kept : 1 + group.stop] = np.nan


def starts(sessions: Sessions, random: np.random.Generator) -> NDArray[np.int64]:
    """For each session, how many of its events the window holds: any number from 1 to 50, short ones more often."""
    return np.minimum(np.exp(random.uniform(0, np.log(WINDOW + 0.99), len(sessions.intruder))).astype(np.int64), WINDOW)
