"""PostgreSQL, the truth about results and profiles. All SQL of the threat service is here.

Tables and columns come from `infra/postgres/migrations/main`. Used of `behaviorguard.users`: user_id, email,
organization_id, status, trial_expires_at. Used of `ai_services.threat_events`: all; `event_data` holds `{"sample":
base64, "evidence_version": n}`. Used of `ai_services.behavioral_profiles`: user_id, organization_id, baseline_behavior
(`PersonState.to_json`), risk_score, last_analysis, anomaly_threshold, evidence_version, last_threat_score,
last_anomaly, session_count, average_session_seconds, revision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool

from servers.threat.alerts import Level
from servers.threat.rows import (
    Member,
    StoredAlert,
    StoredEvent,
    StoredProfile,
    alert_row,
    from_microseconds,
    profile_row,
    stored_alert,
    stored_event,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from psycopg import AsyncConnection

    from servers.threat.alerts import Alert
    from servers.threat.person import PersonState
    from servers.threat.rows import EventFilter, ProfileWrite, StoredVerdict, StreamFilter
    from servers.threat.tokens import PageStart

CHANNEL: Final = "bg_threat_alerts"
"""Notifications: `alerts <instance> <last position>` after a stored batch, `erased <instance> <user id>` after an
erasure.
"""

_CONNECT_SECONDS: Final = 5
_STATEMENT_MS: Final = 10_000
_POOL_WAIT_SECONDS: Final = 5.0
_RECONNECT_SECONDS: Final = 2.0
_REPAIR_EVENTS: Final = 500


_COLUMNS: Final = """
    e.event_id::text, e.user_id::text, e.session_id::text, e.organization_id::text, e.correlation_id::text,
    e.threat_score::float8, e.threat_level::text, e.anomaly_score::float8, e.sequence_threat_score::float8,
    e.pattern_anomaly_score::float8, e.ml_confidence::float8, e.processing_time_ms, e.morpheus_pipeline_version,
    e.features, e.simulated_features, e.reasons, e.model_versions, e.recommendations, e.occurred_at, e.processed_at,
    e.created_at, e.stream_position, e.verdict_kind::text, e.verdict_note, e.verdict_analyst, e.verdict_recorded_at,
    coalesce(e.event_data->>'sample', '') AS sample,
    coalesce((e.event_data->>'evidence_version')::int, 0) AS evidence_version
"""

_INSERT: Final = """
INSERT INTO ai_services.threat_events (
    event_id, user_id, session_id, organization_id, correlation_id, threat_score, threat_level, anomaly_score,
    sequence_threat_score, pattern_anomaly_score, ml_confidence, processing_time_ms, morpheus_pipeline_version,
    event_data, recommendations, processed_at, occurred_at, accepted_at, features, simulated_features, reasons,
    model_versions)
SELECT r.event_id, u.user_id, r.session_id, u.organization_id, r.correlation_id, r.threat_score,
r.threat_level::threat_level_enum,
    r.anomaly_score, r.sequence_threat_score, r.pattern_anomaly_score, r.ml_confidence, r.processing_time_ms,
    r.pipeline_version, r.event_data, r.recommendations, r.scored_at, r.occurred_at,
    r.scored_at - r.processing_time_ms * interval '1 millisecond', r.features, r.simulated_features, r.reasons,
    r.model_versions
FROM json_to_recordset(%(rows)s::json) AS r(
    event_id uuid, user_id uuid, session_id uuid, organization_id uuid, correlation_id uuid, threat_score numeric,
    threat_level text, anomaly_score numeric, sequence_threat_score numeric, pattern_anomaly_score numeric,
    ml_confidence numeric, processing_time_ms int, pipeline_version text, event_data jsonb, recommendations text[],
    scored_at timestamptz, occurred_at timestamptz, features jsonb, simulated_features text[], reasons jsonb,
    model_versions jsonb, place bigint)
JOIN behaviorguard.users u ON u.user_id = r.user_id AND u.organization_id = r.organization_id
ORDER BY r.place
ON CONFLICT (event_id) DO NOTHING
RETURNING event_id::text, stream_position
"""


class Store:
    """Reads and writes of the threat service. Every method may raise `psycopg.Error` or `psycopg_pool.PoolTimeout`."""

    def __init__(self, dsn: str, *, connections: int, instance: str) -> None:
        """`instance` names this process in notifications."""
        self._instance = instance
        self._pool: AsyncConnectionPool[AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
            dsn,
            min_size=2,
            max_size=connections,
            timeout=_POOL_WAIT_SECONDS,
            # The pool's own attempts back off to minutes; given up early, the next call that needs a connection tries.
            reconnect_timeout=_RECONNECT_SECONDS,
            open=False,
            name="threat",
            configure=_configure,
            kwargs={
                "row_factory": dict_row,
                "autocommit": True,
                "connect_timeout": _CONNECT_SECONDS,
                "application_name": "behaviorguard-threat",
                "options": f"-c timezone=UTC -c statement_timeout={_STATEMENT_MS}",
            },
        )

    async def open(self) -> None:
        """Open the pool; does not wait for the database."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def probe(self) -> dict[str, str | float]:
        """Ask the database something cheap; returns the pool's sizes."""
        async with self._pool.connection(timeout=1.5) as connection:
            await connection.execute("SELECT 1")
        stats = self._pool.get_stats()
        size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
        return {"active": float(size - idle), "idle": float(idle), "total": float(size)}

    async def member(self, user_id: str) -> Member | None:
        """A person, or None when there is none of this id."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT user_id::text, organization_id::text, status = 'active' AS active, trial_expires_at"
                " FROM behaviorguard.users WHERE user_id = %s",
                (user_id,),
            )
            row = await cursor.fetchone()
        return Member(**row) if row else None

    async def insert(self, alerts: Sequence[Alert]) -> list[StoredAlert]:
        """Store results in one transaction, in order, and notify the other instances.

        Returns:
            What is new, by position. Missing are results that are stored already and those of people who do not exist
            (any more).
        """
        if not alerts:
            return []
        rows = [alert_row(alert) | {"place": place} for place, alert in enumerate(alerts)]
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(_INSERT, {"rows": orjson.dumps(rows).decode()})
            positions = {row["event_id"]: int(row["stream_position"]) for row in await cursor.fetchall()}
            stored: list[StoredAlert] = []
            for alert in alerts:
                # The first copy of an event that comes twice in one batch is the one that was stored.
                position = positions.pop(alert.event_id, None)
                if position is not None:
                    stored.append(StoredAlert(position, alert))
            if stored:
                stored.sort(key=lambda item: item.position)
                await self._notify(connection, f"alerts {self._instance} {stored[-1].position}")
        return stored

    async def head(self) -> int:
        """The last position of the alert stream; 0 when it is empty."""
        async with self._pool.connection() as connection:
            # The stream's index begins with the organisation: ask each for its own last one.
            cursor = await connection.execute(
                "SELECT coalesce(max(last), 0) AS head FROM behaviorguard.organizations o, LATERAL ("
                " SELECT max(e.stream_position) AS last FROM ai_services.threat_events e"
                " WHERE e.organization_id = o.organization_id) AS l"
            )
            row = await cursor.fetchone()
        return int(row["head"]) if row else 0

    async def alerts_after(
        self, position: int, upto: int, wanted: StreamFilter | None, limit: int
    ) -> list[StoredAlert]:
        """Results with a position in (`position`, `upto`], oldest first, at most `limit`; all organisations' when
        `wanted` is None.
        """
        where = ["e.stream_position > %(after)s", "e.stream_position <= %(upto)s"]
        parameters: dict[str, Any] = {"after": position, "upto": upto, "limit": limit}
        if wanted is None:
            where.append("e.organization_id IN (SELECT organization_id FROM behaviorguard.organizations)")
        else:
            where += ["e.organization_id = %(organization)s", "e.threat_level >= %(level)s::threat_level_enum"]
            parameters |= {"organization": wanted.organization_id, "level": wanted.minimum_level.label}
            if wanted.user_ids:
                where.append("e.user_id = ANY(%(users)s::uuid[])")
                parameters["users"] = list(wanted.user_ids)
            if wanted.session_id:
                where.append("e.session_id = %(session)s::uuid")
                parameters["session"] = wanted.session_id
        rows = await self._events(" AND ".join(where), "e.stream_position", parameters)
        return [stored_alert(row) for row in rows]

    async def list_events(self, wanted: EventFilter, start: PageStart | None, limit: int) -> list[StoredEvent]:
        """A page of results, the last stored first."""
        where = ["e.organization_id = %(organization)s"]
        parameters: dict[str, Any] = {"organization": wanted.organization_id, "limit": limit}
        if wanted.user_id is not None:
            where.append("e.user_id = %(user)s")
            parameters["user"] = wanted.user_id
        if wanted.minimum_level > Level.NORMAL:
            where.append("e.threat_level >= %(level)s::threat_level_enum")
            parameters["level"] = wanted.minimum_level.label
        if wanted.start is not None:
            where.append("e.processed_at >= %(start)s")
            parameters["start"] = wanted.start
        if wanted.end is not None:
            where.append("e.processed_at < %(end)s")
            parameters["end"] = wanted.end
        if start is not None:
            where.append("(e.created_at, e.event_id) < (%(stored_at)s, %(event)s::uuid)")
            parameters["stored_at"] = from_microseconds(start.stored_at_us)
            parameters["event"] = start.event_id
        rows = await self._events(" AND ".join(where), "e.created_at DESC, e.event_id DESC", parameters)
        return [stored_event(row) for row in rows]

    async def event(self, organization_id: str, event_id: str) -> StoredEvent | None:
        """One result of an organisation, or None."""
        rows = await self._events(
            "e.event_id = %(event)s AND e.organization_id = %(organization)s",
            "e.event_id",
            {"event": event_id, "organization": organization_id, "limit": 1},
        )
        return stored_event(rows[0]) if rows else None

    async def set_verdict(self, organization_id: str, event_id: str, verdict: StoredVerdict) -> str | None:
        """Record a verdict over an earlier one.

        Returns:
            The earlier one's kind, empty when there was none; None when the organisation has no such event.
        """
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                WITH before AS (
                    SELECT event_id, verdict_kind FROM ai_services.threat_events
                    WHERE event_id = %(event)s AND organization_id = %(organization)s FOR UPDATE)
                UPDATE ai_services.threat_events e SET verdict_kind = %(kind)s::verdict_kind_enum, verdict_note =
                %(note)s,
                    verdict_analyst = %(analyst)s, verdict_recorded_at = %(at)s
                FROM before b WHERE e.event_id = b.event_id RETURNING coalesce(b.verdict_kind::text, '') AS before
                """,
                {
                    "event": event_id,
                    "organization": organization_id,
                    "kind": verdict.kind,
                    "note": verdict.note,
                    "analyst": verdict.analyst,
                    "at": verdict.recorded_at,
                },
            )
            row = await cursor.fetchone()
        return str(row["before"]) if row else None

    async def profiles(self, user_ids: Sequence[str]) -> list[StoredProfile]:
        """The profiles of people who exist; those without one come with `baseline` None."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                SELECT u.user_id::text, u.organization_id::text, p.baseline_behavior AS baseline,
                    coalesce(p.anomaly_threshold, 0.7)::float8 AS anomaly_threshold, coalesce(p.revision, 0) AS revision
                FROM behaviorguard.users u LEFT JOIN ai_services.behavioral_profiles p USING (user_id)
                WHERE u.user_id = ANY(%s::uuid[])
                """,
                (list(user_ids),),
            )
            return [StoredProfile(**row) for row in await cursor.fetchall()]

    async def results_since(self, places: Sequence[tuple[str, int, datetime]]) -> dict[str, list[StoredAlert]]:
        """What is stored of people after a position and time each, oldest first; the last few hundred when there are
        more.

        The time only bounds the search: it must be before the result at the position was stored.
        """
        source = f"""
            SELECT {_COLUMNS} FROM unnest(%(users)s::uuid[], %(positions)s::bigint[], %(times)s::timestamptz[]) AS
            p(user_id, position, since) CROSS JOIN LATERAL (
                SELECT * FROM ai_services.threat_events t
                WHERE t.user_id = p.user_id AND t.created_at >= p.since AND t.stream_position > p.position
                ORDER BY t.stream_position DESC LIMIT %(limit)s) AS e
            ORDER BY e.stream_position"""  # noqa: S608 - the columns are this module's own text
        parameters = {
            "users": [user for user, _, _ in places],
            "positions": [position for _, position, _ in places],
            "times": [since for _, _, since in places],
            "limit": _REPAIR_EVENTS,
        }
        found: dict[str, list[StoredAlert]] = {user: [] for user, _, _ in places}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(source.encode(), parameters)
            for row in await cursor.fetchall():
                found[row["user_id"]].append(stored_alert(row))
        return found

    async def save(self, writes: Sequence[ProfileWrite]) -> dict[str, int]:
        """Write profiles over the revisions that they were read at.

        Returns:
            The new revisions. People who are missing were written by somebody else since, or do not exist any more:
            read them again.
        """
        # Before the first await: the states go on changing meanwhile.
        rows = orjson.dumps([profile_row(write) for write in writes]).decode()
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                INSERT INTO ai_services.behavioral_profiles AS p (user_id, organization_id, baseline_behavior,
                risk_score, last_analysis,
                    evidence_version, last_threat_score, last_anomaly, session_count, average_session_seconds, revision)
                SELECT u.user_id, u.organization_id, r.baseline, r.risk, r.analysed, r.evidence_version, r.last_score,
                r.anomaly,
                    r.sessions, r.seconds, r.revision + 1
                FROM json_to_recordset(%(rows)s::json) AS r(user_id uuid, organization_id uuid, baseline jsonb, risk
                numeric,
                    analysed timestamptz, evidence_version int, last_score numeric, anomaly timestamptz, sessions int,
                    seconds real, revision bigint)
                JOIN behaviorguard.users u ON u.user_id = r.user_id AND u.organization_id = r.organization_id
                ORDER BY u.user_id
                ON CONFLICT (user_id) DO UPDATE SET baseline_behavior = excluded.baseline_behavior, risk_score =
                excluded.risk_score,
                    last_analysis = excluded.last_analysis, evidence_version = excluded.evidence_version,
                    last_threat_score = excluded.last_threat_score, last_anomaly = excluded.last_anomaly,
                    session_count = excluded.session_count, average_session_seconds = excluded.average_session_seconds,
                    revision = excluded.revision, updated_at = now()
                WHERE p.revision = excluded.revision - 1
                RETURNING user_id::text, revision
                """,
                {"rows": rows},
            )
            return {row["user_id"]: int(row["revision"]) for row in await cursor.fetchall()}

    async def erase(self, user_id: str, empty: PersonState) -> int:
        """Erase a person's results and replace their profile by `empty`, in one transaction; returns how many results
        there were.
        """
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute("DELETE FROM ai_services.threat_events WHERE user_id = %s", (user_id,))
            erased = cursor.rowcount
            await connection.execute(
                """
                INSERT INTO ai_services.behavioral_profiles AS p (user_id, organization_id, baseline_behavior)
                SELECT user_id, organization_id, %(baseline)s::jsonb FROM behaviorguard.users WHERE user_id = %(user)s
                ON CONFLICT (user_id) DO UPDATE SET baseline_behavior = excluded.baseline_behavior, risk_score = 0.5,
                    last_analysis = NULL, last_threat_score = NULL, last_anomaly = NULL, baseline_vectors = NULL,
                    session_count = 0, average_session_seconds = 0, pattern_fingerprint = NULL,
                    revision = p.revision + 1, updated_at = now()
                """,
                {"user": user_id, "baseline": orjson.dumps(empty.to_json()).decode()},
            )
            await self._notify(connection, f"erased {self._instance} {user_id}")
        return erased

    async def create_trial(self, user_id: str, organization_id: str, expires_at: datetime, at_most: int) -> bool:
        """Create a throwaway person; False when `at_most` live already."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                INSERT INTO behaviorguard.users (user_id, email, organization_id, trial_expires_at)
                SELECT %(user)s::uuid, %(email)s, %(organization)s::uuid, %(expires)s
                WHERE (SELECT count(*) FROM behaviorguard.users WHERE trial_expires_at IS NOT NULL) < %(most)s
                """,
                {
                    "user": user_id,
                    "email": f"{user_id}@trial.invalid",
                    "organization": organization_id,
                    "expires": expires_at,
                    "most": at_most,
                },
            )
            return cursor.rowcount == 1

    async def end_trials(self, now: datetime, limit: int) -> list[str]:
        """Erase throwaway people whose time is over, with everything about them; returns their ids."""
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                """
                DELETE FROM behaviorguard.users WHERE user_id IN (
                    SELECT user_id FROM behaviorguard.users WHERE trial_expires_at <= %s ORDER BY trial_expires_at
                    LIMIT %s)
                AND trial_expires_at <= %s RETURNING user_id::text
                """,
                (now, limit, now),
            )
            ended = [str(row["user_id"]) for row in await cursor.fetchall()]
            for user_id in ended:
                await self._notify(connection, f"erased {self._instance} {user_id}")
        return ended

    async def high_risk(self, since: datetime, limit: int) -> list[StoredAlert]:
        """The highest results at or above "threat" that were stored since, highest first."""
        rows = await self._events(
            "e.threat_level >= 'threat' AND e.created_at >= %(since)s",
            "e.threat_score DESC",
            {"since": since, "limit": limit},
        )
        return [stored_alert(row) for row in rows]

    async def latest(self, since: datetime, limit: int) -> list[StoredAlert]:
        """The last results above "normal" that were stored since, newest first."""
        rows = await self._events(
            "e.threat_level >= 'suspicious' AND e.created_at >= %(since)s",
            "e.created_at DESC",
            {"since": since, "limit": limit},
        )
        return [stored_alert(row) for row in rows]

    async def _events(self, where: str, order: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of results. `where` and `order` are texts of this module; every value is a parameter."""
        query = f"SELECT {_COLUMNS} FROM ai_services.threat_events e WHERE {where} ORDER BY {order} LIMIT %(limit)s"  # noqa: S608
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall()

    @staticmethod
    async def _notify(connection: AsyncConnection[dict[str, Any]], payload: str) -> None:
        await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))


async def _configure(connection: AsyncConnection[dict[str, Any]]) -> None:
    set_json_loads(orjson.loads, connection)
