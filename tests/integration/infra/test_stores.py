"""The embedded stores and brokers: data survives, taken ports are named, root and locked folders are coped with."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.kafka.topics import THREAT_TOPICS, Topic, ensure_topics
from infra.settings import StackSettings
from infra.stack.account import Account, can_enter, reachable_copy, reachable_folder, unprivileged_account
from infra.stack.errors import StackError
from infra.stack.kafka import ApacheBroker, BrokerOptions, apache_obstacle, fetch_apache, libraries_folder
from infra.stack.ports import LOOPBACK, free_port, is_free, require_free
from infra.stack.postgres import PostgresOptions, PostgresServer
from infra.stack.secrets import password
from infra.stack.valkey import ValkeyOptions, ValkeyServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseServer

START_SECONDS = 60.0


def soon() -> float:
    return time.monotonic() + START_SECONDS


def test_postgres_keeps_its_data_over_a_restart(store_folder: Path) -> None:
    folder = store_folder / "restart"
    options = PostgresOptions("restart", folder, free_port(), store_folder / "secrets", store_folder / "restart.log")
    server = PostgresServer(options)
    try:
        server.start(soon())
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE TABLE kept (value INT)")
            connection.execute("INSERT INTO kept VALUES (42)")
        server.stop()
        again = PostgresServer(options)
        again.start(soon())
        try:
            with psycopg.connect(again.dsn()) as connection:
                assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
        finally:
            again.stop()
    finally:
        server.stop()
    assert is_free(options.port)


def test_postgres_wants_the_password_and_keeps_it_private(database_server: DatabaseServer) -> None:
    dsn = database_server.server.dsn()
    secret = database_server.secrets / "postgres-test-owner"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(dsn.replace(secret.read_text(), "guess"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL and must choose other folders")
def test_postgres_runs_for_root_under_a_folder_that_only_root_may_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    options = PostgresOptions("locked", tmp_path / "data", free_port(), tmp_path / "secrets", tmp_path / "locked.log")
    server = PostgresServer(options)
    try:
        server.start(soon())
        assert server.folder != options.folder
        assert server.folder.stat().st_uid != 0
        assert PostgresServer(options).folder == server.folder, "the same folder must find its data again"
    finally:
        server.stop()
        shutil.rmtree(server.folder)


def test_programs_are_copied_to_where_the_account_can_reach_them(tmp_path: Path) -> None:
    account = Account("somebody", os.geteuid() + 12345, os.getegid() + 12345)
    parts = [tmp_path / "locked" / "programs", tmp_path / "locked" / "libraries"]
    for part in parts:
        part.mkdir(parents=True)
        (part / "file").write_text(part.name)
    (tmp_path / "locked").chmod(0o700)
    assert not can_enter(account, parts[0])
    system = tmp_path / "system"
    copies = reachable_copy(account, parts, "1.0", system)
    assert [(copy / "file").read_text() for copy in copies] == ["programs", "libraries"]
    assert copies == reachable_copy(account, parts, "1.0", system)
    assert reachable_folder(account, parts[0], system).parent == system
    assert reachable_copy(None, parts, "1.0", system) == parts


def test_an_ordinary_user_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)
    assert unprivileged_account() is None


def test_a_user_id_without_an_account_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 2_000_123_456)
    with pytest.raises(StackError, match="user id 2000123456 has no account"):
        unprivileged_account()


def test_data_of_another_postgresql_version_is_refused(store_folder: Path) -> None:
    folder = store_folder / "old"
    options = PostgresOptions(
        "old", folder, free_port(), store_folder / "secrets", store_folder / "old.log", durable=False
    )
    server = PostgresServer(options)
    server.folder.mkdir(mode=0o700)
    (server.folder / "PG_VERSION").write_text("9\n")
    with pytest.raises(StackError, match="was written by PostgreSQL 9"):
        server.start(soon())


def test_valkey_keeps_its_data_over_a_restart(tmp_path: Path) -> None:
    options = ValkeyOptions("kept", tmp_path / "redis", free_port(), tmp_path / "secrets", tmp_path / "redis.log")
    server = ValkeyServer(options)
    server.start(soon())
    with redis.Redis.from_url(server.url()) as client:
        client.set("kept", "42")
    server.stop()
    server.start(soon())
    try:
        with redis.Redis.from_url(server.url(), decode_responses=True) as client:
            assert client.get("kept") == "42"
        with (
            redis.Redis(port=options.port, password="guess", retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
    finally:
        server.stop()


def test_a_taken_port_names_its_holder_and_the_setting() -> None:
    with socket.create_server((LOOPBACK, 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(
            StackError, match=rf"port {port} for postgres-main is taken by .*process {os.getpid()}"
        ) as raised:
            require_free(port, "postgres-main", "BEHAVIORGUARD_POSTGRES_PORT")
    assert f"BEHAVIORGUARD_POSTGRES_PORT={port + 10000}" in raised.value.action or port + 10000 > 65535


def test_topics_are_as_the_document_says_and_made_once(kafka_bootstrap: str) -> None:
    assert ensure_topics(kafka_bootstrap) == []
    topics = AdminClient({"bootstrap.servers": kafka_bootstrap}).list_topics(timeout=10).topics
    assert {
        name: len(topics[name].partitions) for name in ("threat-events", "threat-alerts", "threat-dead-letters")
    } == {
        "threat-events": 8,
        "threat-alerts": 8,
        "threat-dead-letters": 1,
    }


def test_a_topic_that_differs_is_reported_and_left_alone(kafka_bootstrap: str) -> None:
    ensure_topics(kafka_bootstrap, [Topic("differs", partitions=2, retention_ms=1000)])
    differences = ensure_topics(kafka_bootstrap, [Topic("differs", partitions=3, retention_ms=2000)])
    assert differences == [
        "differs has 2 partitions, wanted 3",
        "differs has retention.ms=1000, wanted 2000",
    ]


def test_apache_kafka_keeps_messages_and_topics_over_a_restart(tmp_path: Path) -> None:
    cache = StackSettings().cache
    obstacle = apache_obstacle(cache)
    if obstacle is not None:
        pytest.skip(f"Apache Kafka cannot run here: {obstacle}")
    try:
        fetch_apache(cache)
    except StackError as error:
        pytest.skip(error.problem)
    options = BrokerOptions(tmp_path / "kafka", free_port(), free_port(), cache, tmp_path / "kafka.log")
    broker = ApacheBroker(options)
    broker.start(soon())
    try:
        assert ensure_topics(broker.bootstrap()) == []
        producer = Producer({"bootstrap.servers": broker.bootstrap(), "acks": "all"})
        producer.produce("threat-events", b"kept", b"key")
        assert producer.flush(20) == 0
        broker.stop()
        broker.start(soon())
        assert ensure_topics(broker.bootstrap()) == [], "partitions, retention, compression and sizes are still there"
        consumer = Consumer(
            {"bootstrap.servers": broker.bootstrap(), "group.id": "test", "auto.offset.reset": "earliest"}
        )
        consumer.subscribe([THREAT_TOPICS[0].name])
        message = consumer.poll(30)
        consumer.close()
        assert message is not None
        assert message.value() == b"kept"
    finally:
        broker.stop()


def test_a_failed_fetch_says_what_to_do_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "mvn"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '[ERROR] no route to host'\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(StackError, match="no route to host") as raised:
        fetch_apache(tmp_path / "cache")
    assert "BEHAVIORGUARD_BROKER=embedded" in raised.value.action
    assert list((tmp_path / "cache").iterdir()) == []
    assert not libraries_folder(tmp_path / "cache").exists()


def test_without_java_the_obstacle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no Java" in str(apache_obstacle(tmp_path))


def test_a_password_is_made_once(tmp_path: Path) -> None:
    first = password(tmp_path / "secrets", "one")
    assert password(tmp_path / "secrets", "one") == first
    assert password(tmp_path / "secrets", "two") != first
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses an account")
def test_whoever_owns_the_data_stays_its_owner(store_folder: Path) -> None:
    folder = store_folder / "owned"
    folder.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    account = unprivileged_account(folder)
    assert account is not None
    assert account.name == "nobody"
