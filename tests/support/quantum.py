"""The quantum service on real stores, callers with identities of the test's authority, and orders for keys."""

from __future__ import annotations

import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
from behaviorguard.quantum.v1 import key_pb2, key_service_pb2
from behaviorguard.quantum.v1.audit_service_pb2_grpc import AuditServiceStub
from behaviorguard.quantum.v1.key_service_pb2_grpc import KeyServiceStub
from behaviorguard.quantum.v1.template_service_pb2_grpc import TemplateServiceStub
from behaviorguard.quantum.v1.token_service_pb2_grpc import TokenServiceStub
from grpc import aio
from psycopg.conninfo import conninfo_to_dict

from infra import pki
from servers.crypto.algorithms import Algorithm
from servers.crypto.errors import OpenError
from servers.crypto.provider import provider_named
from servers.crypto.sealing import Sealed, open_sealed
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.limits import Unlimited
from servers.quantum.app import quantum_app
from servers.quantum.ports import Destroyed, GeneratedKey, HsmState, Opened, SealedItem, Signed, SignItem
from servers.quantum.settings import QuantumSettings
from tests.support.hsm import HsmRig, running_hsm
from tests.support.threat import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from servers.quantum.ports import Hsm
    from tests.conftest import DatabaseServer

ORGANIZATION = "00000000-0000-4000-8000-000000000001"
LARGE = [("grpc.max_receive_message_length", 16 * 1024 * 1024)]
"""A channel's options for full batches."""


class StandInHsm:
    """What the service needs of an HSM, in this process: for tests of what is not the HSM's."""

    def __init__(self) -> None:
        self.keys: dict[str, dict[int, tuple[str, str, bytes]]] = {}
        self.failure: MeshError | None = None
        self.calls: list[str] = []
        self._provider = provider_named("cryptography")

    async def generate(self, key_id: str, version: int, algorithm: str, organization_id: str) -> GeneratedKey:
        self._begin("generate")
        versions = self.keys.setdefault(key_id, {})
        newest = max(versions, default=0)
        if version not in (newest, newest + 1):
            raise MeshError(ErrorReason.ERROR_REASON_WRONG_STATE, "not the next version")
        kind = Algorithm(algorithm)
        if version > newest:
            seed = uuid.uuid4().bytes * 4
            versions[version] = (algorithm, organization_id, seed[: kind.parameters.seed_size])
        public = self._provider.private_key(kind, versions[version][2]).public_bytes
        return GeneratedKey(public, f"{key_id}/{version}", "os:healthy", str(uuid.uuid4()), datetime.now(UTC))

    async def decrypt(self, item: SealedItem) -> Opened:
        self._begin("decrypt")
        algorithm, seed = self._held(item.key_handle, item.organization_id)
        key = self._provider.kem_private_key(algorithm, seed)
        try:
            sealed = Sealed(item.kem_ciphertext, item.nonce, item.ciphertext)
            return Opened(open_sealed(key, sealed, item.info, item.associated_data), str(uuid.uuid4()))
        except OpenError:
            raise MeshError(ErrorReason.ERROR_REASON_ENVELOPE_INVALID, "does not open") from None

    async def decrypt_many(self, items: Sequence[SealedItem]) -> list[Opened | MeshError]:
        results: list[Opened | MeshError] = []
        for item in items:
            try:
                results.append(await self.decrypt(item))
            except MeshError as error:
                results.append(error)
        return results

    async def sign(self, key_handle: str, organization_id: str, message: bytes, context: bytes = b"") -> Signed:
        self._begin("sign")
        algorithm, seed = self._held(key_handle, organization_id)
        return Signed(self._provider.signing_key(algorithm, seed).sign(message, context), str(uuid.uuid4()))

    async def sign_many(self, items: Sequence[SignItem]) -> list[Signed | MeshError]:
        return [await self.sign(item.key_handle, item.organization_id, item.message, item.context) for item in items]

    async def destroy(self, key_id: str, organization_id: str) -> Destroyed:
        self._begin("destroy")
        return Destroyed(len(self.keys.pop(key_id, {})), str(uuid.uuid4()))

    async def status(self) -> HsmState:
        return HsmState("software", "A test's.", "unsealed", "os:healthy", True, 3, 0, len(self.keys), 0, 0.0, 1)

    def _begin(self, name: str) -> None:
        self.calls.append(name)
        if self.failure is not None:
            raise self.failure

    def _held(self, handle: str, organization_id: str) -> tuple[Algorithm, bytes]:
        key_id, _, version = handle.partition("/")
        found = self.keys.get(key_id, {}).get(int(version))
        if found is None or found[1] != organization_id:
            raise MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "no such key")
        return Algorithm(found[0]), found[2]


@dataclass
class QuantumStores:
    """Where the service's data lies in a test."""

    dsn: str
    """As the service's own role."""
    owner_dsn: str
    redis: str
    pki: Path
    rig: HsmRig
    """The HSM's modules."""

    @classmethod
    def of(cls, server: DatabaseServer, owner_dsn: str, redis: str, folder: Path) -> QuantumStores:
        """The stores of a module, as the service may use them; `folder` is the authority's."""
        name = str(conninfo_to_dict(owner_dsn)["dbname"])
        rig = HsmRig(folder / f"hsm-{name}-{uuid.uuid4()}", folder)
        return cls(server.dsn(name, "bg_quantum"), owner_dsn, redis, folder, rig)

    def settings(self, **changes: Any) -> QuantumSettings:
        """Settings of a service on these stores."""
        identity = pki.issue(self.pki, "quantum")
        values: dict[str, Any] = {
            "port": 0,
            "tls_ca": identity.ca,
            "tls_cert": identity.cert,
            "tls_key": identity.key,
            "postgres_dsn": self.dsn,
            "redis_url": self.redis,
            "drain_seconds": 2.0,
            "health_interval_seconds": 0.2,
            "upkeep_seconds": 0.1,
            "default_template_key": False,
        }
        return QuantumSettings(**(values | changes))

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database as its owner."""
        with psycopg.connect(self.owner_dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []


@dataclass
class RunningQuantum:
    """A service that listens."""

    port: int
    stores: QuantumStores
    hsm: Any
    _open: list[aio.Channel] = field(default_factory=list)

    def channel(self, caller: str = "operator") -> aio.Channel:
        """A connection as a workload."""
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), *LARGE]
        channel = aio.secure_channel(f"localhost:{self.port}", self.credentials(caller), options)
        self._open.append(channel)
        return channel

    def credentials(self, caller: str) -> grpc.ChannelCredentials:
        """What a workload shows."""
        files = pki.issue(self.stores.pki, caller)
        return grpc.ssl_channel_credentials(files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())

    def keys(self, caller: str = "operator") -> Any:
        """The key service, called by a workload."""
        return KeyServiceStub(self.channel(caller))

    def templates(self, caller: str = "identity") -> Any:
        """The template service."""
        return TemplateServiceStub(self.channel(caller))

    def tokens(self, caller: str = "identity") -> Any:
        """The token service."""
        return TokenServiceStub(self.channel(caller))

    def audit(self, caller: str = "operator") -> Any:
        """The audit service."""
        return AuditServiceStub(self.channel(caller))

    async def close(self) -> None:
        """Close what was opened."""
        for channel in self._open:
            await channel.close()


@asynccontextmanager
async def running_quantum(
    stores: QuantumStores, hsm: Hsm | None = None, *, hsm_port: int = 0, **changes: Any
) -> AsyncIterator[RunningQuantum]:
    """The service in this process, over real sockets.

    Its HSM is `hsm`, else the one that listens on `hsm_port`, else a real one that is started for it on the stores' own
    modules: one at a time.
    """
    async with AsyncExitStack() as stack:
        if hsm is None and not hsm_port:
            hsm_port = (await stack.enter_async_context(running_hsm(stores.rig))).port
        settings = stores.settings(hsm_address=f"localhost:{hsm_port}", **changes)
        server = await stack.enter_async_context(quantum_app(settings, limiter=Unlimited(), hsm=hsm))
        running = RunningQuantum(await server.start(), stores, hsm)
        stack.push_async_callback(server.drain)
        stack.push_async_callback(running.close)
        yield running


def person(organization_id: str = ORGANIZATION, scope: str = "admin", user_id: str = "") -> tuple[tuple[str, str], ...]:
    """Metadata with which the gateway or identity speaks for somebody."""
    return (
        ("x-bg-user-id", user_id or str(uuid.uuid4())),
        ("x-bg-organization-id", organization_id),
        ("x-bg-scope", scope),
    )


def master_key(organization_id: str = ORGANIZATION, **changes: Any) -> key_service_pb2.GenerateKeyRequest:
    """An order for a master key."""
    values: dict[str, Any] = {
        "key_type": key_pb2.KEY_TYPE_MASTER,
        "algorithm": "ML-DSA-65",
        "purpose": key_pb2.KEY_PURPOSE_SIGNING,
        "organization_id": organization_id,
    }
    return key_service_pb2.GenerateKeyRequest(**(values | changes))


def service_key(organization_id: str = ORGANIZATION, **changes: Any) -> key_service_pb2.GenerateKeyRequest:
    """An order for a service's key for encryption."""
    values: dict[str, Any] = {
        "key_type": key_pb2.KEY_TYPE_SERVICE,
        "algorithm": "ML-KEM-768",
        "purpose": key_pb2.KEY_PURPOSE_ENCRYPTION,
        "organization_id": organization_id,
        "service_id": "identity",
    }
    return key_service_pb2.GenerateKeyRequest(**(values | changes))


def device_key(organization_id: str = ORGANIZATION, **changes: Any) -> key_service_pb2.GenerateKeyRequest:
    """An order for a device's key for encryption."""
    values: dict[str, Any] = {
        "key_type": key_pb2.KEY_TYPE_DEVICE,
        "algorithm": "X-Wing",
        "purpose": key_pb2.KEY_PURPOSE_ENCRYPTION,
        "organization_id": organization_id,
        "device_id": "phone-1",
    }
    return key_service_pb2.GenerateKeyRequest(**(values | changes))


class Admin:
    """The key service, called for the administrator of an organisation of their own."""

    def __init__(self, quantum: Any) -> None:
        self.organization = str(uuid.uuid4())
        self._keys = quantum.keys("gateway")
        self._metadata = person(self.organization)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._keys, name)
        return lambda request: method(request, metadata=self._metadata)

    async def master(self, **changes: Any) -> Any:
        return await self.GenerateKey(master_key(self.organization, **changes))

    async def service(self, **changes: Any) -> Any:
        return await self.GenerateKey(service_key(self.organization, **changes))

    async def device(self, **changes: Any) -> Any:
        return await self.GenerateKey(device_key(self.organization, **changes))

    async def rotate(self, key_id: str) -> Any:
        return (await self.RotateKey(key_service_pb2.RotateKeyRequest(key_id=key_id))).key

    async def key(self, key_id: str) -> Any:
        return (await self.GetKey(key_service_pb2.GetKeyRequest(key_id=key_id))).key


async def gone(stores: QuantumStores, *key_ids: str) -> None:
    """Wait until the HSM's destruction is noted."""
    query = "SELECT 1 FROM quantum_keys.quantum_key_store WHERE key_id = ANY(%s::uuid[]) AND destroyed_at IS NULL"
    await eventually(lambda: not stores.rows(query, list(key_ids)))
