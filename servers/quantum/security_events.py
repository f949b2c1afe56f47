"""Security events: what somebody should look at. Every statement names the organisation.

Events of an organisation have a place in its stream; the lock on the stream's end makes them visible in that order,
whichever process raises them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from psycopg.rows import tuple_row

from servers.quantum.audit_chain import plain_data, plain_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import AsyncConnection

    from servers.quantum.database import Pool

SEVERITIES: Final = ("low", "medium", "high", "critical")
"""Labels from least to most urgent."""
KINDS: Final[Mapping[str, str]] = {
    "key_generation_failures": "high",
    "unusual_key_access": "medium",
    "excessive_key_requests": "medium",
    "replica_repaired": "high",
    "entropy_failure": "critical",
    "audit_chain_broken": "critical",
    "hsm_token_replay": "high",
    "organization_violation": "high",
}
"""Every kind of event of the contract, and how urgent it is."""

_COLUMNS: Final = """
    position, event_id::text, event_type::text, severity::text, coalesce(key_id::text, ''),
    coalesce(user_id::text, ''), organization_id::text, event_timestamp, event_data::text,
    coalesce(response_action, ''), resolved_at, coalesce(correlation_id::text, '')
"""
_RAISE: Final = """
WITH place AS (
    INSERT INTO quantum_security.event_heads AS h (organization_id, position) VALUES (%(organization)s, 1)
    ON CONFLICT (organization_id) DO UPDATE SET position = h.position + 1 RETURNING position)
INSERT INTO quantum_security.security_events (event_type, severity, key_id, user_id, organization_id, event_timestamp,
    event_data, correlation_id, window_key, position)
SELECT %(kind)s::public.security_event_type_enum, %(severity)s::public.severity_level_enum, %(key)s::uuid,
    %(user)s::uuid, %(organization)s::uuid, %(at)s, %(data)s::jsonb, %(correlation)s::uuid, %(window)s,
    place.position FROM place
ON CONFLICT (organization_id, event_type, window_key) DO NOTHING
"""
_LIST: Final = f"""
SELECT {_COLUMNS} FROM quantum_security.security_events
WHERE organization_id = %(organization)s AND position < %(before)s AND severity::text = ANY(%(severities)s)
    AND (%(kind)s::text IS NULL OR event_type::text = %(kind)s) AND NOT (%(open)s AND resolved_at IS NOT NULL)
ORDER BY position DESC LIMIT %(limit)s
"""  # noqa: S608 -- our own text
_AFTER: Final = f"""
SELECT {_COLUMNS} FROM quantum_security.security_events
WHERE organization_id = %(organization)s AND position > %(after)s AND position <= %(upto)s
    AND severity::text = ANY(%(severities)s)
ORDER BY position LIMIT %(limit)s
"""  # noqa: S608 -- our own text
_RESOLVE: Final = f"""
UPDATE quantum_security.security_events SET response_action = %(action)s, resolved_at = %(at)s
WHERE organization_id = %(organization)s AND event_id = %(event)s RETURNING {_COLUMNS}
"""  # noqa: S608 -- our own text
_HEADS: Final = """
SELECT organization_id::text, position FROM quantum_security.event_heads WHERE organization_id = ANY(%s::uuid[])
"""


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """An event as it is stored."""

    position: int
    """Place in the organisation's stream."""
    event_id: str
    kind: str
    severity: str
    key_id: str
    user_id: str
    organization_id: str
    event_timestamp: datetime
    event_data: Mapping[str, Any]
    response_action: str
    resolved_at: datetime | None
    correlation_id: str


@dataclass(frozen=True, slots=True)
class Finding:
    """An event to be raised."""

    kind: str
    """One of `KINDS`."""
    organization_id: str
    correlation_id: str
    """UUID of the call that gave rise to it."""
    at: datetime
    data: Mapping[str, object] = field(default_factory=dict)
    """Particulars without secrets: counts, thresholds, times."""
    key_id: str = ""
    user_id: str = ""
    window: str = ""
    """The kind is raised once for each of these in the organisation; empty: every time."""


async def raise_within(connection: AsyncConnection[Any], finding: Finding) -> bool:
    """Raise an event in the transaction of `connection`; False when its window has one already.

    Raises:
        KeyError: the contract knows no such kind.
        psycopg.Error: the database is away.
    """
    values = {
        "kind": finding.kind,
        "severity": KINDS[finding.kind],
        "key": finding.key_id or None,
        "user": finding.user_id or None,
        "organization": finding.organization_id,
        "at": finding.at,
        "data": orjson.dumps(plain_data(finding.data)).decode(),
        "correlation": finding.correlation_id or None,
        "window": finding.window or None,
    }
    cursor = await connection.execute(_RAISE, values)
    return cursor.rowcount == 1


class SecurityEvents:
    """Reads and writes of security events. Every method may raise `psycopg.Error` or `psycopg_pool.PoolTimeout`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def raise_event(self, finding: Finding) -> bool:
        """Raise an event, durable on return; False when its window has one already."""
        async with self._pool.connection() as connection, connection.transaction():
            return await raise_within(connection, finding)

    async def newest(
        self, organization_id: str, *, before: int, kind: str = "", minimum: str = "low", open_only: bool, limit: int
    ) -> list[SecurityEvent]:
        """Events before a place, newest first."""
        wanted = {
            "organization": organization_id,
            "before": before,
            "kind": kind or None,
            "severities": list(at_least(minimum)),
            "open": open_only,
            "limit": limit,
        }
        return await self._read(_LIST, wanted)

    async def after(self, organization_id: str, after: int, upto: int, minimum: str, limit: int) -> list[SecurityEvent]:
        """Events after one place up to another, oldest first."""
        wanted = {
            "organization": organization_id,
            "after": after,
            "upto": upto,
            "severities": list(at_least(minimum)),
            "limit": limit,
        }
        return await self._read(_AFTER, wanted)

    async def resolve(self, organization_id: str, event_id: str, action: str) -> SecurityEvent | None:
        """Close an event, over an earlier answer; None when the organisation has no such event."""
        wanted = {
            "organization": organization_id,
            "event": event_id,
            "action": plain_text(action, 2000),
            "at": datetime.now(UTC),
        }
        found = await self._read(_RESOLVE, wanted)
        return found[0] if found else None

    async def heads(self, organizations: Sequence[str]) -> dict[str, int]:
        """Where the organisations' streams end; those without events are missing."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_HEADS, (list(organizations),))
            return {row[0]: int(row[1]) for row in await cursor.fetchall()}

    async def _read(self, query: str, values: Mapping[str, Any]) -> list[SecurityEvent]:
        async with self._pool.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(query.encode(), values)
            return [_event(row) for row in await cursor.fetchall()]


def _event(row: Sequence[Any]) -> SecurityEvent:
    values = list(row)
    values[8] = orjson.loads(row[8])
    return SecurityEvent(*values)


def at_least(minimum: str) -> tuple[str, ...]:
    """The severities from `minimum` up."""
    return SEVERITIES[SEVERITIES.index(minimum) :]
