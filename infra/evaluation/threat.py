"""Takeover detection, measured the way it runs: real recordings through samples, profiles, scorer and levels, event
by event."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from infra.evaluation import metrics
from infra.evaluation.device import same_person_other_recorder
from infra.evaluation.protocol import (
    ENROLMENT,
    MOUSE_ENROLMENT,
    SESSION,
    Person,
    Plan,
    Played,
    mouse_user_of,
    plan_sessions,
    play,
    typist_of,
)
from infra.evaluation.recordings import RecordingError, read_keystrokes, read_mouse
from pipeline.backends.onnx import OnnxBackend
from pipeline.parameters import Parameters
from pipeline.scoring import ANOMALY, PATTERN, SEQUENCE, Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from infra.evaluation.recordings import MouseUser, Typist

UNKNOWN_TEXT: Final = "another-phrase"
MODALITIES: Final = ("fused", "typing", "typing_without_touch", "typing_of_other_text", "mouse")


@dataclass(frozen=True, slots=True)
class People:
    """Everybody in the recordings, enrolled.

    Attributes:
        typists: by the phrase that the models know.
        strangers_text: the same typists under another phrase's name.
        mouse_users: by their training sessions.
        skipped: who could not be enrolled, and why.
        digests: marks of all of them, in order typists, mouse users.
    """

    typists: list[Person]
    strangers_text: list[Person]
    mouse_users: list[Person]
    skipped: list[str]
    digests: list[str]

    @classmethod
    def of(cls, typists: Sequence[Typist], users: Sequence[MouseUser]) -> People:
        """Enrol them all; those with too little are skipped."""
        found = cls([], [], [], [], [])
        for typist in typists:
            try:
                found.typists.append(typist_of(typist))
                found.strangers_text.append(typist_of(typist, UNKNOWN_TEXT))
                found.digests.append(typist.digest)
            except ValueError as error:
                found.skipped.append(str(error))
        for user in users:
            try:
                found.mouse_users.append(mouse_user_of(user))
                found.digests.append(user.digest)
            except ValueError as error:
                found.skipped.append(str(error))
        return found


def measure(
    people: People,
    scorer: Scorer,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
    plans: dict[str, Plan] | None = None,
) -> dict[str, Played]:
    """Play every modality that there are at least two people for. `on_step` is told modality, events done and events
    in all."""
    played = {}
    typists, users = people.typists, people.mouse_users
    for name, plan in (plans or plans_for(len(typists), len(users))).items():
        typing = [] if name == "mouse" else (people.strangers_text if name == "typing_of_other_text" else typists)
        moving = users if name in ("fused", "mouse") else []
        sessions = plan_sessions(len(typing), len(moving), plan)
        done = 0

        def tell(count: int, name: str = name, total: int = len(sessions) * SESSION) -> None:
            nonlocal done
            done += count
            on_step(name, done, total)

        played[name] = play(sessions, typing, moving, scorer, plan, tell)
    return played


def plans_for(typists: int, mouse_users: int, *, quick: bool = False) -> dict[str, Plan]:
    """A plan for each modality that can be measured with so many people: about two thousand sessions each, fewer
    people more each."""
    plans = {}
    if typists >= 2:
        each = int(np.clip((160 if quick else 1600) / typists, 12, 120))
        alone = Plan(own=max(each // 4, 4), attackers=each)
        if mouse_users >= 2:
            pairs = min(mouse_users, 4)
            plans["fused"] = replace(alone, own=max(each // 4 // pairs, 2), pairs=pairs)
        plans["typing"] = alone
        plans["typing_without_touch"] = replace(alone, touch=False)
        plans["typing_of_other_text"] = replace(alone, touch=False)
    if mouse_users >= 2:
        each = int(np.clip((40 if quick else 800) / mouse_users, 20, 200))
        plans["mouse"] = Plan(own=each, attackers=each)
    return plans


def report(played: dict[str, Played], people: People) -> dict[str, Any]:
    """The figures of `behaviorguard evaluate threat --json`.

    The headline figures are the fused ones, or those of the one modality that there is.
    """
    headline = next(name for name in MODALITIES if name in played)
    found = {name: metrics.modality(part) for name, part in played.items()}
    main = found[headline]
    typing_names, mouse_names = ([person.name for person in group] for group in (people.typists, people.mouse_users))
    victims, column = (mouse_names, 1) if headline == "mouse" else (typing_names, 0)
    return {
        "balanced_accuracy": main["by_events"]["20"]["balanced_accuracy"],
        "balanced_accuracy_ci95": main["by_events"]["20"]["ci95"],
        "eer_event": main["eer_event"],
        "events_to_detect_median": main["events_to_detect_median"],
        "false_alarms_per_session": main["false_alarms_per_session"],
        "false_alarms_nominal": 0.01,
        "headline": headline,
        "chimeric": headline == "fused",
        "modalities": found,
        "ablation": {name: metrics.ablation(played[name]) for name in played},
        "worst": {str(n): metrics.worst(played[headline], victims, column, n) for n in (5, 20)},
        "subjects": {
            "typists": len(typing_names),
            "mouse_users": len(mouse_names),
            "skipped": people.skipped,
        },
        "protocol": {
            "enrolment_entries": ENROLMENT,
            "enrolment_mouse_windows": MOUSE_ENROLMENT,
            "session_events": SESSION,
            "decision_score": metrics.SUSPICIOUS,
            "alarm_score": metrics.THREAT,
            "profiles_learn_during_sessions": True,
            "context": "neutral",
        },
    }


def evaluate(
    keystrokes: Path | None,
    mouse: Path | None,
    models: Path,
    on_file: Callable[[], None] = lambda: None,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """Evaluate the models of a repository on recordings.

    Args:
        keystrokes: CSV with the columns of MEU-Mobile KSD, or None.
        mouse: folder laid out as the Balabit challenge, or None.
        models: model repository.
        on_file: called after each mouse file was read.
        on_step: told modality, events done, events in all.
        quick: play about a tenth of the sessions.

    Raises:
        RecordingError: the recordings cannot be read, or hold fewer than two people of a kind.
        FileNotFoundError: there are no trained parameters.
        ModelRepositoryError: a model is missing or is not what the manifest names.
    """
    if keystrokes is None and mouse is None:
        raise RecordingError("nothing to evaluate: give --keystrokes CSV, --mouse DIR or both")
    typists = read_keystrokes(keystrokes) if keystrokes is not None else []
    users = read_mouse(mouse, on_file) if mouse is not None else []
    people = People.of(typists, users)
    for asked, group, label in ((keystrokes, people.typists, "typists"), (mouse, people.mouse_users, "mouse users")):
        if asked is not None and len(group) < 2:
            reasons = "; ".join(people.skipped) or "no more were found"
            raise RecordingError(f"{asked} holds {len(group)} usable {label}, at least 2 are needed ({reasons})")
    parameters = Parameters.load(models)
    scorer = Scorer(OnnxBackend(models, (ANOMALY, SEQUENCE, PATTERN)), parameters)
    plans = plans_for(len(people.typists), len(people.mouse_users), quick=quick)
    found = report(measure(people, scorer, on_step, plans), people)
    found["recorder"] = same_person_other_recorder(users, scorer)
    known = sum(digest in parameters.digests for digest in people.digests)
    found["subjects"]["trained_on"] = known
    found["optimistic"] = known > 0
    found["model_version"] = parameters.version
    if known:
        found["warning"] = (
            f"{known} of these {len(people.digests)} people are among those the models were trained on, so these"
            " figures are optimistic; docs/accuracy.md has the cross-validated ones"
        )
    return found
