"""The quantum service and the HSM under load: rates, the cost of encryption's surroundings, times of making keys, the
event loop.

Every part is a process of its own: stores, HSM, quantum service, echo, load. PostgreSQL writes durably. The servers
under test share one core where the machine has several, the load and the stores have the others. Encryption and the
echo, which runs the same primitives on the same server stack, take turns within one run: `encrypt_ratio` says more than
the rates.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import psutil
from behaviorguard.hsm.v1 import hsm_service_pb2 as hsm
from behaviorguard.hsm.v1.hsm_service_pb2_grpc import HsmServiceStub
from behaviorguard.quantum.v1 import key_pb2, key_service_pb2, template_service_pb2, token_service_pb2
from behaviorguard.quantum.v1.token_service_pb2_grpc import TokenServiceStub
from grpc import aio

from infra import pki
from infra.bench.calls import Load, LoadResult, run_load
from infra.bench.pipeline import BenchFailed
from infra.postgres.migrate import migrate
from infra.postgres.roles import ensure_roles
from infra.stack.health import serves_grpc
from infra.stack.ports import LOOPBACK, free_port
from infra.stack.postgres import PostgresOptions, PostgresServer
from infra.stack.process import Command, Process
from infra.stack.secrets import password
from infra.stack.valkey import ValkeyOptions, ValkeyServer
from servers.crypto.channel import TOKEN_KEY, ChannelOffer
from servers.crypto.provider import provider_named
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

_SERVICE: Final = "/behaviorguard.quantum.v1"
ENCRYPT: Final = f"{_SERVICE}.TemplateService/EncryptTemplate"
GENERATE_TOKEN: Final = f"{_SERVICE}.TokenService/GenerateToken"
VERIFY_TOKEN: Final = f"{_SERVICE}.TokenService/VerifyToken"
GENERATE_KEY: Final = f"{_SERVICE}.KeyService/GenerateKey"

TEMPLATE_BYTES: Final = 512
"""Size of the templates: a face's 128 numbers."""
_START_SECONDS: Final = 60.0
_PEOPLE: Final = 200
_CHECKED_TOKENS: Final = 20
_AUDIENCE: Final = "bench"
_WATCH: Final = "--watch-loop"


@dataclass(frozen=True)
class Plan:
    """What to measure: `rounds` of `seconds` for each kind of call, by `callers` at once."""

    rounds: int = 3
    seconds: float = 4.0
    callers: int = 64


class Bench:
    """One run, with stores, certificates and services of its own in a folder of its own."""

    def __init__(self, plan: Plan, say: Callable[[str], None], folder: Path, stack: ExitStack) -> None:
        self._plan = plan
        self._say = say
        self._folder = folder
        self._stack = stack
        self._reports: dict[str, Path] = {}
        self._processes: dict[str, Process] = {}
        self._cores = psutil.Process().cpu_affinity()

    def run(self) -> dict[str, Any]:
        """Measure everything. Raises BenchFailed, StackError."""
        self._say("starting PostgreSQL, Valkey, HSM, quantum service and echo")
        self._take_other_cores()
        self._folder.chmod(0o711)  # PostgreSQL runs as an unprivileged account when this runs as root
        environment = self._stores()
        hsm_port = self._hsm(environment)
        environment["BEHAVIORGUARD_HSM_ADDRESS"] = f"{LOOPBACK}:{hsm_port}"
        quantum = self._node("quantum", environment)
        echo = self._node("echo", environment)
        figures = asyncio.run(self._measure(quantum, echo))
        durable = self._stopped("quantum")["key_seconds"]
        self._stopped("echo")
        watched = asyncio.run(self._watch_loop(environment))
        return self._answer(figures, self._stopped("hsm")["key_seconds"], durable, watched)

    # The parts.

    def _take_other_cores(self) -> None:
        """Leave the first core to the servers under test; whatever else is started from here stays off it."""
        own = psutil.Process()
        self._stack.callback(own.cpu_affinity, self._cores)
        own.cpu_affinity(self._cores[1:] or self._cores)

    def _stores(self) -> dict[str, str]:
        deadline = time.monotonic() + _START_SECONDS
        folder, secrets = self._folder, self._folder / "secrets"
        database = PostgresServer(
            PostgresOptions("postgres-bench", folder / "postgres", free_port(), secrets, folder / "postgres.log")
        )
        cache = ValkeyServer(ValkeyOptions("redis-bench", folder / "redis", free_port(), secrets, folder / "redis.log"))
        for server in (database, cache):
            server.start(deadline)
            self._stack.callback(server.stop)
        migrate(database.dsn(), "quantum")
        ensure_roles(database.dsn(), "quantum", lambda role: password(secrets, role))
        pki.ensure_authority(folder / "pki")
        self._caller = pki.issue(folder / "pki", "identity")
        return {
            "BEHAVIORGUARD_POSTGRES_DSN": database.dsn("bg_quantum", password(secrets, "bg_quantum")),
            "BEHAVIORGUARD_REDIS_URL": cache.url(0),
            "BEHAVIORGUARD_LOG_LEVEL": "WARNING",
        }

    def _hsm(self, environment: dict[str, str]) -> int:
        modules = ",".join(str(self._folder / f"module-{number}") for number in range(3))
        more = {"BEHAVIORGUARD_HSM_MODULES": modules}
        port = self._node("hsm", environment | more, ready=self._answers)
        asyncio.run(_unseal(f"{LOOPBACK}:{port}", pki.issue(self._folder / "pki", "operator")))
        return port

    def _node(
        self,
        kind: str,
        environment: dict[str, str],
        *more: str,
        ready: Callable[[int, pki.Identity], bool] = serves_grpc,
    ) -> int:
        name = "".join((kind, *more))
        self._reports[name] = self._folder / f"{name}.json"
        arguments = ["infra.bench.quantum_node", kind, str(self._reports[name]), *more]
        return self._start(name, arguments, environment, ready)

    def _start(
        self, name: str, arguments: Sequence[str], environment: dict[str, str],
        ready: Callable[[int, pki.Identity], bool],
    ) -> int:  # fmt: skip
        port = free_port()
        workload = "hsm" if name == "hsm" else "quantum"
        own = pki.issue(self._folder / "pki", workload).environment()
        own |= {"BEHAVIORGUARD_SERVICE_NAME": workload, "BEHAVIORGUARD_PORT": str(port)}
        command = Command(name, [sys.executable, "-m", *arguments], {**os.environ, **environment, **own})
        process = Process(command, self._folder / f"{name}.log")
        process.start()
        self._stack.callback(process.stop)
        self._processes[name] = process
        if process.pid is not None:
            psutil.Process(process.pid).cpu_affinity([self._cores[0]])
        process.wait_ready(lambda: ready(port, self._caller), time.monotonic() + _START_SECONDS)
        return port

    @staticmethod
    def _answers(port: int, who: pki.Identity) -> bool:
        """A sealed HSM answers before it serves."""
        credentials = grpc.ssl_channel_credentials(who.ca.read_bytes(), who.key.read_bytes(), who.cert.read_bytes())
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"{LOOPBACK}:{port}", credentials, options) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=1)
            except grpc.FutureTimeoutError:
                return False
        return True

    def _stopped(self, name: str) -> dict[str, Any]:
        self._processes[name].stop()
        try:
            found: dict[str, Any] = json.loads(self._reports[name].read_text())
        except FileNotFoundError:
            raise BenchFailed(f"{name} ended badly: {self._processes[name].last_words()}") from None
        return found

    # The measurements.

    async def _measure(self, quantum: int, echo: int) -> dict[str, Any]:
        figures: dict[str, Any] = {"echo": [], "encrypt": [], "echo_cpu": [], "encrypt_cpu": []}
        await self._load(quantum, GENERATE_KEY, _keys("ML-KEM-768", key_pb2.KEY_PURPOSE_ENCRYPTION), 1.0, 2)
        for number in range(self._plan.rounds):
            self._say(f"encryption and echo, round {number + 1} of {self._plan.rounds}")
            for kind, port, process in (("echo", echo, "echo"), ("encrypt", quantum, "quantum")):
                cpu = self._cpu_seconds(process)
                result = await self._load(port, ENCRYPT, _templates())
                used = self._cpu_seconds(process) - cpu
                figures[kind].append(result.rate)
                figures[f"{kind}_cpu"].append(used / (result.calls + result.rate) * 1e6)  # with a second's warm-up
                figures[f"{kind}_last"] = result
        self._say("hybrid tokens")
        figures["tokens"] = await self._load(quantum, GENERATE_TOKEN, _token_orders())
        figures["verified"] = await self._load(quantum, VERIFY_TOKEN, await self._token_checks(quantum))
        for name, algorithm, purpose in (
            ("keygen", "ML-KEM-768", key_pb2.KEY_PURPOSE_ENCRYPTION),
            ("sign_keygen", "ML-DSA-65", key_pb2.KEY_PURPOSE_SIGNING),
        ):
            self._say(f"{algorithm} keys")
            figures[name] = await self._load(quantum, GENERATE_KEY, _keys(algorithm, purpose), callers=2)
        return figures

    async def _load(
        self,
        port: int,
        method: str,
        requests: Sequence[bytes],
        seconds: float | None = None,
        callers: int | None = None,
    ) -> LoadResult:
        result = await run_load(
            Load(
                f"{LOOPBACK}:{port}",
                method,
                requests,
                self._caller,
                server_name="quantum",
                seconds=seconds or self._plan.seconds,
                callers=callers or self._plan.callers,
            )
        )
        if result.failures:
            raise BenchFailed(f"{method}: {result.failures} calls failed, the first: {result.first_failure}")
        return result

    def _cpu_seconds(self, name: str) -> float:
        times = psutil.Process(self._processes[name].pid).cpu_times()
        return float(times.user + times.system)

    async def _token_checks(self, port: int) -> list[bytes]:
        """Checks of some tokens, each of which comes again and again, as a session's does."""
        answers: list[token_service_pb2.GenerateTokenResponse] = []
        async with self._channel(port) as channel:
            stub: Any = TokenServiceStub(channel)
            for order in _token_orders()[:_CHECKED_TOKENS]:
                request = token_service_pb2.GenerateTokenRequest.FromString(order)
                answers += [await stub.GenerateToken(request, timeout=10)]
        checks = [
            token_service_pb2.VerifyTokenRequest(token=answer.hybrid_token, audience=_AUDIENCE) for answer in answers
        ]
        return [check.SerializeToString() for check in checks]

    def _channel(self, port: int) -> aio.Channel:
        return _channel(f"{LOOPBACK}:{port}", self._caller, "quantum")

    async def _watch_loop(self, environment: dict[str, str]) -> dict[str, Any]:
        """Longest step of the event loop while everything is asked at once."""
        self._say("the event loop under mixed load")
        name = f"quantum{_WATCH}"
        port = self._node("quantum", environment, _WATCH)
        checks = await self._token_checks(port)
        loads = (
            (ENCRYPT, _templates(), 12),
            (GENERATE_TOKEN, _token_orders(), 8),
            (VERIFY_TOKEN, checks, 8),
            (GENERATE_KEY, _keys("ML-DSA-65", key_pb2.KEY_PURPOSE_SIGNING), 1),
        )
        await asyncio.gather(*(self._load(port, method, requests, 1.0) for method, requests, _ in loads))
        pid = self._processes[name].pid
        if pid is None:
            raise BenchFailed(f"the quantum service ended: {self._processes[name].last_words()}")
        os.kill(pid, signal.SIGUSR1)
        await asyncio.gather(
            *(self._load(port, method, requests, callers=callers) for method, requests, callers in loads)
        )
        return self._stopped(name)

    def _answer(
        self,
        figures: dict[str, Any],
        inside: dict[str, list[float]],
        durable: dict[str, list[float]],
        watched: dict[str, Any],
    ) -> dict[str, Any]:
        middle = {name: statistics.median(figures[name]) for name in ("echo", "encrypt", "echo_cpu", "encrypt_cpu")}
        kem, sign = "ML-KEM-768", "ML-DSA-65"
        return {
            "encrypt_per_s": round(middle["encrypt"]),
            "encrypt_ratio": round(middle["encrypt"] / middle["echo"], 3),
            "token_per_s": round(figures["tokens"].rate),
            "keygen_p99_ms": _milliseconds(inside[kem], 99),
            "sign_keygen_p99_ms": _milliseconds(inside[sign], 99),
            "loop_block_max_ms": round(watched["longest_step"] * 1000, 2),
            "echo_per_s": round(middle["echo"]),
            "encrypt_cpu_us": round(middle["encrypt_cpu"]),
            "echo_cpu_us": round(middle["echo_cpu"]),
            "encrypt_p99_ms": round(figures["encrypt_last"].p99_ms, 1),
            "token_p99_ms": round(figures["tokens"].p99_ms, 1),
            "token_verify_per_s": round(figures["verified"].rate),
            "keygen_per_s": round(figures["keygen"].rate, 1),
            "keygen_durable_p50_ms": _milliseconds(durable[kem], 50),
            "keygen_durable_p99_ms": _milliseconds(durable[kem], 99),
            "sign_keygen_per_s": round(figures["sign_keygen"].rate, 1),
            "sign_keygen_durable_p50_ms": _milliseconds(durable[sign], 50),
            "sign_keygen_durable_p99_ms": _milliseconds(durable[sign], 99),
            "template_bytes": TEMPLATE_BYTES,
            "cores": len(self._cores),
        }


def _milliseconds(seconds: list[float], percent: int) -> float:
    ordered = sorted(seconds)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000, 2)


def _channel(target: str, identity: pki.Identity, server_name: str) -> aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        identity.ca.read_bytes(), identity.key.read_bytes(), identity.cert.read_bytes()
    )
    options = [("grpc.ssl_target_name_override", server_name), ("grpc.use_local_subchannel_pool", 1)]
    return aio.secure_channel(target, credentials, options)


async def _unseal(target: str, operator: pki.Identity) -> None:
    """Initialise a new HSM with one share and give it that share."""
    async with _channel(target, operator, "hsm") as channel:
        stub: Any = HsmServiceStub(channel)
        offer = ChannelOffer(provider_named("cryptography"))
        opened = await stub.OpenChannel(hsm.OpenChannelRequest(key_share=offer.key_share), timeout=30)
        tokens = offer.accept("operator", opened.channel_id, opened.key_share)

        async def ask(method: str, request: Message) -> Any:
            token = tokens.token(
                f"/behaviorguard.hsm.v1.HsmService/{method}", request.SerializeToString(deterministic=True)
            )
            return await getattr(stub, method)(request, metadata=((TOKEN_KEY, token),), timeout=30)

        made = await ask("Initialize", hsm.InitializeRequest(shares=1, threshold=1))
        state = await stub.GetStatus(hsm.GetStatusRequest(), timeout=30)
        if state.state != hsm.SEAL_STATE_UNSEALED:
            await ask("Unseal", hsm.UnsealRequest(share=made.shares[0]))


def _templates() -> list[bytes]:
    template = os.urandom(TEMPLATE_BYTES)
    requests = [
        template_service_pb2.EncryptTemplateRequest(user_id=str(uuid.uuid4()), biometric_template=template)
        for _ in range(_PEOPLE)
    ]
    return [request.SerializeToString() for request in requests]


def _token_orders() -> list[bytes]:
    requests = []
    for _ in range(_PEOPLE):
        request = token_service_pb2.GenerateTokenRequest(user_id=str(uuid.uuid4()), hybrid_mode=True)
        request.claims.organization_id = DEFAULT_ORGANIZATION_ID
        request.claims.session_id = str(uuid.uuid4())
        request.claims.audience.append(_AUDIENCE)
        request.claims.roles.append("member")
        requests.append(request.SerializeToString())
    return requests


def _keys(algorithm: str, purpose: key_pb2.KeyPurpose.ValueType) -> list[bytes]:
    request = key_service_pb2.GenerateKeyRequest(
        key_type=key_pb2.KEY_TYPE_MASTER,
        algorithm=algorithm,
        purpose=purpose,
        organization_id=DEFAULT_ORGANIZATION_ID,
    )
    return [request.SerializeToString()]


def run(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as planned; the answer's keys are those of `behaviorguard bench quantum --json`.

    Raises:
        BenchFailed: a part did not work.
        StackError: a store or service did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="behaviorguard-bench-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return Bench(plan, say, folder, stack).run()
