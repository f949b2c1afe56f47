"""The alert stream inside one process."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.api.v1.errors_pb2 import ErrorReason

from servers.mesh.errors import MeshError
from servers.threat.alerts import Alert, Level
from servers.threat.rows import StoredAlert, StreamFilter
from servers.threat.watch import AlertHub

if TYPE_CHECKING:
    from collections.abc import Sequence

ORGANIZATION, ANNA = "org", "anna"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def stored(
    position: int, user: str = ANNA, organization: str = ORGANIZATION, level: Level = Level.NORMAL
) -> StoredAlert:
    alert = Alert(
        event_id=str(position),
        user_id=user,
        session_id="s",
        organization_id=organization,
        correlation_id=None,
        threat_score=0.1,
        level=level,
        anomaly_score=0.1,
        sequence_threat_score=0.1,
        pattern_anomaly_score=0.1,
        ml_confidence=0.9,
        processing_time_ms=1,
        pipeline_version="",
        features=(),
        simulated_features=(),
        reasons=(),
        model_versions=(),
        recommendations=(),
        occurred_at=NOW,
        scored_at=NOW,
        sample="",
        evidence_version=1,
    )
    return StoredAlert(position, alert)


class MemoryStream:
    """A stream in a list."""

    def __init__(self) -> None:
        self.rows: list[StoredAlert] = []

    async def head(self) -> int:
        return self.rows[-1].position if self.rows else 0

    async def alerts_after(
        self, position: int, upto: int, wanted: StreamFilter | None, limit: int
    ) -> list[StoredAlert]:
        await asyncio.sleep(0)
        rows = [row for row in self.rows if position < row.position <= upto]
        return [row for row in rows if wanted is None or wanted.admits(row.alert)][:limit]


EVERYTHING = StreamFilter(ORGANIZATION, frozenset(), Level.NORMAL, "")


def hub_over(stream: MemoryStream, seen: list[int], queue: int = 4) -> AlertHub:
    def note(results: Sequence[StoredAlert]) -> None:
        seen.extend(result.position for result in results)

    hub = AlertHub(stream, "", instance="me", queue=queue, readers=10, on_results=note, on_erased=lambda _: None)
    hub.begin_at(0)
    return hub


async def test_a_reader_that_is_too_slow_gets_what_waits_and_is_told_to_resume() -> None:
    stream, seen = MemoryStream(), list[int]()
    hub = hub_over(stream, seen)
    following = hub.follow(EVERYTHING, await hub.start(None))
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    stream.rows = [stored(position) for position in range(1, 11)]
    hub.publish(stream.rows)
    got = [await first]
    with pytest.raises(MeshError) as cut:  # noqa: PT012 - it is raised after the last of those that wait
        while True:
            got.append(await anext(following))
    assert cut.value.reason == ErrorReason.ERROR_REASON_OVERLOADED
    assert [result.position for result in got] == [1, 2, 3, 4]
    assert hub.readers == 0
    again = hub.follow(EVERYTHING, got[-1].position)
    assert [(await anext(again)).position for _ in range(6)] == [5, 6, 7, 8, 9, 10]
    await again.aclose()


async def test_what_others_stored_in_between_is_read_and_the_order_holds() -> None:
    stream, seen = MemoryStream(), list[int]()
    hub = hub_over(stream, seen, queue=100)
    closing = asyncio.ensure_future(hub.close_gaps())
    following = hub.follow(EVERYTHING, 0)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    stream.rows = [stored(1)]
    hub.publish(stream.rows[:1])
    # Another instance stored 2 and 3 (a number was lost in between), then we store 5 and 6.
    stream.rows += [stored(2), stored(3), stored(5), stored(6)]
    hub.publish(stream.rows[3:])
    got = [await first] + [await anext(following) for _ in range(4)]
    assert [result.position for result in got] == [1, 2, 3, 5, 6]
    assert seen == [1, 2, 3, 5, 6]
    hub.publish([stored(6)])
    assert seen == [1, 2, 3, 5, 6], "a result is handed out once"
    closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (EVERYTHING, True),
        (StreamFilter("other", frozenset(), Level.NORMAL, ""), False),
        (StreamFilter(ORGANIZATION, frozenset({"bela"}), Level.NORMAL, ""), False),
        (StreamFilter(ORGANIZATION, frozenset({ANNA}), Level.SUSPICIOUS, ""), False),
        (StreamFilter(ORGANIZATION, frozenset({ANNA}), Level.NORMAL, "other"), False),
        (StreamFilter(ORGANIZATION, frozenset({ANNA}), Level.NORMAL, "s"), True),
    ],
)
def test_filters(wanted: Any, admitted: bool) -> None:
    assert wanted.admits(stored(1).alert) is admitted
