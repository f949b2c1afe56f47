"""What is remembered of keys: the document's Redis structures, which change no answer, and the ring of each process."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import orjson
import psycopg
import redis
from behaviorguard.quantum.v1 import key_pb2
from behaviorguard.quantum.v1 import key_service_pb2 as pb
from behaviorguard.quantum.v1 import template_service_pb2 as templates_pb

from infra.stack.ports import free_port
from servers.quantum import key_cache
from tests.support.hsm import running_hsm
from tests.support.mesh import reason_of, refused
from tests.support.quantum import Admin, person, running_quantum
from tests.support.threat import eventually

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores, RunningQuantum

USER = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a42"


def view(stores: QuantumStores) -> Any:
    return redis.Redis.from_url(stores.redis, decode_responses=True)


async def close(quantum: RunningQuantum, admin: Admin, **changes: str) -> Any:
    request = templates_pb.EncryptTemplateRequest(user_id=USER, biometric_template=b"face", **changes)
    return await quantum.templates("gateway").EncryptTemplate(
        request, metadata=person(admin.organization, "self", USER)
    )


async def test_the_documents_structures_are_there(stores: QuantumStores) -> None:
    with view(stores) as cache:
        cache.flushdb()
        async with running_quantum(stores) as quantum:
            admin = Admin(quantum)
            master = await admin.master()
            made = await admin.service(algorithm="Kyber768")
            for _ in range(3):
                await close(quantum, admin)
            name = f"quantum:key:{made.key_id}"
            kept = await eventually(lambda: cache.hgetall(name))
            assert kept == {
                "keyId": made.key_id,
                "publicKey": base64.b64encode(made.public_key).decode(),
                "algorithm": "ML-KEM-768",
                "securityLevel": "NIST-L3",
                "expiresAt": str(made.expires_at.ToMilliseconds()),
                "organizationId": admin.organization,
                "keyType": "service",
            }
            assert 3590 <= cache.ttl(name) <= 3600
            await eventually(lambda: int(cache.get("quantum:ops:kem:count") or 0) >= 4)
            await eventually(lambda: int(cache.get("quantum:ops:sig:count") or 0) >= 1)
            assert 0 < cache.ttl("quantum:ops:kem:count") <= 300
            entries = [orjson.loads(entry) for entry in cache.lrange("quantum:ops:latency", 0, -1)]
            assert {entry["operation"] for entry in entries} >= {"keygen", "encrypt"}
            assert all(set(entry) == {"operation", "latency_ms"} and entry["latency_ms"] >= 0 for entry in entries)
            stats = await eventually(lambda: cache.hgetall("hsm:stats"))
            assert set(stats) == {"active_connections", "total_operations", "error_rate"}
            (connection,) = cache.keys("hsm:connection:*")
            assert cache.get(connection) == "active"
            assert 1790 <= cache.ttl(connection) <= 1800
            await admin.RevokeKey(pb.RevokeKeyRequest(key_id=master.key_id, reason="test"))
            await eventually(lambda: not cache.exists(name))


async def test_the_list_of_latencies_is_bounded(stores: QuantumStores) -> None:
    with view(stores) as cache:
        cache.flushdb()
        cache.lpush(key_cache.LATENCY, *(["old"] * 1500))
        async with running_quantum(stores) as quantum:
            admin = Admin(quantum)
            await admin.master()
            await eventually(lambda: cache.llen(key_cache.LATENCY) == 1000)


async def test_a_poisoned_cache_changes_no_answer(stores: QuantumStores) -> None:
    async with running_quantum(stores) as quantum:
        admin, thief = Admin(quantum), Admin(quantum)
        await admin.master()
        made = await admin.service()
        before = await admin.key(made.key_id)
        with view(stores) as cache:
            name = f"quantum:key:{made.key_id}"
            await eventually(lambda: cache.exists(name))
            lies = {"publicKey": "AAAA", "organizationId": thief.organization, "expiresAt": "0", "algorithm": "X-Wing"}
            cache.hset(name, mapping=lies)
            cache.hset(f"quantum:key:{uuid.uuid4()}", mapping=lies | {"keyId": "x"})
            cache.delete(key_cache.LATENCY)
            cache.set(key_cache.LATENCY, "no list")  # writing to it fails
        assert await admin.key(made.key_id) == before
        closed = await close(quantum, admin, key_id=made.key_id)
        assert (closed.public_key, closed.algorithm) == (made.public_key, "ML-KEM-768")
        async with refused(grpc.StatusCode.NOT_FOUND):
            await thief.GetKey(pb.GetKeyRequest(key_id=made.key_id))
        with view(stores) as cache:
            cache.delete(key_cache.LATENCY)


async def test_without_redis_everything_is_answered(stores: QuantumStores) -> None:
    async with running_quantum(stores, redis_url=f"redis://127.0.0.1:{free_port()}/0") as quantum:
        admin = Admin(quantum)
        await admin.master()
        made = await admin.service()
        begun = time.perf_counter()
        for _ in range(20):
            await close(quantum, admin)
        assert time.perf_counter() - begun < 5
        await admin.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id, reason="test"))
        assert (await admin.key(made.key_id)).status == key_pb2.KEY_STATUS_REVOKED


async def test_another_service_hears_of_a_revocation_at_once(stores: QuantumStores) -> None:
    # Believed for an hour: only the database's notification can tell the second service in time.
    hour = 60.0
    async with (
        running_hsm(stores.rig) as hsm,
        running_quantum(stores, hsm_port=hsm.port, keys_believed_seconds=hour) as first,
        running_quantum(stores, hsm_port=hsm.port, keys_believed_seconds=hour) as second,
    ):
        admin = Admin(first)
        await admin.master()
        made = await admin.service()
        for _ in range(3):  # in the second's memory, by id and as the newest
            await close(second, admin, key_id=made.key_id)
            await close(second, admin)
        await admin.RevokeKey(pb.RevokeKeyRequest(key_id=made.key_id, reason="test"))
        begun = time.perf_counter()
        assert await first_refusal(second, admin, made.key_id) == "ERROR_REASON_KEY_REVOKED"
        assert time.perf_counter() - begun < 2.0
        async with refused(grpc.StatusCode.NOT_FOUND):
            await close(second, admin)
        # A new key and a rotation are heard as well.
        newer = await admin.service()
        await eventually_closes(second, admin, newer.key_id, 1)
        await admin.rotate(newer.key_id)
        await eventually_closes(second, admin, newer.key_id, 2)


async def first_refusal(quantum: RunningQuantum, admin: Admin, key_id: str) -> str:
    """Encrypt until it is refused; returns why."""
    while True:
        try:
            await close(quantum, admin, key_id=key_id)
        except grpc.aio.AioRpcError as error:
            return reason_of(error)


async def eventually_closes(quantum: RunningQuantum, admin: Admin, key_id: str, version: int) -> None:
    async with asyncio.timeout(2):
        while True:
            closed = await close(quantum, admin)
            if (closed.key_id, closed.key_version) == (key_id, version):
                return


async def test_a_service_that_hears_nothing_asks_the_database(stores: QuantumStores) -> None:
    async with running_quantum(stores, keys_believed_seconds=60.0) as quantum:
        admin = Admin(quantum)
        await admin.master()
        made = await admin.service()
        await close(quantum, admin, key_id=made.key_id)
        with psycopg.connect(stores.owner_dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'behaviorguard-quantum-keys' AND datname = current_database()"
            )
            # A change that nobody tells of: no notification, as if it had come while nobody listened.
            connection.execute(
                "UPDATE quantum_keys.quantum_key_store SET status = 'revoked', revoked_at = now() WHERE key_id = %s",
                (made.key_id,),
            )
        async with asyncio.timeout(2):
            assert await first_refusal(quantum, admin, made.key_id) == "ERROR_REASON_KEY_REVOKED"


async def test_use_limits_hold_across_two_services_and_a_restart(stores: QuantumStores) -> None:
    async with running_hsm(stores.rig) as hsm:
        done = 0
        async with running_quantum(stores, hsm_port=hsm.port) as first:
            admin = Admin(first)
            await admin.master()
            small, large = await admin.service(use_limit=3), await admin.service(use_limit=1000, service_id="large")
            for _ in range(3):
                await close(first, admin, key_id=small.key_id)
            async with refused(grpc.StatusCode.FAILED_PRECONDITION) as caught:
                await close(first, admin, key_id=small.key_id)
            assert reason_of(caught[0]) == "ERROR_REASON_KEY_USES_EXHAUSTED"
            assert (await admin.key(small.key_id)).uses_left == 0
            await admin.rotate(small.key_id)
            assert (await close(first, admin, key_id=small.key_id)).key_version == 2
            await close(first, admin, key_id=large.key_id)
            done += 1
        async with (
            running_quantum(stores, hsm_port=hsm.port) as first,
            running_quantum(stores, hsm_port=hsm.port) as second,
        ):
            templates = [each.templates("gateway") for each in (first, second)]
            request = templates_pb.EncryptTemplateRequest(user_id=USER, biometric_template=b"x", key_id=large.key_id)
            who = person(admin.organization, "self", USER)
            while True:
                calls = [templates[n % 2].EncryptTemplate(request, metadata=who) for n in range(100)]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                good = sum(not isinstance(answer, BaseException) for answer in answers)
                done += good
                if not good:
                    break
    # Never more than the limit; fewer by what each process had taken and not used.
    assert 985 <= done <= 1000
