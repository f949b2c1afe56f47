"""The processing diagram, in one place: every box between the consumer and the producer, in its order.

consume -> deserialize -> monitor -> preprocess -> autoencoder -> LSTM -> transformer -> ensemble -> classify ->
monitor -> produce
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from pipeline.batch import LEVELS, Scores
from pipeline.stages.deserialize import CONTEXT_FIELDS, EventBatch, EvidenceLayout, Refusal, deserialize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.batch import Floats, Reason
    from pipeline.stages.monitor import Monitor
    from pipeline.stages.serialize import Alert, AlertSerializer
    from pipeline.state.windows import UserWindows

    Rows = NDArray[np.intp]

NOT_SCORABLE = "not_scorable"
"""Dead-letter reason of an event that is well formed and still makes the models fail, alone."""

_NORMAL = 0
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Scorer(Protocol):
    """What the chain needs of `pipeline.scoring.Scorer`."""

    def describe(self, context: Floats, sample: Floats, baseline: Floats) -> Floats:
        """One step [N, D] an event, from the event alone."""

    def score(
        self, context: Floats, sample: Floats, baseline: Floats, window: Floats, lengths: NDArray[np.integer]
    ) -> Scores:
        """Preprocess, autoencoder, LSTM, transformer, ensemble and classification of N events."""

    def explain(self, scores: Scores, indices: Sequence[int]) -> list[list[Reason]]:
        """The reasons of those rows, strongest first."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of a batch."""

    alerts: list[Alert]
    refusals: list[Refusal]
    """Events that the models cannot score; `row` as in `EventBatch.rows`."""


class ModelsFailed(RuntimeError):  # noqa: N818 - it is a state, and named as operators speak of it
    """The models fail for everything, so no event is to blame: nothing may be refused or committed."""


class Chain:
    """Turns messages into alerts. Belongs to one thread."""

    def __init__(
        self,
        scorer: Scorer,
        windows: UserWindows,
        layout: EvidenceLayout,
        serialize: AlertSerializer,
        monitor: Monitor,
        max_message_bytes: int,
    ) -> None:
        self._scorer = scorer
        self._windows = windows
        self._layout = layout
        self._serialize = serialize
        self._monitor = monitor
        self._max_message_bytes = max_message_bytes

    def read(self, messages: Sequence[tuple[bytes | None, bytes | None]]) -> tuple[EventBatch, list[Refusal]]:
        """Deserialize and monitor the input: the events, and why each of the others is none."""
        with self._monitor.stage("deserialize"):
            events, refusals = deserialize(messages, self._layout, self._max_message_bytes)
        self._monitor.count("received", len(messages))
        return events, refusals

    def score(
        self, events: EventBatch, partitions: NDArray[np.int32], wanted: NDArray[np.bool_], now: Callable[[], datetime]
    ) -> Scored:
        """Take the events into their users' windows and score the `wanted` ones; the others only rebuild the windows.

        Raises:
            ModelsFailed: the models fail for every event.
        """
        with self._monitor.stage("describe"):
            steps, bad = self._describe(events)
        refusals = _refusals(events, bad[wanted[bad]])
        if bad.size:
            good = np.setdiff1d(np.arange(len(events)), bad)
            events, partitions, wanted, steps = events.take(good), partitions[good], wanted[good], steps[good]
        with self._monitor.stage("window"):
            seen = self._windows.push(events.user_ids, events.event_ids, partitions, steps, wanted)
        self._monitor.count("duplicate", seen.duplicates)
        self._monitor.count("rebuilt", int(len(events) - wanted.sum()))
        chosen = events if len(seen.rows) == len(events) else events.take(seen.rows)
        alerts: list[Alert] = []
        parts, bad = self._infer(chosen, seen.window, seen.lengths)
        for rows, scores in parts:
            part = chosen if len(rows) == len(chosen) else chosen.take(rows)
            alerts += self._report(part, scores, now())
        self._monitor.count("scored", len(alerts))
        return Scored(alerts, refusals + _refusals(chosen, bad))

    def forget(self, partitions: Sequence[int]) -> None:
        """Drop the windows of partitions that come or go; belongs to the thread of `score`."""
        self._windows.forget(partitions)

    def warm_up(self, largest: int) -> None:
        """Score neutral events, once alone and once as a full batch: the first real event waits for no allocation.

        Raises:
            ModelsFailed: the models do not work.
        """
        for size in (1, largest):
            try:
                self._probe(size)
            except Exception as error:
                raise ModelsFailed(
                    "the models fail on a neutral event: train or restore the model repository"
                ) from error

    def _describe(self, events: EventBatch) -> tuple[Floats, Rows]:
        """Steps [N, D], and the positions of events that have none."""

        def describe(rows: Rows) -> Floats:
            return self._scorer.describe(*_evidence(events, rows))

        parts, bad = self._isolate(describe, len(events))
        if len(parts) == 1 and not bad.size:
            steps = parts[0][1]
        else:
            width = self._scorer.describe(*_neutral(self._layout, 1)).shape[1]
            steps = np.full((len(events), width), np.nan, np.float32)
            for rows, part in parts:
                steps[rows] = part
        bad = np.flatnonzero(~np.isfinite(steps).all(axis=1))
        return steps, bad

    def _infer(
        self, events: EventBatch, window: Floats, lengths: NDArray[np.int32]
    ) -> tuple[list[tuple[Rows, Scores]], Rows]:
        """Scores by groups of positions, and the positions of events that have none."""

        def infer(rows: Rows) -> Scores:
            whole = len(rows) == len(events)
            scores = self._scorer.score(
                *_evidence(events, rows), window if whole else window[rows], lengths if whole else lengths[rows]
            )
            if not _sound(scores):
                raise ValueError("a score is not in 0 to 1")
            return scores

        with self._monitor.stage("score"):
            return self._isolate(infer, len(events))

    def _report(self, events: EventBatch, scores: Scores, now: datetime) -> list[Alert]:
        """Reasons for what is not normal, and the alerts."""
        raised = np.flatnonzero(scores.level != _NORMAL).tolist()
        with self._monitor.stage("explain"):
            reasons = dict(zip(raised, self._scorer.explain(scores, raised), strict=True)) if raised else {}
        with self._monitor.stage("serialize"):
            alerts = self._serialize(events, scores, reasons, now)
        for level, number in enumerate(np.bincount(scores.level, minlength=len(LEVELS)).tolist()):
            if number:
                self._monitor.alerts(LEVELS[level], number)
        return alerts

    def _isolate(self, call: Callable[[Rows], T], total: int) -> tuple[list[tuple[Rows, T]], Rows]:
        """Run `call` over all positions at once; where that fails over halves, down to the events that fail alone."""
        done: list[tuple[Rows, T]] = []
        bad: list[int] = []
        pending = [np.arange(total)] if total else []
        probed = False
        while pending:
            rows = pending.pop()
            try:
                done.append((rows, call(rows)))
            except Exception as error:  # whatever a model or a feature throws at one event must not stop its neighbours
                if not probed:
                    self._blame_the_event(error)
                    probed = True
                if len(rows) == 1:
                    bad.append(int(rows[0]))
                else:
                    middle = len(rows) // 2
                    pending += [rows[middle:], rows[:middle]]
        return done, np.array(sorted(bad), np.intp)

    def _blame_the_event(self, error: Exception) -> None:
        """Return when the models still work for a neutral event; raise ModelsFailed when they do not."""
        _log.warning("a batch cannot be scored as a whole (%s): looking for the events that fail", type(error).__name__)
        try:
            self._probe(1)
        except Exception as probe_error:
            raise ModelsFailed(
                "the models fail on a neutral event: restart with a sound model repository"
            ) from probe_error

    def _probe(self, size: int) -> None:
        context, sample, baseline = _neutral(self._layout, size)
        steps = self._scorer.describe(context, sample, baseline)
        window = np.zeros((size, self._windows.length, steps.shape[1]), np.float32)
        window[:, -1] = steps
        if not _sound(self._scorer.score(context, sample, baseline, window, np.ones(size, np.int32))):
            raise ValueError("a score is not in 0 to 1")


def _evidence(events: EventBatch, rows: Rows) -> tuple[Floats, Floats, Floats]:
    """Context, sample and baseline of those positions; of all of them without a copy."""
    if len(rows) == len(events):
        return events.context, events.sample, events.baseline
    return events.context[rows], events.sample[rows], events.baseline[rows]


def _neutral(layout: EvidenceLayout, size: int) -> tuple[Floats, Floats, Floats]:
    """Events of which nothing was observed."""
    context = np.full((size, len(CONTEXT_FIELDS)), 0.5, np.float32)
    context[:, [CONTEXT_FIELDS.index("threat_indicators"), CONTEXT_FIELDS.index("session_duration")]] = 0
    sample = np.full((size, layout.sample_slots), np.nan, np.float32)
    return context, sample, np.full((size, layout.baseline_slots), np.nan, np.float32)


def _sound(scores: Scores) -> bool:
    columns = (scores.threat_score, scores.anomaly, scores.sequence, scores.pattern, scores.confidence)
    return all(bool(((column >= 0) & (column <= 1)).all()) for column in columns)  # NaN compares false


def _refusals(events: EventBatch, positions: Rows) -> list[Refusal]:
    return [Refusal(row, NOT_SCORABLE, "the models cannot score it") for row in events.rows[positions].tolist()]
