"""What the quantum service says while a part is away, what it records, and that nothing is left half done."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest
from behaviorguard.quantum.v1 import (
    key_service_pb2,
    template_service_pb2,
    token_service_pb2,
)
from grpc import aio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.stack.ports import free_port
from tests.support.hsm import running_hsm
from tests.support.mesh import reason_of
from tests.support.quantum import RunningQuantum, master_key, running_quantum, service_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.quantum import QuantumStores

PERSON = "11111111-1111-4111-8111-111111111111"
WAIT_SECONDS = 20.0


async def refusal(call: Any, request: Any, correlation_id: str = "") -> tuple[str, str]:
    """Reason and correlation id of a call that must be refused."""
    correlation_id = correlation_id or str(uuid.uuid4())
    with pytest.raises(aio.AioRpcError) as error:
        await call(request, timeout=15, metadata=(("x-correlation-id", correlation_id),))
    return reason_of(error.value).removeprefix("ERROR_REASON_"), correlation_id


async def until(call: Callable[[], Any]) -> Any:
    """The first answer, however often it is refused before."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return await call()
        except aio.AioRpcError:
            assert time.monotonic() < deadline, "it did not come back"
            await asyncio.sleep(0.05)


def recorded(stores: QuantumStores, correlation_id: str) -> list[tuple[str, str]]:
    found = stores.rows(
        "SELECT result::text, reason FROM quantum_audit.quantum_operations_log WHERE correlation_id = %s",
        correlation_id,
    )
    return [(str(result), str(reason)) for result, reason in found]


def keys_of(stores: QuantumStores) -> set[str]:
    return {str(row[0]) for row in stores.rows("SELECT key_id FROM quantum_keys.quantum_key_store WHERE NOT platform")}


async def close_envelope(running: RunningQuantum, plaintext: bytes = b"a face") -> bytes:
    request = template_service_pb2.EncryptTemplateRequest(user_id=PERSON, biometric_template=plaintext)
    answer = await running.templates().EncryptTemplate(request, timeout=10)
    return bytes(answer.encrypted_template)


def opening(envelope: bytes) -> template_service_pb2.DecryptTemplateRequest:
    return template_service_pb2.DecryptTemplateRequest(user_id=PERSON, encrypted_template=envelope)


def signing(key_id: str) -> token_service_pb2.SignMessageRequest:
    return token_service_pb2.SignMessageRequest(key_id=key_id, message=b"said")


async def test_a_sealed_hsm_is_said_and_recorded(stores: QuantumStores) -> None:
    async with (
        running_hsm(stores.rig) as hsm,
        running_quantum(stores, hsm_port=hsm.port, breaker_seconds=0.2) as running,
    ):
        signer = await running.keys().GenerateKey(master_key(), timeout=10)
        await running.keys().GenerateKey(service_key(), timeout=10)
        envelope = await close_envelope(running)
        before = keys_of(stores)
        await hsm.operator.seal()
        for call, request in (
            (running.keys().GenerateKey, service_key()),
            (running.keys().RotateKey, key_service_pb2.RotateKeyRequest(key_id=signer.key_id)),
            (running.templates().DecryptTemplate, opening(envelope)),
            (running.tokens().SignMessage, signing(signer.key_id)),
        ):
            reason, correlation_id = await refusal(call, request)
            assert reason == "HSM_SEALED"
            assert recorded(stores, correlation_id) == [("failure", "ERROR_REASON_HSM_SEALED")]
        assert keys_of(stores) == before
        sealed_meanwhile = await close_envelope(running)  # needs a public key alone
        await hsm.operator.unseal(stores.rig.share)
        for each in (envelope, sealed_meanwhile):
            answer = await running.templates().DecryptTemplate(opening(each), timeout=10)
            assert answer.biometric_template == b"a face"


async def test_an_hsm_that_is_away_is_said_and_recorded(stores: QuantumStores) -> None:
    async with running_quantum(stores, hsm_port=free_port(), breaker_seconds=0.2) as running:
        before = keys_of(stores)
        reason, correlation_id = await refusal(running.keys().GenerateKey, master_key())
        assert reason in ("DEPENDENCY_UNAVAILABLE", "CIRCUIT_OPEN")
        ((result, said),) = recorded(stores, correlation_id)
        assert (result, said.removeprefix("ERROR_REASON_")) == ("failure", reason)
        assert keys_of(stores) == before


async def test_an_hsm_that_comes_back_is_used_again(stores: QuantumStores) -> None:
    port = free_port()
    async with running_quantum(stores, hsm_port=port, breaker_seconds=0.2) as running:
        await refusal(running.keys().GenerateKey, master_key())
        async with running_hsm(stores.rig, port=port):
            made = await until(lambda: running.keys().GenerateKey(master_key(), timeout=10))
            assert made.key_id in keys_of(stores)


@contextmanager
def database_away(stores: QuantumStores) -> Iterator[None]:
    """Nobody may connect, and who is connected is thrown out."""
    name = conninfo_to_dict(stores.owner_dsn)["dbname"]
    elsewhere = make_conninfo(stores.owner_dsn, dbname="postgres")
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


async def test_without_the_database_nothing_is_done_that_must_be_recorded(stores: QuantumStores) -> None:
    async with running_quantum(stores, breaker_seconds=0.2) as running:
        signer = await running.keys().GenerateKey(master_key(), timeout=10)
        await running.keys().GenerateKey(service_key(), timeout=10)
        envelope = await close_envelope(running)
        before = keys_of(stores)
        with database_away(stores):
            calls = [
                (running.keys().GenerateKey, service_key()),
                (running.keys().GetKey, key_service_pb2.GetKeyRequest(key_id=signer.key_id)),
                (running.templates().EncryptTemplate, _closing()),
                (running.templates().DecryptTemplate, opening(envelope)),
                (running.tokens().SignMessage, signing(signer.key_id)),
            ]
            found = await asyncio.gather(*(refusal(call, request) for call, request in calls))
        assert {reason for reason, _ in found} <= {"AUDIT_UNAVAILABLE", "DEPENDENCY_UNAVAILABLE", "DEADLINE"}
        answer = await until(lambda: running.templates().DecryptTemplate(opening(envelope), timeout=10))
        assert answer.biometric_template == b"a face"
        assert keys_of(stores) == before
        # Nothing that was refused is recorded as done.
        assert all(("success", "None") not in recorded(stores, correlation_id) for _, correlation_id in found)


def _closing() -> template_service_pb2.EncryptTemplateRequest:
    return template_service_pb2.EncryptTemplateRequest(user_id=PERSON, biometric_template=b"a face")


async def test_a_payload_of_10_mb_is_refused_and_recorded(stores: QuantumStores) -> None:
    async with running_quantum(stores) as running:
        request = template_service_pb2.EncryptTemplateRequest(user_id=PERSON, biometric_template=b"x" * 10_000_000)
        channel = running.channel("identity")
        call: Any = channel.unary_unary("/behaviorguard.quantum.v1.TemplateService/EncryptTemplate")
        correlation_id = str(uuid.uuid4())
        with pytest.raises(aio.AioRpcError) as error:
            await call(request.SerializeToString(), timeout=15, metadata=(("x-correlation-id", correlation_id),))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(error.value) == "ERROR_REASON_TOO_LARGE"
        assert recorded(stores, correlation_id) == [("failure", "ERROR_REASON_TOO_LARGE")]
