"""Schema migrations: numbered SQL files, applied in order, each once, in its own transaction, and never edited."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import psycopg

from infra.stack.errors import StackError

FOLDER = Path(__file__).parent / "migrations"
DATABASES = ("main", "quantum")
LOCK_KEY = 0x6267_6D69_6772  # "bgmigr": two starters of one database migrate one after the other
LOCK_TIMEOUT = "30s"
STATEMENT_TIMEOUT = "300s"


@dataclass(frozen=True)
class Migration:
    """One numbered file: `0001_name.sql`."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations(folder: Path) -> list[Migration]:
    """Read a folder's migrations in order. Raises StackError for a misnamed file, a gap or a number used twice."""
    migrations = []
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", path.name)
        if match is None:
            raise StackError(f"{path} is not named NNNN_words.sql", "rename it")
        migrations.append(Migration(int(match.group(1)), match.group(2), path.read_text(encoding="utf-8")))
    numbers = [migration.number for migration in migrations]
    if numbers != list(range(1, len(numbers) + 1)):
        raise StackError(
            f"{folder} is numbered {numbers}, wanted 1 to {len(numbers)} without a gap", "renumber the newest file"
        )
    return migrations


def migrate(dsn: str, database: str, folder: Path | None = None) -> list[str]:
    """Bring a database up to date and return the names of what was applied, oldest first (empty when it already was).

    Args:
        dsn: the address, as an owner of the schema.
        database: "main" or "quantum".
        folder: where the files are; the package's own by default.

    Raises:
        StackError: an applied file was changed or is gone, or the database is newer than this code; nothing is
            applied then.
        psycopg.Error: the database is away or refuses a statement; the migration that failed is rolled back, those
            before it stay.
    """
    migrations = load_migrations(folder or FOLDER / database)
    applied = []
    with psycopg.connect(
        dsn, autocommit=True, connect_timeout=10, application_name="behaviorguard-migrate"
    ) as connection:
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))  # released when the connection closes
        connection.execute(
            """CREATE TABLE IF NOT EXISTS public.schema_migrations (
                   number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL,
                   applied_at TIMESTAMPTZ NOT NULL DEFAULT CURRENT_TIMESTAMP)"""
        )
        known = {
            number: (name, checksum)
            for number, name, checksum in connection.execute(
                "SELECT number, name, checksum FROM public.schema_migrations"
            )
        }
        _check_history(migrations, known, database)
        for migration in migrations[len(known) :]:
            with connection.transaction():
                connection.execute(migration.sql.encode())  # a file of this package, not input
                connection.execute(
                    "INSERT INTO public.schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                    (migration.number, migration.name, migration.checksum),
                )
            applied.append(f"{migration.number:04}_{migration.name}")
    return applied


def _check_history(migrations: list[Migration], known: dict[int, tuple[str, str]], database: str) -> None:
    by_number = {migration.number: migration for migration in migrations}
    for number, (name, checksum) in sorted(known.items()):
        migration = by_number.get(number)
        if migration is None:
            raise StackError(
                f"the {database} database has migration {number:04}_{name}, which this version does not know",
                "run the version that wrote it, or a newer one",
            )
        if migration.checksum != checksum:
            raise StackError(
                f"migration {number:04}_{name} of the {database} database was changed after it was applied",
                "restore the file from version control and put the change into a new migration",
            )
