"""What is played: whose recordings, in which order, and where another person takes over."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from behaviorguard.threat.v1 import behavior_pb2

from infra.evaluation.recordings import RecordingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.evaluation.recordings import MouseUser, Typist
    from servers.threat.behavior import KeystrokeRun, MousePath


class Phase(StrEnum):
    """Where in the session an event lies."""

    ENROLLING = "enrolling"
    """The person's own, to be learnt."""
    OWN = "own"
    """The person's own, after learning."""
    TAKEN_OVER = "taken over"
    """The other person's."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is observed of a person in one event."""

    keystrokes: KeystrokeRun | None
    mouse: MousePath | None


@dataclass(frozen=True, slots=True)
class Step:
    """One event to be played."""

    phase: Phase
    observed: Observed


def observations(typist: Typist | None, user: MouseUser | None) -> list[Observed]:
    """A person's recordings as events, in the order they were recorded.

    With both modalities, entry n and window n make one event; the sets hold different people, so that is a chimera.
    """
    entries = list(typist.entries) if typist is not None else []
    windows = [window for session in user.training for window in session.windows] if user is not None else []
    if typist is None:
        return [Observed(None, window) for window in windows]
    if user is None:
        return [Observed(entry, None) for entry in entries]
    return [Observed(entry, window) for entry, window in zip(entries, windows, strict=False)]


def takeover(
    own: Sequence[Observed], other: Sequence[Observed], *, enrol: int, takeover_at: int, events: int
) -> list[Step]:
    """A session that another person takes over.

    Args:
        own: the person's events.
        other: the other person's events.
        enrol: how many of the person's first events are learnt before anything is judged.
        takeover_at: how many more events of the person's own follow.
        events: how many of the other's come then, at most.

    Raises:
        RecordingError: there are not enough recordings.
    """
    if len(own) < enrol + takeover_at:
        raise RecordingError(
            f"the victim has {len(own)} recorded events, and {enrol + takeover_at} are asked for:"
            " lower --enrol or --takeover-at"
        )
    learnt = [Step(Phase.ENROLLING, each) for each in own[:enrol]]
    judged = [Step(Phase.OWN, each) for each in own[enrol : enrol + takeover_at]]
    return [*learnt, *judged, *(Step(Phase.TAKEN_OVER, each) for each in other[:events])]


def metrics_of(observed: Observed, *, seconds: int) -> behavior_pb2.BehavioralMetrics:
    """An event's behaviour as the contract carries it; `seconds` since the session began."""
    metrics = behavior_pb2.BehavioralMetrics(session_duration=seconds)
    run, path = observed.keystrokes, observed.mouse
    if run is not None:
        metrics.keystroke_dynamics.add(
            prompt_id=run.prompt_id,
            key_classes=run.key_classes.tolist(),
            hold_ms=run.hold_ms.tolist(),
            flight_ms=run.flight_ms.tolist(),
            # Some recorders go a little over their scale's end.
            pressure=np.clip(run.pressure, 0, 1).tolist(),
            contact_size=np.clip(run.contact_size, 0, 1).tolist(),
        )
    if path is not None:
        metrics.mouse_dynamics.add(
            time_ms=path.time_ms.astype(int).tolist(),
            x_px=path.x_px.astype(int).tolist(),
            y_px=path.y_px.astype(int).tolist(),
            actions=path.actions.tolist(),
        )
    return metrics
