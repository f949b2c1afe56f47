"""One database role a service, with no more rights than it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from infra.postgres.migrate import LOCK_KEY, LOCK_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PRIVILEGES = Path(__file__).parent / "privileges"
ROLES: Mapping[str, tuple[str, ...]] = {
    "main": ("bg_threat", "bg_identity", "bg_mobile", "bg_monitoring"),
    "quantum": ("bg_quantum", "bg_monitoring"),
}
"""The roles of each database; `privileges/` says what each may do."""


def ensure_roles(dsn: str, database: str, password_of: Callable[[str], str]) -> None:
    """Create the database's roles, set their passwords and their rights; the result is the same each time.

    Args:
        dsn: the address, as an administrator.
        database: "main" or "quantum".
        password_of: gives the password for a role's name.

    Raises:
        psycopg.Error: the database is away or the caller is no administrator; nothing is changed then.
    """
    with psycopg.connect(dsn, connect_timeout=10, application_name="behaviorguard-roles") as connection:
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        # Two starters of one database set its roles one after the other.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        known = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for role in ROLES[database]:
            verb = sql.SQL("ALTER" if role in known else "CREATE")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD {}").format(
                    verb, sql.Identifier(role), sql.Literal(password_of(role))
                )
            )
        connection.execute((PRIVILEGES / f"{database}.sql").read_bytes())  # a file of this package, not input
