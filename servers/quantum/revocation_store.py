"""Ended sessions in PostgreSQL: `quantum_security.token_revocations`. Every row and every query names the organisation,
except where a process reads what it must know to check any token.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncConnection

    from servers.quantum.database import Pool

CHANNEL: Final = "bg_token_revocations"
"""Notifications: `<organisation> <session> <end, Unix seconds>` with every revocation, in its transaction."""


@dataclass(frozen=True, slots=True)
class RevokedSession:
    """A session whose tokens were ended."""

    organization_id: str
    session_id: str
    revoked_at: datetime
    expires_at: datetime
    """When no token of it can hold any more."""

    @property
    def revoked_at_us(self) -> int:
        """Microseconds since the Unix epoch."""
        return (self.revoked_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class RevocationStore:
    """Reads of the revocations, and forgetting. All may raise `psycopg.Error` or `psycopg_pool.PoolTimeout`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ended(self, organization_id: str, session_id: str) -> bool:
        """Whether the session's tokens were ended, as the database knows at this moment."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                SELECT 1 FROM quantum_security.token_revocations
                WHERE organization_id = %s AND session_id = %s AND expires_at > clock_timestamp()
                """,
                (organization_id, session_id),
            )
            return await cursor.fetchone() is not None

    async def page(
        self, organization_id: str, since: datetime | None, before: tuple[datetime, str] | None, limit: int
    ) -> list[RevokedSession]:
        """A page of an organisation's revocations that still matter, newest first.

        Args:
            organization_id: UUID of the organisation.
            since: only those at or after this time; None: all.
            before: time and session of the last one of the page before; None for the first page.
            limit: at most so many.
        """
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                SELECT organization_id::text, session_id::text, revoked_at, expires_at
                FROM quantum_security.token_revocations
                WHERE organization_id = %(organization)s AND expires_at > clock_timestamp()
                    AND (%(since)s::timestamptz IS NULL OR revoked_at >= %(since)s)
                    AND (%(at)s::timestamptz IS NULL OR (revoked_at, session_id) < (%(at)s, %(session)s::uuid))
                ORDER BY revoked_at DESC, session_id DESC LIMIT %(limit)s
                """,
                {
                    "organization": organization_id,
                    "since": since,
                    "at": before[0] if before else None,
                    "session": before[1] if before else None,
                    "limit": limit,
                },
            )
            return [RevokedSession(**row) for row in await cursor.fetchall()]

    async def forget(self, limit: int) -> int:
        """Delete rows that no token can need any more, at most `limit`; returns how many there were."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                DELETE FROM quantum_security.token_revocations WHERE (organization_id, session_id) IN (
                    SELECT organization_id, session_id FROM quantum_security.token_revocations
                    WHERE expires_at <= clock_timestamp() ORDER BY expires_at LIMIT %s)
                    AND expires_at <= clock_timestamp()
                """,
                (limit,),
            )
            return cursor.rowcount


async def revoke(
    connection: AsyncConnection[tuple[Any, ...]], organization_id: str, session_id: str, holds: timedelta
) -> RevokedSession:
    """End a session's tokens and tell every process, within the caller's transaction.

    Args:
        connection: in the transaction; gives rows as tuples.
        organization_id: UUID of the session's organisation.
        session_id: UUID of the session.
        holds: how long any token of the session may still hold.

    Returns:
        The revocation; the earlier one where it stands already.
    """
    cursor = await connection.execute(
        """
        INSERT INTO quantum_security.token_revocations AS t (organization_id, session_id, revoked_at, expires_at)
        SELECT %(organization)s, %(session)s, c.now, c.now + %(holds)s FROM (SELECT clock_timestamp() AS now) AS c
        ON CONFLICT (organization_id, session_id) DO UPDATE SET
            revoked_at = CASE WHEN t.expires_at > excluded.revoked_at THEN t.revoked_at ELSE excluded.revoked_at END,
            expires_at = CASE WHEN t.expires_at > excluded.revoked_at THEN t.expires_at ELSE excluded.expires_at END
        RETURNING organization_id::text, session_id::text, revoked_at, expires_at
        """,
        {"organization": organization_id, "session": session_id, "holds": holds},
    )
    found = RevokedSession(*await anext(cursor))
    notice = f"{found.organization_id} {found.session_id} {found.expires_at.timestamp():.3f}"
    await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, notice))
    return found


async def catch_up(
    connection: AsyncConnection[Any], after: tuple[str, str] | None, limit: int
) -> Sequence[tuple[str, str, float]]:
    """The revocations that matter, of all organisations, in pages: organisation, session, end (Unix seconds).

    Args:
        connection: gives rows as tuples.
        after: organisation and session of the last row of the page before; None for the first page.
        limit: at most so many.
    """
    cursor = await connection.execute(
        """
        SELECT organization_id::text, session_id::text, extract(epoch FROM expires_at)::float8
        FROM quantum_security.token_revocations
        WHERE expires_at > clock_timestamp() AND (organization_id, session_id) > (%s::uuid, %s::uuid)
        ORDER BY organization_id, session_id LIMIT %s
        """,
        (*(after or (_LEAST, _LEAST)), limit),
    )
    return await cursor.fetchall()


_LEAST: Final = "00000000-0000-0000-0000-000000000000"
