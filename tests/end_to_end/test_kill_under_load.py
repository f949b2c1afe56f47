"""Services die by SIGKILL while events come in: every accepted event still ends as exactly one stored result."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from behaviorguard.client import AsyncBehaviorGuardClient, ServiceError, Tls
from behaviorguard.threat.v1 import behavior_pb2
from behaviorguard.threat.v1 import threat_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from infra import pki
from tests.support.stack import installed

if TYPE_CHECKING:
    from tests.support.stack import Installation

pytestmark = pytest.mark.end_to_end

PEOPLE = 4
KEYS = 12
PACE_SECONDS = 0.05
SETTLE_SECONDS = 90.0


def an_event(user_id: str, session_id: str, rng: random.Random) -> pb.AnalyzeRealtimeRequest:
    pattern = behavior_pb2.KeystrokePattern(
        prompt_id="load",
        key_classes=[behavior_pb2.KEY_CLASS_LETTER_LEFT] * KEYS,
        hold_ms=[rng.uniform(60, 120) for _ in range(KEYS)],
        flight_ms=[0.0, *(rng.uniform(90, 240) for _ in range(KEYS - 1))],
    )
    event = behavior_pb2.BehavioralEvent(
        event_id=str(uuid.uuid4()),
        session_id=session_id,
        behavioral_metrics=behavior_pb2.BehavioralMetrics(keystroke_dynamics=[pattern], session_duration=60),
    )
    now = Timestamp()
    now.GetCurrentTime()
    return pb.AnalyzeRealtimeRequest(user_id=user_id, event_data=event, timestamp=now)


class Load:
    """People who work on while the system is killed; an event that was not accepted is sent again under its id."""

    def __init__(self, client: AsyncBehaviorGuardClient) -> None:
        self.accepted: dict[str, set[str]] = {}
        self._client = client
        self._total = 0
        self._grew = asyncio.Condition()
        self._over = asyncio.Event()

    async def run(self) -> None:
        rhythms = [random.Random(seed) for seed in range(PEOPLE)]  # noqa: S311 - made-up typing, nothing secret
        await asyncio.gather(*map(self._person, rhythms))

    def stop(self) -> None:
        self._over.set()

    async def more(self, number: int) -> None:
        """Wait until so many more events were accepted."""
        async with asyncio.timeout(SETTLE_SECONDS), self._grew:
            goal = self._total + number
            await self._grew.wait_for(lambda: self._total >= goal)

    async def _person(self, rng: random.Random) -> None:
        trial = await self._client.threat.StartTrial(pb.StartTrialRequest(label="load"))
        accepted = self.accepted.setdefault(trial.user_id, set())
        while not self._over.is_set():
            request = an_event(trial.user_id, trial.session_id, rng)
            await self._send(request)
            accepted.add(request.event_data.event_id)
            async with self._grew:
                self._total += 1
                self._grew.notify_all()
            await asyncio.sleep(PACE_SECONDS)

    async def _send(self, request: pb.AnalyzeRealtimeRequest) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                await self._client.threat.AnalyzeRealtime(request)
            except ServiceError:
                assert time.monotonic() < deadline, "the service did not come back"
                await asyncio.sleep(0.05)
            else:
                return


async def stored_of(client: AsyncBehaviorGuardClient, user_id: str) -> list[str]:
    stored: list[str] = []
    token = ""
    while True:
        page = await client.threat.ListThreatEvents(
            pb.ListThreatEventsRequest(user_id=user_id, page_size=500, page_token=token)
        )
        stored += [event.event_id for event in page.events]
        token = page.next_page_token
        if not token:
            return stored


async def every_accepted_event_is_stored_once(client: AsyncBehaviorGuardClient, load: Load) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    for user_id, accepted in load.accepted.items():
        while True:
            stored = await stored_of(client, user_id)
            assert len(stored) == len(set(stored))
            assert set(stored) <= accepted
            if len(stored) == len(accepted):
                break
            assert time.monotonic() < deadline, f"{len(accepted) - len(stored)} of {len(accepted)} events are missing"
            await asyncio.sleep(0.1)


async def lose_services_under_load(installation: Installation, between: int) -> None:
    """Kill pipeline, service and pipeline again, with at least `between` events accepted before and after each."""
    operator = pki.identity(installation.settings().pki, "operator")
    tls = Tls.from_files(operator.ca, operator.cert, operator.key)
    target = f"localhost:{installation.settings().threat_port}"
    async with AsyncBehaviorGuardClient(target, "threat", tls) as client:
        load = Load(client)
        running = asyncio.create_task(load.run())
        try:
            for name in ("pipeline", "threat", "pipeline"):
                await load.more(between)
                await asyncio.to_thread(installation.kill, name)
            await load.more(between)
            load.stop()
            await running
        finally:
            running.cancel()
        await every_accepted_event_is_stored_once(client, load)


async def test_killed_services_lose_and_repeat_nothing() -> None:
    with installed() as installation:
        started = await asyncio.to_thread(installation.call, "up", "--without", "gateway")
        assert started.returncode == 0, started.stdout + started.stderr
        await lose_services_under_load(installation, between=50)


@pytest.mark.chaos
async def test_killed_services_lose_and_repeat_nothing_on_apache_kafka() -> None:
    with installed(broker="auto") as installation:
        started = await asyncio.to_thread(installation.call, "up", "--without", "gateway")
        assert started.returncode == 0, started.stdout + started.stderr
        await lose_services_under_load(installation, between=1500)
