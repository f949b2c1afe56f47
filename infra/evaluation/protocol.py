"""Sessions played through the product's own code: samples, profiles that learn, describe, score, levels.

A *victim* is a typist, a mouse user, or one of each joined by chance (the two kinds of recording hold different
people, so that a session of both is chimeric). In an attack, another victim's recordings are played against the
victim's profile, from the first event or after a stretch of the victim's own. As in the service, a profile learns
from an event when it came back normal, whoever caused it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from infra.evaluation.dataset import enrolled, mouse_samples, spread_out, typing_samples
from pipeline.features.describe import STEP
from pipeline.features.layout import STEP_SIZE, WINDOW
from pipeline.training.data import BASELINE_IS_MOUSE, SAMPLE_IS_MOUSE, join
from pipeline.training.sequences import NEUTRAL_CONTEXT
from servers.threat.baseline import deviations
from servers.threat.behavior import PROMPT, SLOTS, prompt_code

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from infra.evaluation.recordings import MouseUser, Typist
    from pipeline.scoring import Scorer
    from servers.threat.baseline import Profile
    from servers.threat.behavior import Floats

SESSION: Final = 30
"""Events of an owner's session."""

ATTACK: Final = 20
"""Events of an attack."""

ENROLMENT: Final = 21
"""Entries that enrol a typist who has 51 of them; of fewer, at most two in five are used."""

MOUSE_ENROLMENT: Final = 150
"""Windows that enrol a mouse user, evenly spread over the training sessions; the legal test sessions are the owner's
later behaviour."""

WINDOWS_NEEDED: Final = 20

PREFIX: Final = (3, 10)
"""Own events before an attack in mid-session: at least and at most."""

SLOT_TYPED: Final = SLOTS.index("hold_mean")
TOUCH_SLOTS: Final = np.array([name.startswith(("pressure", "size")) for name in SLOTS])


class Person(NamedTuple):
    """One recorded person of one modality, split in time.

    Attributes:
        name: from the recordings.
        profile: enrolled on the earlier part.
        later: [W, S] samples of the rest, in order.
        everything: [W, S] all samples, for playing the attacker.
    """

    name: str
    profile: Profile
    later: Floats
    everything: Floats


def typist_of(typist: Typist, prompt: str | None = None) -> Person:
    """Enrol a typist; `prompt` gives their phrase another name, as if the models had never met it.

    Raises:
        ValueError: too few entries.
    """
    samples = typing_samples(typist)
    if prompt is not None:
        samples[:, PROMPT] = prompt_code(prompt)
    if len(samples) < 15:
        raise ValueError(f"typist {typist.name} has {len(samples)} entries; at least 15 are needed")
    first = min(ENROLMENT, len(samples) * 2 // 5 + 1)
    return Person(typist.name, enrolled(samples[:first]), samples[first:], samples)


def mouse_user_of(user: MouseUser) -> Person:
    """Enrol a mouse user.

    Raises:
        ValueError: too little movement.
    """
    training = [found for session in user.training if len(found := mouse_samples(session))]
    test = [found for session in user.test if session.illegal is False and len(found := mouse_samples(session))]
    if sum(map(len, test)) < SESSION:
        # Unlabelled: the later half of the training sessions stands in for the owner's test sessions.
        whole = np.concatenate(training or [np.empty((0, len(SLOTS)), np.float32)])
        training, test = [whole[: len(whole) // 2]], [whole[len(whole) // 2 :]]
    if sum(map(len, training)) < WINDOWS_NEEDED or sum(map(len, test)) < SESSION:
        raise ValueError(
            f"mouse user {user.name} has too little movement: {WINDOWS_NEEDED} events of 40 points to enrol and"
            f" {SESSION} to test are needed"
        )
    return Person(
        user.name,
        enrolled(spread_out(training, MOUSE_ENROLMENT)),
        np.concatenate(test),
        np.concatenate(training + test),
    )


class Session(NamedTuple):
    """One session to play.

    Attributes:
        typist: index of the victim's typing, or -1.
        mouse: index of the victim's mouse, or -1.
        other_typist: index of the attacker's typing, or -1.
        other_mouse: index of the attacker's mouse, or -1.
        takeover: event from which the attacker acts; -1 when never.
        seed: chooses stretches of the recordings; an odd one lets the owner's entries begin some way after the
            enrolment.
    """

    typist: int
    mouse: int
    other_typist: int
    other_mouse: int
    takeover: int
    seed: int


@dataclass(frozen=True, slots=True)
class Played:
    """Q sessions, played.

    Attributes:
        sessions: [Q, 6], columns as `Session`.
        scores: [Q, 30, 4], threat score, anomaly, sequence, pattern; NaN after a session's end.
        odds: [Q, 30], log odds of the single event for the owner.
        simple: [Q, 30], the service's preliminary distance from the baseline, 0..1.
    """

    sessions: NDArray[np.int64]
    scores: Floats
    odds: Floats
    simple: Floats

    def where(self, chosen: NDArray[np.bool_]) -> Played:
        """Some of the sessions."""
        return Played(self.sessions[chosen], self.scores[chosen], self.odds[chosen], self.simple[chosen])

    @property
    def takeover(self) -> NDArray[np.int64]:
        """[Q] first event of the attacker, -1 where there is none."""
        return self.sessions[:, 4]


@dataclass(frozen=True, slots=True)
class Plan:
    """How many sessions.

    Attributes:
        own: owners' sessions for each victim.
        attackers: attackers drawn for each victim, each attacking from the start and in mid-session.
        pairs: mouse users joined to each typist; the others' turn comes with other typists.
        touch: False hides pressure and contact size.
        learning: profiles learn from normal events.
    """

    own: int = 2
    attackers: int = 12
    pairs: int = 4
    touch: bool = True
    learning: bool = True
    seed: int = 11


def plan_sessions(typists: int, mouse_users: int, plan: Plan) -> list[Session]:
    """Sessions for so many typists and mouse users; 0 of a kind leaves that modality out.

    Raises:
        ValueError: fewer than two people.
    """
    if max(typists, mouse_users) < 2 or 1 in (typists, mouse_users):
        raise ValueError("at least two people of each kind are needed, since each is attacked by another")
    random = np.random.default_rng(plan.seed)
    sessions = []
    for victim in range(typists or mouse_users):
        partners = random.permutation(mouse_users)[: plan.pairs] if typists and mouse_users else [victim]
        for mouse in partners:
            typing = victim if typists else -1
            moving = int(mouse) if mouse_users else -1
            sessions += [
                Session(typing, moving, -1, -1, -1, int(random.integers(2**30)) * 2 + late % 2)
                for late in range(plan.own)
            ]
            for _ in range(max(plan.attackers // len(partners), 1)):
                other_typist = _somebody_else(random, typists, typing)
                other_mouse = _somebody_else(random, mouse_users, moving)
                for takeover in (0, int(random.integers(PREFIX[0], PREFIX[1] + 1))):
                    seed = int(random.integers(2**31))
                    sessions.append(Session(typing, moving, other_typist, other_mouse, takeover, seed))
    return sessions


def _somebody_else(random: np.random.Generator, people: int, victim: int) -> int:
    return int((victim + 1 + random.integers(people - 1)) % people) if people else -1


def play(
    sessions: Sequence[Session],
    typists: Sequence[Person],
    mouse_users: Sequence[Person],
    scorer: Scorer,
    plan: Plan,
    on_event: Callable[[int], None] = lambda _: None,
) -> Played:
    """Play sessions side by side, event by event. `on_event` is told how many events were just scored."""
    count = len(sessions)
    samples = np.stack([_samples(session, typists, mouse_users) for session in sessions])
    if not plan.touch:
        samples[:, :, TOUCH_SLOTS] = np.nan
    typing = [typists[session.typist].profile.copy() if session.typist >= 0 else None for session in sessions]
    moving = [mouse_users[session.mouse].profile.copy() if session.mouse >= 0 else None for session in sessions]
    window = np.zeros((count, WINDOW, STEP_SIZE), np.float32)
    scores = np.full((count, SESSION, 4), np.nan, np.float32)
    odds, simple = np.full((2, count, SESSION), np.nan, np.float32)
    for event in range(SESSION):
        live = np.flatnonzero(np.isfinite(samples[:, event, 0]) | np.isfinite(samples[:, event, -1]))
        if not len(live):
            break
        sample = samples[live, event]
        baseline = np.stack([_baseline(typing[q], moving[q], samples[q, event]) for q in live])
        context = np.broadcast_to(NEUTRAL_CONTEXT, (len(live), len(NEUTRAL_CONTEXT)))
        step = scorer.describe(context, sample, baseline)
        window[live, :-1] = window[live, 1:]
        window[live, -1] = step
        found = scorer.score(context, sample, baseline, window[live], np.full(len(live), event + 1))
        scores[live, event] = np.stack((found.threat_score, found.anomaly, found.sequence, found.pattern), 1)
        odds[live, event] = step[:, STEP["event_odds"]]
        for row, q in enumerate(live):
            simple[q, event] = _simple(typing[q], moving[q], sample[row])
            if plan.learning and found.level[row] == 0:
                _learn(typing[q], moving[q], sample[row])
        on_event(len(live))
    return Played(np.array(sessions, np.int64).reshape(-1, 6), scores, odds, simple)


def _samples(session: Session, typists: Sequence[Person], mouse_users: Sequence[Person]) -> Floats:
    """[30, S] of one session; rows after its end are NaN throughout."""
    random = np.random.default_rng(session.seed)
    late = int(random.integers(1, 11)) if session.seed % 2 else 0
    typed = _stretch(typists, session.typist, session.other_typist, session.takeover, random, late)
    moved = _stretch(mouse_users, session.mouse, session.other_mouse, session.takeover, random, None)
    if session.typist >= 0:
        moved[~np.isfinite(typed[:, SLOT_TYPED])] = np.nan
    return join(typed, moved, SAMPLE_IS_MOUSE)


def _stretch(
    people: Sequence[Person], victim: int, other: int, takeover: int, random: np.random.Generator, start: int | None
) -> Floats:
    found = np.full((SESSION, len(SLOTS)), np.nan, np.float32)
    if victim < 0:
        return found
    own = people[victim].later
    if start is None:
        start = int(random.integers(max(len(own) - SESSION, 1)))
    start = min(start, max(len(own) - PREFIX[1], 0))
    length = min(SESSION if takeover < 0 else takeover, len(own) - start)
    found[:length] = own[start : start + length]
    if takeover >= 0:
        theirs = people[other].everything
        at = int(random.integers(len(theirs)))
        found[length : length + ATTACK] = np.take(theirs, np.arange(at, at + ATTACK), axis=0, mode="wrap")
    return found


def _baseline(typing: Profile | None, moving: Profile | None, sample: Floats) -> Floats:
    if typing is None or moving is None:
        only = typing or moving
        assert only is not None  # noqa: S101  a session has at least one modality
        return only.vector(sample)
    return join(typing.vector(sample), moving.vector(sample), BASELINE_IS_MOUSE)


def _learn(typing: Profile | None, moving: Profile | None, sample: Floats) -> None:
    if typing is not None:
        typing.learn(np.where(SAMPLE_IS_MOUSE, np.float32(np.nan), sample))
    if moving is not None:
        moving.learn(np.where(SAMPLE_IS_MOUSE, sample, np.float32(np.nan)))


def _simple(typing: Profile | None, moving: Profile | None, sample: Floats) -> float:
    """The service's own preliminary distance: the mean over the modalities."""
    found = [deviations(typing, sample).typing] if typing is not None else []
    found += [deviations(moving, sample).mouse] if moving is not None else []
    return float(np.mean(found))
