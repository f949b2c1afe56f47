"""Redis: the document's threat structures, a view of what PostgreSQL knows.

    behavior:{userId}            hash: a person's current risk
    threats:recent               sorted set by time: results above normal, as JSON
    threats:high_risk            sorted set by score: {userId}:{eventId} of results at or above "threat"
    metrics:morpheus:throughput  list, newest first: results a second
    session:{sessionId}          a trial's session

Nothing waits for Redis. What cannot be written is dropped, and when Redis is back the view is built again from
PostgreSQL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import orjson
import psycopg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from servers.threat.alerts import Level
from servers.threat.records import iso_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.threat.people import People
    from servers.threat.person import PersonState
    from servers.threat.rows import StoredAlert

_log = logging.getLogger(__name__)

RECENT: Final = "threats:recent"
HIGH_RISK: Final = "threats:high_risk"
THROUGHPUT: Final = "metrics:morpheus:throughput"
KEPT: Final = 1000
"""Members of each sorted set and entries of the list, from the document."""

_HASH_SECONDS: Final = 86_400
_WINDOW: Final = timedelta(hours=24)
_MOST_WAITING: Final = 10_000
_CHUNK: Final = 100
_TIMEOUT: Final = 1.0
_PAUSE: Final = 0.5
_REFRESH_SECONDS: Final = 3600.0
_ERRORS: Final = (RedisError, OSError, TimeoutError)


class ResultStore(Protocol):
    """Where the truth lies."""

    async def latest(self, since: datetime, limit: int) -> list[StoredAlert]:
        """The last results above normal."""

    async def high_risk(self, since: datetime, limit: int) -> list[StoredAlert]:
        """The highest results at or above "threat"."""


class RedisMirror:
    """Keeps the view."""

    def __init__(self, url: str, store: ResultStore, people: People) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, health_check_interval=0, max_connections=8
        )
        self._store = store
        self._people = people
        self._waiting: deque[StoredAlert] = deque()
        self._dirty: set[str] = set()
        self._ready = asyncio.Event()
        self._behind = True
        self._count = 0

    @property
    def behind(self) -> bool:
        """True while the view misses something."""
        return self._behind

    def offer(self, results: Sequence[StoredAlert]) -> None:
        """Results that were stored; never waits."""
        self._count += len(results)
        if len(self._waiting) + len(results) > _MOST_WAITING:
            self._fall_behind()
            self._note_dirty(results)
        else:
            self._waiting.extend(results)
        self._ready.set()

    async def probe(self) -> dict[str, str | float]:
        """Ask Redis something cheap; returns its memory."""
        info = await self._redis.info("memory")
        return {"memory_usage": str(info["used_memory_human"])}

    async def start_session(self, session_id: str, user_id: str, expires_at: datetime) -> None:
        """Keep a trial's session in the document's form until it expires; without Redis the trial works all the
        same.
        """
        now = datetime.now(UTC)
        session = {
            "userId": user_id,
            "deviceId": "",
            "loginTime": now.isoformat(),
            "lastActivity": now.isoformat(),
            "quantumSecured": False,
            "hybridToken": "",
            "riskScore": 0.5,
            "biometricVerified": False,
        }
        try:
            await self._redis.set(f"session:{session_id}", orjson.dumps(session), exat=expires_at)
        except _ERRORS as error:
            _log.warning("the trial's session is not in Redis", extra={"cause": type(error).__name__})

    async def erase(self, user_id: str) -> None:
        """Take a person out of the view; what cannot be taken out now is gone with the next building of the view."""
        waiting = [result for result in self._waiting if result.alert.user_id != user_id]
        self._waiting = deque(waiting)
        self._dirty.discard(user_id)
        try:
            recent = cast("list[bytes]", await self._redis.zrange(RECENT, 0, -1))
            risky = cast("list[bytes]", await self._redis.zrange(HIGH_RISK, 0, -1))
            mine = [member for member in recent if user_id.encode() in member]
            mine_risky = [member for member in risky if member.startswith(user_id.encode())]
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.delete(f"behavior:{user_id}")
                if mine:
                    pipe.zrem(RECENT, *mine)
                if mine_risky:
                    pipe.zrem(HIGH_RISK, *mine_risky)
                await pipe.execute()
        except _ERRORS as error:
            _log.warning("a person could not be taken out of Redis yet", extra={"cause": type(error).__name__})
            self._dirty.add(user_id)
            self._fall_behind()

    async def run(self) -> None:
        """Write what waits, for as long as the service runs."""
        throughput = asyncio.create_task(self._throughput(), name="throughput")
        try:
            rebuilt = 0.0
            while True:
                if self._behind or time.monotonic() - rebuilt > _REFRESH_SECONDS:
                    if not await self._rebuild():
                        await asyncio.sleep(_PAUSE)
                        continue
                    rebuilt = time.monotonic()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REFRESH_SECONDS):
                        await self._ready.wait()
                self._ready.clear()
                while self._waiting and not self._behind:
                    await self._write()
        finally:
            throughput.cancel()
            with suppress(asyncio.CancelledError):
                await throughput

    async def close(self) -> None:
        """Close the connections."""
        with suppress(*_ERRORS):
            await self._redis.aclose()

    async def _write(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(_CHUNK, len(self._waiting)))]
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for user_id in dict.fromkeys(result.alert.user_id for result in batch):
                    self._add_person(pipe, user_id)
                _add_threats(pipe, batch)
                await pipe.execute()
        except _ERRORS as error:
            _log.warning("Redis is away: its view will be built again", extra={"cause": type(error).__name__})
            self._note_dirty(batch)
            self._fall_behind()

    async def _rebuild(self) -> bool:
        """Build the view from the truth; False when Redis or PostgreSQL is away."""
        self._behind = False
        self._note_dirty(self._waiting)
        self._waiting.clear()
        dirty = list(self._dirty)
        since = datetime.now(UTC) - _WINDOW
        try:
            latest, risky = await self._store.latest(since, KEPT), await self._store.high_risk(since, KEPT)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(RECENT, HIGH_RISK)
                _add_threats(pipe, latest)
                _add_threats(pipe, risky, only_risky=True)
                await pipe.execute()
            for start in range(0, len(dirty), _CHUNK):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for user_id in dirty[start : start + _CHUNK]:
                        self._add_person(pipe, user_id)
                    await pipe.execute()
        except (*_ERRORS, psycopg.Error) as error:
            _log.debug("the Redis view cannot be built yet", extra={"cause": type(error).__name__})
            self._fall_behind()
            return False
        self._dirty.difference_update(dirty)
        return True

    async def _throughput(self) -> None:
        silent = True
        while True:
            begun, self._count = time.monotonic(), 0
            await asyncio.sleep(1.0)
            rate = self._count / (time.monotonic() - begun)
            if rate == 0 and silent:
                continue
            silent = rate == 0
            entry = orjson.dumps({"timestamp": int(time.time() * 1000), "events_per_sec": round(rate, 1)})
            with suppress(*_ERRORS):
                async with self._redis.pipeline(transaction=False) as pipe:
                    pipe.lpush(THROUGHPUT, entry)
                    pipe.ltrim(THROUGHPUT, 0, KEPT - 1)
                    await pipe.execute()

    def _add_person(self, pipe: Any, user_id: str) -> None:
        person = self._people.cached(user_id)
        key = f"behavior:{user_id}"
        if person is None:
            # Not in memory: rather nothing than something old. The next event brings it back.
            pipe.delete(key)
            return
        pipe.hset(key, mapping=_person_hash(person.state))
        pipe.expire(key, _HASH_SECONDS)

    def _note_dirty(self, results: Sequence[StoredAlert] | deque[StoredAlert]) -> None:
        for result in results:
            if len(self._dirty) < _MOST_WAITING:
                self._dirty.add(result.alert.user_id)

    def _fall_behind(self) -> None:
        self._behind = True
        self._ready.set()


def _person_hash(state: PersonState) -> dict[str, str]:
    """`behavior:{userId}` of the document; scores with three decimals as in PostgreSQL."""
    return {
        "baselineScore": f"{state.usual_score:.3f}",
        "currentRisk": f"{state.risk_score:.3f}",
        "lastThreatScore": f"{state.last_threat_score:.3f}",
        "sessionCount": str(state.sessions.count),
        "avgSessionDuration": str(round(state.sessions.average_seconds)),
        "lastAnomalyTime": iso_time(state.last_anomaly_s) if state.last_anomaly_s is not None else "",
    }


def _add_threats(pipe: Any, results: Sequence[StoredAlert], *, only_risky: bool = False) -> None:
    recent = {_threat_json(r): r.alert.scored_at.timestamp() for r in results if r.alert.level >= Level.SUSPICIOUS}
    risky = {
        f"{r.alert.user_id}:{r.alert.event_id}": r.alert.threat_score for r in results if r.alert.level >= Level.THREAT
    }
    if recent and not only_risky:
        pipe.zadd(RECENT, recent)
        pipe.zremrangebyrank(RECENT, 0, -KEPT - 1)
    if risky:
        pipe.zadd(HIGH_RISK, risky)
        pipe.zremrangebyrank(HIGH_RISK, 0, -KEPT - 1)


def _threat_json(result: StoredAlert) -> bytes:
    alert = result.alert
    return orjson.dumps(
        {
            "eventId": alert.event_id,
            "userId": alert.user_id,
            "sessionId": alert.session_id,
            "organizationId": alert.organization_id,
            "threatScore": round(alert.threat_score, 3),
            "threatLevel": alert.level.label,
            "timestamp": alert.scored_at.isoformat(),
            "correlationId": alert.correlation_id or "",
        }
    )
