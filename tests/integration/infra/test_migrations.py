"""The schemas of the document: applied once, protected against later edits, with no more rights than needed."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from infra.postgres.migrate import FOLDER, load_migrations, migrate
from infra.stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import DatabaseServer

ORGANIZATION = "00000000-0000-4000-8000-000000000001"
STORE_EVENT = """INSERT INTO ai_services.threat_events (user_id, organization_id, threat_score, threat_level)
                 VALUES (%s, %s, 0.1, 'normal')"""


@pytest.fixture
def empty_dsn(database_server: DatabaseServer) -> Iterator[str]:
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(database_server.server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield database_server.dsn(name)
    database_server.drop(name)


def a_person(dsn: str, *, trial: bool = False) -> str:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            """INSERT INTO behaviorguard.users (email, organization_id, trial_expires_at)
               VALUES (%s, %s, %s) RETURNING user_id""",
            (f"{uuid.uuid4()}@example.org", ORGANIZATION, "2100-01-01T00:00:00Z" if trial else None),
        ).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("database", ["main", "quantum"])
def test_a_second_run_changes_nothing(empty_dsn: str, database: str) -> None:
    every = [f"{m.number:04}_{m.name}" for m in load_migrations(FOLDER / database)]
    assert migrate(empty_dsn, database) == every
    assert migrate(empty_dsn, database) == []


def test_starters_at_the_same_moment_apply_each_migration_once(empty_dsn: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: migrate(empty_dsn, "main"), range(4)))
    assert sorted(len(result) for result in results) == [0, 0, 0, len(load_migrations(FOLDER / "main"))]


def test_an_edited_migration_is_refused(empty_dsn: str, tmp_path: Path) -> None:
    first, second = tmp_path / "0001_one.sql", tmp_path / "0002_two.sql"
    first.write_text("CREATE TABLE one (a INT)")
    migrate(empty_dsn, "main", tmp_path)
    first.write_text("CREATE TABLE one (a INT, b INT)")
    second.write_text("CREATE TABLE two (a INT)")
    with pytest.raises(StackError, match="0001_one of the main database was changed after it was applied"):
        migrate(empty_dsn, "main", tmp_path)
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regclass('two')").fetchone() == (None,)


def test_a_database_from_a_newer_version_is_refused(empty_dsn: str, tmp_path: Path) -> None:
    first, second = tmp_path / "0001_one.sql", tmp_path / "0002_two.sql"
    first.write_text("SELECT 1")
    second.write_text("SELECT 1")
    migrate(empty_dsn, "main", tmp_path)
    second.unlink()
    with pytest.raises(StackError, match="0002_two, which this version does not know"):
        migrate(empty_dsn, "main", tmp_path)


def test_a_failing_migration_leaves_those_before_it_and_nothing_of_itself(empty_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "0001_good.sql").write_text("CREATE TABLE good (a INT)")
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE half (a INT); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_dsn, "main", tmp_path)
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regclass('good')::text, to_regclass('half')").fetchone() == ("good", None)


@pytest.mark.parametrize("names", [["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "0001_b.sql"], ["1_a.sql"]])
def test_misnumbered_files_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(StackError):
        load_migrations(tmp_path)


def test_the_documents_main_schema_is_there(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        tables = connection.execute(
            """SELECT table_schema || '.' || table_name FROM information_schema.tables
               WHERE table_schema IN ('behaviorguard', 'ai_services')"""
        ).fetchall()
        indexes = connection.execute("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'idx%'").fetchall()
        levels = connection.execute("SELECT enum_range(NULL::threat_level_enum)::text").fetchone()
    assert {
        "behaviorguard.users",
        "ai_services.biometric_templates",
        "ai_services.threat_events",
        "ai_services.behavioral_profiles",
    } <= {name for (name,) in tables}
    assert {
        "idx_biometric_templates_user_type",
        "idx_threat_events_user_score",
        "idx_threat_events_timestamp",
        "idx_behavioral_profiles_risk",
    } <= {name for (name,) in indexes}
    assert levels == ("{normal,suspicious,threat,critical}",)


def test_the_documents_quantum_schema_is_there(quantum_dsn: str) -> None:
    with psycopg.connect(quantum_dsn) as connection:
        tables = {
            f"{schema}.{name}"
            for schema, name in connection.execute(
                "SELECT schemaname, tablename FROM pg_tables WHERE schemaname LIKE 'quantum%'"
            )
        }
        indexes = {
            name for (name,) in connection.execute("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'idx%'")
        }
    assert tables >= {
        "quantum_keys.quantum_key_store",
        "quantum_audit.quantum_operations_log",
        "quantum_security.security_events",
    }
    assert {
        "idx_quantum_keys_org_type_status",
        "idx_quantum_keys_expires_at",
        "idx_quantum_audit_timestamp",
        "idx_quantum_audit_correlation",
        "idx_security_events_severity_timestamp",
    } <= indexes


def test_a_row_cannot_join_one_tenants_event_to_anothers_person(postgres_dsn: str) -> None:
    person = a_person(postgres_dsn)
    with psycopg.connect(postgres_dsn) as connection, pytest.raises(psycopg.errors.ForeignKeyViolation):
        connection.execute(
            STORE_EVENT,
            (person, str(uuid.uuid4())),
        )


def test_alerts_become_visible_in_the_order_of_their_positions(postgres_dsn: str) -> None:
    person = a_person(postgres_dsn)
    insert = STORE_EVENT + " RETURNING stream_position"
    with psycopg.connect(postgres_dsn) as slow, psycopg.connect(postgres_dsn) as fast:
        (first,) = slow.execute(insert, (person, ORGANIZATION)).fetchone() or (0,)
        fast.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            fast.execute(insert, (person, ORGANIZATION))
        fast.rollback()
        slow.commit()
        (second,) = fast.execute(insert, (person, ORGANIZATION)).fetchone() or (0,)
    assert second > first


def test_threat_sees_no_sign_in_secret(threat_dsn: str) -> None:
    for statement in (
        "SELECT password_hash FROM behaviorguard.users",
        "SELECT email FROM behaviorguard.users",
        "SELECT * FROM ai_services.biometric_templates",
        "UPDATE behaviorguard.users SET status = 'active'",
        "CREATE TABLE public.mine (a INT)",
        "CREATE ROLE somebody",
    ):
        with psycopg.connect(threat_dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


def test_threat_starts_and_ends_trials_but_touches_no_real_person(postgres_dsn: str, threat_dsn: str) -> None:
    real, trial = a_person(postgres_dsn), a_person(postgres_dsn, trial=True)
    insert = (
        "INSERT INTO behaviorguard.users (user_id, email, organization_id, trial_expires_at) VALUES (%s, %s, %s, %s)"
    )
    with psycopg.connect(threat_dsn) as connection:
        connection.execute(
            insert, (uuid.uuid4(), f"{uuid.uuid4()}@trial.invalid", ORGANIZATION, "2100-01-01T00:00:00Z")
        )
    with psycopg.connect(threat_dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(insert, (uuid.uuid4(), f"{uuid.uuid4()}@trial.invalid", ORGANIZATION, None))
    with psycopg.connect(threat_dsn) as connection:
        connection.execute(
            STORE_EVENT,
            (trial, ORGANIZATION),
        )
        assert (
            connection.execute("DELETE FROM behaviorguard.users WHERE user_id = ANY(%s)", ([real, trial],)).rowcount
            == 1
        )
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.execute(
            "SELECT count(*) FROM behaviorguard.users WHERE user_id = %s", (real,)
        ).fetchone() == (1,)
        assert connection.execute(
            "SELECT count(*) FROM ai_services.threat_events WHERE user_id = %s", (trial,)
        ).fetchone() == (0,)
