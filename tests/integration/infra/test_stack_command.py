"""`behaviorguard up`, `status`, `down` as a person runs them, with the stores alone."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

from infra.stack.addresses import addresses
from infra.stack.ports import LOOPBACK
from infra.stack.services import SERVICES, service_command, service_named
from tests.support.stack import Installation, installed

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHOUT = [word for service in SERVICES for word in ("--without", service.name)]


@pytest.fixture
def installation() -> Iterator[Installation]:
    with installed() as installation:
        yield installation


@pytest.mark.end_to_end
def test_up_down_up_keeps_the_data_and_down_leaves_no_process(installation: Installation) -> None:
    first = installation.call("up", *WITHOUT)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "messages and consumer offsets are lost when it stops" in first.stdout, (
        "the start says what the broker cannot promise"
    )
    status = installation.status()
    assert status["healthy"]
    assert set(status["parts"]) == {"pki", "postgres-main", "postgres-quantum", "redis-main", "redis-quantum", "kafka"}

    second = installation.call("up", *WITHOUT)
    assert second.returncode == 0
    assert "already runs" in second.stdout

    where = addresses(installation.settings())
    person = """INSERT INTO behaviorguard.users (email, organization_id)
                VALUES ('a@example.org', '00000000-0000-4000-8000-000000000001')"""
    with psycopg.connect(where.postgres["bg_identity"]) as connection:
        connection.execute(person)
    with redis.Redis.from_url(where.redis) as client:
        client.set("kept", "yes")

    down = installation.call("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert installation.processes() == []
    assert installation.call("status").returncode == 3

    assert installation.call("up", *WITHOUT).returncode == 0
    with psycopg.connect(where.postgres["bg_threat"]) as connection:
        assert connection.execute("SELECT count(user_id) FROM behaviorguard.users").fetchone() == (1,)
    with redis.Redis.from_url(where.redis, decode_responses=True) as client:
        assert client.get("kept") == "yes"


@pytest.mark.end_to_end
def test_down_after_a_killed_supervisor_leaves_no_process(installation: Installation) -> None:
    assert installation.call("up", *WITHOUT).returncode == 0
    os.kill(installation.status()["pid"], signal.SIGKILL)
    status = installation.status()
    assert not status["running"]
    assert "postgres-main" in status["left_behind"]
    down = installation.call("down")
    assert "an earlier supervisor had left" in down.stdout
    assert installation.processes() == []


@pytest.mark.end_to_end
def test_a_taken_port_stops_the_start_with_what_to_do(installation: Installation) -> None:
    port = int(installation.environment["BEHAVIORGUARD_QUANTUM_REDIS_PORT"])
    with socket.create_server((LOOPBACK, port)):
        result = installation.call("up", *WITHOUT)
    assert result.returncode == 1
    assert f"port {port} for redis-quantum is taken by" in result.stderr
    assert "BEHAVIORGUARD_QUANTUM_REDIS_PORT=" in result.stderr
    assert "Nothing is left running." in result.stderr
    assert installation.processes() == []


def test_down_and_status_where_nothing_runs(installation: Installation) -> None:
    assert "Nothing runs." in installation.call("down").stdout
    status = installation.call("status")
    assert status.returncode == 3
    assert "behaviorguard up" in status.stdout


def test_an_unknown_service_is_named_with_those_there_are(installation: Installation) -> None:
    result = installation.call("up", "--without", "ghost")
    assert result.returncode == 2
    assert "there are: hsm, quantum, threat, pipeline, gateway" in result.stderr


def test_serve_says_what_is_missing(installation: Installation) -> None:
    result = installation.call("serve", "threat")
    assert result.returncode == 1
    assert "behaviorguard up --without threat" in result.stderr


def test_a_service_gets_its_own_rights_and_nothing_of_the_administrators(installation: Installation) -> None:
    settings = installation.settings()
    threat = service_command(service_named("threat"), settings, addresses(settings)).environment
    gateway = service_command(service_named("gateway"), settings, addresses(settings)).environment
    assert "//bg_threat:" in threat["BEHAVIORGUARD_POSTGRES_DSN"]
    assert "BEHAVIORGUARD_POSTGRES_DSN" not in gateway
    assert threat["BEHAVIORGUARD_TLS_CERT"].endswith("/threat.crt")
    assert gateway["BEHAVIORGUARD_PORT"] == installation.environment["BEHAVIORGUARD_GATEWAY_PORT"]


def test_external_addresses_are_handed_on(installation: Installation) -> None:
    installation.environment |= {
        "BEHAVIORGUARD_POSTGRES_DSN": "postgresql://app@db.example/behaviorguard",
        "BEHAVIORGUARD_KAFKA_BOOTSTRAP": "broker.example:9092",
    }
    settings = installation.settings()
    threat = service_command(service_named("threat"), settings, addresses(settings)).environment
    assert threat["BEHAVIORGUARD_POSTGRES_DSN"] == "postgresql://app@db.example/behaviorguard"
    assert threat["BEHAVIORGUARD_KAFKA_BOOTSTRAP"] == "broker.example:9092"


def test_each_service_gets_the_passwords_of_its_own_stores_alone(installation: Installation) -> None:
    settings = installation.settings()
    where = addresses(settings)
    passwords = {"main": where.redis, "quantum": where.quantum_redis}
    for service in SERVICES:
        environment = service_command(service, settings, where).environment
        own = {passwords[service.stores]} if f"redis-{service.stores}" in service.needs else set()
        if service.role is not None:
            own.add((where.postgres if service.stores == "main" else where.quantum)[service.role])
        secrets = {*passwords.values(), *where.postgres.values(), *where.quantum.values()}
        assert {value for value in environment.values() if value in secrets} == own, service.name
    quantum = service_command(service_named("quantum"), settings, where).environment
    assert f":{settings.quantum_redis_port}/" in quantum["BEHAVIORGUARD_REDIS_URL"]
    assert "BEHAVIORGUARD_AUDIT_TARGET" not in quantum
