"""HSM, quantum service and PostgreSQL die by SIGKILL while people work: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest
from behaviorguard.quantum.v1 import (
    key_pb2,
    key_service_pb2,
    key_service_pb2_grpc,
    template_service_pb2,
    template_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
)
from grpc_status import rpc_status

from servers.mesh.settings import DEFAULT_ORGANIZATION_ID
from tests.support.mesh import acting_for, reason_of
from tests.support.quantum_stack import QuantumStack
from tests.support.stack import installed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from tests.support.stack import Installation

pytestmark = pytest.mark.end_to_end

PEOPLE = 40
WORKERS = 12
SETTLE_SECONDS = 90.0
ALONE = [word for name in ("gateway", "pipeline", "threat") for word in ("--without", name)]
# What a caller may be told while a part is away; anything else is a fault. Without a reason it is the connection's end.
TRANSIENT = {
    "ERROR_REASON_HSM_SEALED",  # until it is unsealed again
    "ERROR_REASON_DEPENDENCY_UNAVAILABLE",
    "ERROR_REASON_AUDIT_UNAVAILABLE",
    "ERROR_REASON_CIRCUIT_OPEN",
    "ERROR_REASON_DEADLINE",
    "ERROR_REASON_OVERLOADED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CANCELLED",
}
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class MadeKey:
    key_id: str
    public_key: bytes
    signs: bool


@dataclass
class Acknowledged:
    """What callers were told is done."""

    keys: list[MadeKey] = field(default_factory=list)
    envelopes: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    """Person, plaintext, envelope."""
    tokens: list[str] = field(default_factory=list)
    signatures: list[tuple[str, bytes, Any]] = field(default_factory=list)
    """Key, message, signature."""
    calls: list[str] = field(default_factory=list)
    """Correlation ids."""


class Stubs:
    """The quantum services, as identity and as the gateway for an administrator."""

    def __init__(self, identity: Any, gateway: Any) -> None:
        self.templates: Any = template_service_pb2_grpc.TemplateServiceStub(identity)
        self.keys: Any = key_service_pb2_grpc.KeyServiceStub(gateway)
        self.tokens: Any = token_service_pb2_grpc.TokenServiceStub(gateway)


class Load:
    """People who work on while the system is killed. What fails is tried again; what succeeds is remembered."""

    def __init__(self, stubs: Stubs, pause_seconds: float) -> None:
        self.done = Acknowledged()
        self.refusals: Counter[str] = Counter()
        """What was told meanwhile, by reason."""
        self.finished = 0
        self._stubs = stubs
        self._pause_seconds = pause_seconds
        self._over = asyncio.Event()
        self._grew = asyncio.Condition()
        self._people = [str(uuid.uuid4()) for _ in range(PEOPLE)]
        self._works: list[Callable[[random.Random], Coroutine[Any, Any, None]]] = [
            *[self._encrypt] * 9,
            *[self._decrypt] * 5,
            *[self._issue] * 2,
            *[self._verify] * 2,
            self._sign,
            self._make_key,
        ]

    async def run(self) -> None:
        """Everybody works until `stop`."""
        await self._make_key(random.Random(0), signs=True)  # noqa: S311 - made-up work, nothing secret
        rhythms = [random.Random(seed) for seed in range(WORKERS)]  # noqa: S311 - likewise
        async with asyncio.TaskGroup() as group:
            for rng in rhythms:
                group.create_task(self._worker(rng))

    def stop(self) -> None:
        """Let everybody finish what they do."""
        self._over.set()

    async def more(self, number: int) -> None:
        """Wait until so many more operations have succeeded."""
        async with asyncio.timeout(SETTLE_SECONDS * 2), self._grew:
            goal = self.finished + number
            await self._grew.wait_for(lambda: self.finished >= goal)

    async def call(
        self, rpc: Callable[..., Awaitable[Answer]], request: Any, person: Callable[[], tuple[Any, ...]] = tuple
    ) -> Answer:
        """One audited call, repeated until it succeeds."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            correlation_id = str(uuid.uuid4())
            try:
                answer = await rpc(request, timeout=10, metadata=(*person(), ("x-correlation-id", correlation_id)))
            except grpc.aio.AioRpcError as error:
                reason = reason_of(error) if rpc_status.from_call(error) else error.code().name  # type: ignore[arg-type]  # an AioRpcError is a call here
                if reason not in TRANSIENT:
                    raise
                self.refusals[reason] += 1
                assert time.monotonic() < deadline, f"it did not come back: {dict(self.refusals)}"
                await asyncio.sleep(0.05)
            else:
                self.done.calls.append(correlation_id)
                return answer

    async def _worker(self, rng: random.Random) -> None:
        while not self._over.is_set():
            await rng.choice(self._works)(rng)
            async with self._grew:
                self.finished += 1
                self._grew.notify_all()
            await asyncio.sleep(self._pause_seconds)

    async def _encrypt(self, rng: random.Random) -> None:
        user_id, plaintext = rng.choice(self._people), rng.randbytes(rng.randrange(1, 2048))
        request = template_service_pb2.EncryptTemplateRequest(user_id=user_id, biometric_template=plaintext)
        answer = await self.call(self._stubs.templates.EncryptTemplate, request)
        self.done.envelopes.append((user_id, plaintext, answer.encrypted_template))

    async def _decrypt(self, rng: random.Random) -> None:
        if self.done.envelopes:
            await self.opens(*rng.choice(self.done.envelopes))

    async def _issue(self, rng: random.Random) -> None:
        claims = token_service_pb2.UserClaims(
            organization_id=DEFAULT_ORGANIZATION_ID, session_id=str(uuid.uuid4()), audience=["platform"]
        )
        request = token_service_pb2.GenerateTokenRequest(
            user_id=rng.choice(self._people), claims=claims, hybrid_mode=True
        )
        answer = await self.call(self._stubs.tokens.GenerateToken, request, administrator)
        self.done.tokens.append(answer.hybrid_token)

    async def _verify(self, rng: random.Random) -> None:
        if self.done.tokens:
            await self.holds(rng.choice(self.done.tokens))

    async def _sign(self, rng: random.Random) -> None:
        key = rng.choice([key for key in self.done.keys if key.signs])
        await self.signs(key, rng.randbytes(100))

    async def _make_key(self, rng: random.Random, *, signs: bool | None = None) -> None:
        signing = rng.random() < 0.5 if signs is None else signs
        request = key_service_pb2.GenerateKeyRequest(
            key_type=key_pb2.KEY_TYPE_MASTER,
            algorithm="ML-DSA-65" if signing else "ML-KEM-768",
            purpose=key_pb2.KEY_PURPOSE_SIGNING if signing else key_pb2.KEY_PURPOSE_ENCRYPTION,
            organization_id=DEFAULT_ORGANIZATION_ID,
        )
        answer = await self.call(self._stubs.keys.GenerateKey, request, administrator)
        self.done.keys.append(MadeKey(answer.key_id, answer.public_key, signing))

    async def opens(self, user_id: str, plaintext: bytes, envelope: bytes) -> None:
        """The envelope gives back what was put in."""
        request = template_service_pb2.DecryptTemplateRequest(user_id=user_id, encrypted_template=envelope)
        answer = await self.call(self._stubs.templates.DecryptTemplate, request)
        assert answer.biometric_template == plaintext

    async def holds(self, token: str) -> None:
        """The token is valid."""
        request = token_service_pb2.VerifyTokenRequest(token=token, audience="platform")
        answer = await self.call(self._stubs.tokens.VerifyToken, request, administrator)
        assert answer.valid, answer.reason

    async def signs(self, key: MadeKey, message: bytes) -> None:
        """The key signs."""
        request = token_service_pb2.SignMessageRequest(key_id=key.key_id, message=message)
        answer = await self.call(self._stubs.tokens.SignMessage, request, administrator)
        self.done.signatures.append((key.key_id, message, answer.quantum_signature))

    async def verifies(self, key_id: str, message: bytes, signature: Any) -> None:
        """The signature is the key's."""
        request = token_service_pb2.VerifySignatureRequest(
            key_id=key_id, key_version=signature.key_version, message=message, signature=signature.signature
        )
        answer = await self.call(self._stubs.tokens.VerifySignature, request, administrator)
        assert answer.valid

    async def works(self, key: MadeKey) -> None:
        """The key is there, has its public half, and its private half still does its work."""
        request = key_service_pb2.GetKeyRequest(key_id=key.key_id)
        answer = await self.call(self._stubs.keys.GetKey, request, administrator)
        assert answer.key.public_key == key.public_key
        if key.signs:
            await self.signs(key, b"after")
            return
        user_id = self._people[0]
        closing = template_service_pb2.EncryptTemplateRequest(
            user_id=user_id, biometric_template=b"after", key_id=key.key_id
        )
        closed = await self.call(self._stubs.templates.EncryptTemplate, closing)
        await self.opens(user_id, b"after", closed.encrypted_template)


def administrator() -> tuple[tuple[str, str], ...]:
    """Somebody new each time, so that nobody's budget is spent."""
    return acting_for(str(uuid.uuid4()), "admin", DEFAULT_ORGANIZATION_ID)


async def nothing_is_lost(quantum: QuantumStack, load: Load) -> None:
    """Every key works, every envelope opens, every token and signature holds, every call has its one record."""
    room = asyncio.Semaphore(WORKERS)

    async def each(check: Coroutine[Any, Any, None]) -> None:
        async with room:
            await check

    done = load.done
    checks = [
        *(load.works(key) for key in done.keys),
        *(load.opens(*envelope) for envelope in done.envelopes),
        *(load.holds(token) for token in done.tokens),
        *(load.verifies(*signature) for signature in done.signatures),
    ]
    async with asyncio.TaskGroup() as group:
        for check in checks:
            group.create_task(each(check))
    recorded = Counter(
        str(row["correlation_id"])
        for row in quantum.rows(
            "SELECT correlation_id FROM quantum_audit.quantum_operations_log WHERE result = 'success'"
        )
    )
    wrong = {call: recorded[call] for call in done.calls if recorded[call] != 1}
    assert not wrong, f"{len(wrong)} of {len(done.calls)} acknowledged calls have another number of records than one"


def succeeds(installation: Installation, *words: str) -> None:
    """Run a command that must succeed."""
    done = installation.call(*words)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def the_trail_verifies(installation: Installation) -> None:
    """An export of the whole trail is checked offline."""
    export = installation.folder / "trail.export"
    succeeds(installation, "audit", "export", str(export))
    succeeds(installation, "audit", "verify", str(export), "--json")


async def lose_parts_under_load(installation: Installation, *, between: int, rounds: int, pause_seconds: float) -> Load:
    """Kill each part in turn, with at least `between` operations done before and after each."""
    quantum = QuantumStack(installation)
    async with quantum.channel("identity") as identity, quantum.channel("gateway") as gateway:
        load = Load(Stubs(identity, gateway), pause_seconds)
        running = asyncio.create_task(load.run())
        try:
            for name in ("hsm", "quantum", "postgres-quantum") * rounds:
                await working(running, load.more(between))
                await working(running, asyncio.to_thread(installation.kill, name))
            await working(running, load.more(between))
            for words in (("down",), ("up", *ALONE)):
                await working(running, asyncio.to_thread(succeeds, installation, *words))
            await working(running, load.more(between))
            load.stop()
            await running
        finally:
            running.cancel()
        await nothing_is_lost(quantum, load)
        await asyncio.to_thread(the_trail_verifies, installation)
    return load


async def working(running: asyncio.Task[None], other: Awaitable[None]) -> None:
    """Wait for something, unless the work itself fails before."""
    task = asyncio.ensure_future(other)
    await asyncio.wait((running, task), return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await running
    await task


@asynccontextmanager
async def quantum_alone() -> AsyncIterator[Installation]:
    """HSM, quantum service and their stores."""
    with installed(breaker_seconds="1") as installation:
        await asyncio.to_thread(succeeds, installation, "up", *ALONE)
        yield installation


async def test_killed_parts_lose_nothing_that_was_acknowledged() -> None:
    async with quantum_alone() as installation:
        load = await lose_parts_under_load(installation, between=75, rounds=1, pause_seconds=0.05)
    assert load.finished >= 300


@pytest.mark.chaos
async def test_killed_parts_lose_nothing_of_10000_operations() -> None:
    async with quantum_alone() as installation:
        load = await lose_parts_under_load(installation, between=1430, rounds=2, pause_seconds=0.0)
    assert load.finished >= 10_000
    assert load.refusals, "nobody noticed"
