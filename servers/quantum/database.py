"""The quantum database's connections, as every store of the service uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

if TYPE_CHECKING:
    from collections.abc import Mapping

Connection = AsyncConnection[dict[str, Any]]
Pool = AsyncConnectionPool[Connection]

CONNECT_SECONDS: Final = 5
_POOL_WAIT_SECONDS: Final = 2.0
_RECONNECT_SECONDS: Final = 2.0
_STATEMENT_MS: Final = 10_000
_OPTIONS: Final = f"-c timezone=UTC -c statement_timeout={_STATEMENT_MS}"


def make_pool(dsn: str, *, connections: int) -> Pool:
    """A pool of connections with rows as dictionaries, each statement a transaction of its own unless one is begun.

    Open and close it. Whoever takes a connection may get `psycopg_pool.PoolTimeout` after 2 s.
    """
    return AsyncConnectionPool(
        dsn,
        min_size=2,
        max_size=connections,
        timeout=_POOL_WAIT_SECONDS,
        # The pool's own attempts back off to minutes; given up early, the next call that needs a connection tries.
        reconnect_timeout=_RECONNECT_SECONDS,
        open=False,
        name="quantum",
        kwargs={
            "row_factory": dict_row,
            "autocommit": True,
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "behaviorguard-quantum",
            "options": _OPTIONS,
        },
    )


async def probe(pool: Pool) -> Mapping[str, str | float]:
    """Ask the database something cheap; returns the pool's sizes."""
    async with pool.connection(timeout=1.5) as connection:
        await connection.execute("SELECT 1")
    stats = pool.get_stats()
    size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    return {"active": float(size - idle), "idle": float(idle), "total": float(size)}
