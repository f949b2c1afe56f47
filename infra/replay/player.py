"""Plays a script into the threat service and waits for each event's result."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from behaviorguard.client import ServiceError
from behaviorguard.threat.v1 import threat_pb2, threat_service_pb2

from infra.replay.script import Phase, Step, metrics_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from behaviorguard.client import AsyncBehaviorGuardClient

RESULT_SECONDS: Final = 15.0
_SECONDS_AN_EVENT: Final = 5
_ASK_AGAIN_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Played:
    """One event and what became of it."""

    number: int
    """Counts from 1."""
    phase: Phase
    preliminary_risk: float
    score: float | None
    """The ensemble's score; None when no result came in time."""
    level: str
    """"normal", "suspicious", "threat", "critical", or empty without a result."""
    accepted_ms: float
    """From sending to acceptance."""
    scored_ms: float | None
    """From sending to the result's arrival here."""
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole session."""

    events: tuple[Played, ...]

    @property
    def noticed_after(self) -> int | None:
        """How many of the other person's events it took until one was a threat; None when none was."""
        others = [each for each in self.events if each.phase is Phase.TAKEN_OVER]
        return next((number for number, each in enumerate(others, 1) if _alarms(each)), None)

    @property
    def false_alarms(self) -> int:
        """The person's own events, after learning, that were called a threat."""
        return sum(_alarms(each) for each in self.events if each.phase is Phase.OWN)

    @property
    def lost(self) -> int:
        """Events without a result."""
        return sum(each.score is None for each in self.events)

    def latency_ms(self, share: float) -> float | None:
        """The latency that a share (0 to 1) of the results stays within."""
        found = sorted(each.scored_ms for each in self.events if each.scored_ms is not None)
        return found[min(len(found) - 1, int(share * len(found)))] if found else None


def _alarms(played: Played) -> bool:
    return played.level in ("threat", "critical")


@dataclass(slots=True)
class _Inbox:
    """Results by event, as they arrive."""

    waiting: dict[str, asyncio.Future[tuple[threat_service_pb2.AlertData, float]]] = field(default_factory=dict)

    def expect(self, event_id: str) -> asyncio.Future[tuple[threat_service_pb2.AlertData, float]]:
        self.waiting[event_id] = asyncio.get_running_loop().create_future()
        return self.waiting[event_id]

    def take(self, alert: threat_service_pb2.AlertData) -> None:
        future = self.waiting.pop(alert.event_id, None)
        if future is not None and not future.done():
            future.set_result((alert, time.perf_counter()))


class Player:
    """Plays one session as a throwaway person."""

    def __init__(self, client: AsyncBehaviorGuardClient, trial: threat_service_pb2.StartTrialResponse) -> None:
        self._client = client
        self._trial = trial
        self._inbox = _Inbox()

    async def play(self, steps: Sequence[Step], *, rate: float) -> AsyncIterator[Played]:
        """Plays all steps, each after the result of the one before, as a baseline learns from results.

        Args:
            steps: what to play.
            rate: most events a second.

        Raises:
            ServiceError: the service refuses, or is away for long.
        """
        watching = asyncio.create_task(self._watch(), name="watch")
        try:
            for number, step in enumerate(steps, 1):
                begun = time.perf_counter()
                yield await self._play_one(number, step, watching)
                await asyncio.sleep(max(0.0, 1 / rate - (time.perf_counter() - begun)))
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceError):
                await watching

    async def _watch(self) -> None:
        request = threat_service_pb2.WatchAlertsRequest(
            user_ids=[self._trial.user_id], minimum_level=threat_pb2.THREAT_LEVEL_NORMAL
        )
        async for alert in self._client.watch_alerts(request):
            self._inbox.take(alert.data)

    async def _play_one(self, number: int, step: Step, watching: asyncio.Task[None]) -> Played:
        request = self._request(number, step)
        result = self._inbox.expect(request.event_data.event_id)
        begun = time.perf_counter()
        answer = await self._client.threat.AnalyzeRealtime(request)
        accepted = time.perf_counter()
        found = await self._result(request.event_data.event_id, result, watching)
        alert, arrived = found if found is not None else (None, None)
        return Played(
            number=number,
            phase=step.phase,
            preliminary_risk=round(answer.preliminary_risk, 4),
            score=None if alert is None else round(alert.threat_score, 4),
            level="" if alert is None else _level(alert.threat_level),
            accepted_ms=(accepted - begun) * 1000,
            scored_ms=None if arrived is None else (arrived - begun) * 1000,
            reasons=() if alert is None else tuple(reason.text for reason in alert.reasons),
        )

    async def _result(
        self,
        event_id: str,
        result: asyncio.Future[tuple[threat_service_pb2.AlertData, float]],
        watching: asyncio.Task[None],
    ) -> tuple[threat_service_pb2.AlertData, float | None] | None:
        """An event's result; asked for where the stream does not bring it: the first may be scored before it stands."""
        deadline = time.perf_counter() + RESULT_SECONDS
        while time.perf_counter() < deadline:
            both: set[asyncio.Future[Any]] = {result, watching}
            await asyncio.wait(both, timeout=_ASK_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if watching.done():
                await watching  # raises what ended it
            stored = await self._stored(event_id)
            if stored is not None:
                return stored, None
        return None

    async def _stored(self, event_id: str) -> threat_service_pb2.AlertData | None:
        try:
            answer = await self._client.threat.GetThreatEvent(
                threat_service_pb2.GetThreatEventRequest(event_id=event_id)
            )
        except ServiceError as error:
            if error.reason == "not_found":
                return None
            raise
        event = answer.event
        return threat_service_pb2.AlertData(
            event_id=event_id, threat_score=event.threat_score, threat_level=event.threat_level, reasons=event.reasons
        )

    def _request(self, number: int, step: Step) -> threat_service_pb2.AnalyzeRealtimeRequest:
        request = threat_service_pb2.AnalyzeRealtimeRequest(user_id=self._trial.user_id)
        request.timestamp.GetCurrentTime()
        request.event_data.event_id = str(uuid.uuid4())
        request.event_data.session_id = self._trial.session_id
        metrics = metrics_of(step.observed, seconds=number * _SECONDS_AN_EVENT)
        request.event_data.behavioral_metrics.CopyFrom(metrics)
        return request


def _level(number: threat_pb2.ThreatLevel.ValueType) -> str:
    return threat_pb2.ThreatLevel.Name(number).removeprefix("THREAT_LEVEL_").lower()
