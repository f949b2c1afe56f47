"""The quantum service put together: settings in, server out."""

from __future__ import annotations

import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from behaviorguard.quantum.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from behaviorguard.quantum.v1.template_service_pb2_grpc import add_TemplateServiceServicer_to_server
from behaviorguard.quantum.v1.token_service_pb2_grpc import add_TokenServiceServicer_to_server

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.mesh.health import DependencyCheck, HealthMonitor
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.tasks import RestartBudget, TaskOwner
from servers.mesh.telemetry import Telemetry
from servers.quantum import database
from servers.quantum.audit_app import audit_service, audit_trail
from servers.quantum.audit_calls import TrailAudit
from servers.quantum.health import quantum_particulars
from servers.quantum.hsm import HsmClient, hsm_channel
from servers.quantum.key_cache import KeyCache
from servers.quantum.key_keeper import KeyKeeper
from servers.quantum.key_ring import KeyRing
from servers.quantum.key_service import KeyParts, KeyService
from servers.quantum.key_store import KeyStore
from servers.quantum.platform_keys import PlatformKeys
from servers.quantum.recording import CallRecorder, OwnRecorder
from servers.quantum.rotation import HsmWatch, KeyUpkeep, UpkeepParts
from servers.quantum.security_events import SecurityEvents
from servers.quantum.settings import QuantumSettings
from servers.quantum.template_service import TemplateService
from servers.quantum.templates import Templates
from servers.quantum.token_app import token_service
from servers.quantum.use_limits import UseLimits
from servers.quantum.violations import Violations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from servers.crypto.provider import CryptoProvider
    from servers.mesh.limits import RateLimiter
    from servers.quantum.audit_trail import AuditTrail
    from servers.quantum.ports import Hsm

KEYS: Final = "behaviorguard.quantum.v1.KeyService"
TEMPLATES: Final = "behaviorguard.quantum.v1.TemplateService"
TOKENS: Final = "behaviorguard.quantum.v1.TokenService"

TEMPLATE_KEY: Final = ("templates", Algorithm.ML_KEM_768)
"""The platform's own key for templates: service id and algorithm."""
_HSM_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Core:
    """What several of the services share."""

    settings: QuantumSettings
    pool: database.Pool
    hsm: Hsm
    trail: AuditTrail
    store: KeyStore
    ring: KeyRing
    violations: Violations
    cache: KeyCache
    keeper: KeyKeeper
    """Records in the name of the call."""
    own_keeper: KeyKeeper
    """Records in the service's own name."""
    platform: PlatformKeys
    limits: UseLimits


@asynccontextmanager
async def quantum_app(
    settings: QuantumSettings | None = None, *, limiter: RateLimiter | None = None, hsm: Hsm | None = None
) -> AsyncIterator[MeshServer]:
    """Everything that the service needs, opened and closed around its server (which is not started).

    Args:
        settings: None reads them from the environment.
        limiter: None counts requests in this process.
        hsm: None calls the HSM at `settings.hsm_address`.

    Raises:
        pydantic.ValidationError: a setting is missing or wrong.
        servers.crypto.errors.ProviderUnavailableError: the library of primitives is not installed.
    """
    settings = settings or QuantumSettings()  # type: ignore[call-arg]  # the rest comes from the environment
    async with AsyncExitStack() as stack:
        core = await _core(settings, stack, hsm)
        tasks = TaskOwner()
        stack.push_async_callback(tasks.stop)
        _start(core, tasks)
        telemetry = Telemetry(settings)
        _measure(core, telemetry)
        tokens = token_service(core, tasks, stack, telemetry)
        yield MeshServer(
            settings,
            [
                *_bindings(core),
                ServiceBinding(TOKENS, add_TokenServiceServicer_to_server, tokens),
                audit_service(core, tasks, telemetry),
            ],
            health=HealthMonitor(
                settings.service_name,
                [
                    DependencyCheck("database", partial(database.probe, core.pool)),
                    DependencyCheck("redis", core.cache.probe, required=False),
                    DependencyCheck("hsm", partial(_probe_hsm, core.hsm), required=False),
                ],
                interval_seconds=settings.health_interval_seconds,
            ),
            telemetry=telemetry,
            limiter=limiter,
            tasks=tasks,
            audit=TrailAudit(core.trail),
            particulars=quantum_particulars(core.ring.hits),
        )


async def _core(settings: QuantumSettings, stack: AsyncExitStack, hsm: Hsm | None) -> Core:
    dsn = settings.postgres_dsn.get_secret_value()
    pool = database.make_pool(dsn, connections=settings.postgres_connections)
    await pool.open()
    stack.push_async_callback(pool.close)
    provider = provider_named(settings.crypto_provider)
    hsm = hsm or _hsm(settings, provider, stack)
    trail = audit_trail(settings)
    store = KeyStore(pool)
    violations = Violations(store, SecurityEvents(pool))
    ring = KeyRing(
        store,
        provider,
        dsn,
        capacity=settings.keys_held,
        believed_s=settings.keys_believed_seconds,
        on_missing=violations.suspect,
    )
    cache = KeyCache(settings.redis_url.get_secret_value())
    stack.push_async_callback(cache.close)
    own_keeper = KeyKeeper(store, hsm, ring, cache, OwnRecorder(trail))
    return Core(
        settings=settings,
        pool=pool,
        hsm=hsm,
        trail=trail,
        store=store,
        ring=ring,
        violations=violations,
        cache=cache,
        keeper=KeyKeeper(store, hsm, ring, cache, CallRecorder(trail)),
        own_keeper=own_keeper,
        platform=PlatformKeys(own_keeper, store, ring, rotation_days=settings.platform_rotation_days),
        limits=UseLimits(store),
    )


def _hsm(settings: QuantumSettings, provider: CryptoProvider, stack: AsyncExitStack) -> HsmClient:
    channel = hsm_channel(settings, settings.hsm_address)
    stack.push_async_callback(channel.close)
    hsm = HsmClient(channel, provider)
    stack.push_async_callback(hsm.close)
    return hsm


async def _probe_hsm(hsm: Hsm) -> dict[str, str | float]:
    """How the HSM is; a sealed one answers and is no outage of its own: `state` says it."""
    state = await hsm.status()
    return {
        "state": state.state,
        "backend": state.backend,
        "entropy": state.entropy,
        "modules_available": float(state.modules_available),
        "keys": float(state.key_count),
        "active_connections": float(state.active_connections),
        "error_rate": state.error_rate,
    }


def _start(core: Core, tasks: TaskOwner) -> None:
    settings, budget = core.settings, RestartBudget(restarts=5)
    upkeep = KeyUpkeep(
        UpkeepParts(core.store, core.hsm, core.ring, core.own_keeper, OwnRecorder(core.trail), core.platform),
        needed=[TEMPLATE_KEY] if settings.default_template_key else [],
        every_s=settings.upkeep_seconds,
        given_up_s=settings.given_up_seconds,
    )
    watch = HsmWatch(core.hsm, core.cache, uuid.uuid4().hex, every_s=_HSM_SECONDS)
    tasks.start("audit trail", core.trail.run, budget=budget)
    tasks.start("violations", core.violations.run, budget=budget)
    tasks.start("key notifications", core.ring.run, budget=budget)
    tasks.start("redis keys", core.cache.run, budget=budget)
    tasks.start("key upkeep", upkeep.run, budget=budget)
    tasks.start("hsm watch", watch.run, budget=budget)


def _measure(core: Core, telemetry: Telemetry) -> None:
    ring, cache = core.ring, core.cache
    gauges = {
        "keys_held": ("Keys in memory.", lambda: float(len(ring))),
        "keys_heard": ("1 while other services' changes of keys are heard.", lambda: float(ring.listening)),
        "keys_uncached": ("Keys that wait to be written to Redis.", lambda: float(cache.waiting)),
    }
    for name, (description, read) in gauges.items():
        telemetry.gauge(f"behaviorguard.quantum.{name}", "1", description, read)


def _bindings(core: Core) -> list[ServiceBinding]:
    templates = Templates(core.ring, core.hsm, core.limits, core.cache)
    keys = KeyService(KeyParts(core.keeper, core.store, core.violations, templates))
    return [
        ServiceBinding(KEYS, add_KeyServiceServicer_to_server, keys),
        ServiceBinding(TEMPLATES, add_TemplateServiceServicer_to_server, TemplateService(templates)),
    ]
