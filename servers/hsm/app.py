"""The HSM put together: settings in, server out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from behaviorguard.hsm.v1.hsm_service_pb2_grpc import add_HsmServiceServicer_to_server

from servers.crypto.provider import provider_named
from servers.hsm.audit import JournalAudit
from servers.hsm.ceremony import Ceremony, State
from servers.hsm.channels import Channels
from servers.hsm.engine import Engine
from servers.hsm.entropy import QRNG, EntropyPool, FileSource, OsSource
from servers.hsm.forwarding import AuditForwarder
from servers.hsm.hardening import harden
from servers.hsm.journal import Journal
from servers.hsm.keystore import KeyStore
from servers.hsm.modules import QUORUM, Modules, ModulesInUseError, QuorumError
from servers.hsm.rates import OperationRates
from servers.hsm.sealed import DamagedError
from servers.hsm.service import HsmParts, HsmService
from servers.hsm.settings import HsmSettings
from servers.hsm.upkeep import Upkeep
from servers.hsm.vaults import SoftwareVault
from servers.mesh.audit import AUDIT_SERVICE
from servers.mesh.channels import open_channel
from servers.mesh.errors import OperatorError
from servers.mesh.health import DependencyCheck, HealthMonitor
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.tasks import RestartBudget, TaskOwner
from servers.mesh.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from servers.crypto.provider import CryptoProvider
    from servers.hsm.entropy import EntropySource
    from servers.hsm.vaults import Vault
    from servers.mesh.limits import RateLimiter

SERVICE_NAME: Final = "behaviorguard.hsm.v1.HsmService"
_BUDGET: Final = RestartBudget(restarts=5)


@asynccontextmanager
async def hsm_app(
    settings: HsmSettings | None = None, *, limiter: RateLimiter | None = None
) -> AsyncIterator[MeshServer]:
    """Everything that the HSM needs, opened and closed around its server (which is not started).

    Args:
        settings: None reads them from the environment.
        limiter: None counts requests in this process.

    Raises:
        pydantic.ValidationError: a setting is missing or wrong.
        OperatorError: the modules are in use or not whole.
        servers.crypto.errors.ProviderUnavailableError: the library of primitives is not installed.
    """
    settings = settings or HsmSettings()  # type: ignore[call-arg]  # the rest comes from the environment
    if settings.hsm_harden:
        harden()
    async with AsyncExitStack() as stack:
        parts = _parts(settings, stack)
        _load(parts)
        tasks = TaskOwner()
        stack.push_async_callback(tasks.stop)
        if settings.quantum_address:
            await _forward(parts, stack, tasks)
        upkeep = Upkeep(
            parts.entropy,
            parts.journal,
            parts.store,
            parts.ceremony,
            parts.writers,
            every_s=settings.upkeep_seconds,
            keys=settings.scrub_keys,
        )
        tasks.start("upkeep", upkeep.run, budget=_BUDGET)
        telemetry = Telemetry(settings)
        _measure(telemetry, parts)
        yield MeshServer(
            settings,
            [ServiceBinding(SERVICE_NAME, add_HsmServiceServicer_to_server, HsmService(parts))],
            health=HealthMonitor(
                settings.service_name, _checks(parts), interval_seconds=settings.health_interval_seconds
            ),
            telemetry=telemetry,
            limiter=limiter,
            tasks=tasks,
            audit=JournalAudit(parts.journal, parts.writers),
        )


def _parts(settings: HsmSettings, stack: AsyncExitStack) -> HsmParts:
    provider = provider_named(settings.crypto_provider)
    writers = ThreadPoolExecutor(settings.write_threads, thread_name_prefix="hsm-write")
    workers = ThreadPoolExecutor(settings.work_threads, thread_name_prefix="hsm-work")
    ceremonies = ThreadPoolExecutor(2, thread_name_prefix="hsm-ceremony")
    modules = Modules(settings.hsm_modules)
    stack.callback(modules.close)
    journal = Journal(modules)
    store = KeyStore(modules, journal, capacity=settings.keys_at_most)
    entropy = EntropyPool(_sources(settings))
    engine = Engine(store, entropy, provider, keys_in_use=settings.keys_in_use)
    vault = _vault(settings, provider)
    ceremony = Ceremony(journal, store, engine, vault, entropy, provider, shares_seconds=settings.shares_seconds)
    stack.callback(engine.lock)
    stack.callback(ceremonies.shutdown)
    stack.callback(writers.shutdown)
    stack.callback(workers.shutdown)
    channels = Channels(provider, per_caller=settings.channels_per_caller, seconds=settings.channel_seconds)
    rates = OperationRates()
    return HsmParts(
        settings,
        vault,
        modules,
        journal,
        entropy,
        store,
        engine,
        ceremony,
        channels,
        rates,
        writers,
        workers,
        ceremonies,
    )


def _load(parts: HsmParts) -> None:
    """Read what is on the modules; blocks, which nobody is there to notice yet."""
    try:
        parts.modules.open()
        parts.ceremony.load()
    except ModulesInUseError as error:
        raise OperatorError(str(error)) from None
    except (DamagedError, QuorumError) as error:
        raise OperatorError(
            f"{error}: bring the modules' disks back, or restore from shares and backup into three empty folders"
        ) from None
    parts.entropy.start()


async def _forward(parts: HsmParts, stack: AsyncExitStack, tasks: TaskOwner) -> None:
    settings = parts.settings
    channel = open_channel(settings, settings.quantum_address, "quantum", contract=(AUDIT_SERVICE,))
    stack.push_async_callback(channel.close)
    forwarder = AuditForwarder(channel, parts.modules, parts.writers, every_s=settings.upkeep_seconds)
    forwarder.resume(parts.journal.read())
    parts.journal.listener = forwarder.take
    tasks.start("audit forwarder", forwarder.run, budget=_BUDGET)


def _sources(settings: HsmSettings) -> list[EntropySource]:
    sources: list[EntropySource] = [OsSource()]
    if settings.entropy_qrng is not None:
        sources.append(FileSource(QRNG.lower(), settings.entropy_qrng, settings.entropy_bits))
    if settings.entropy_file is not None:
        sources.append(FileSource("file", settings.entropy_file, settings.entropy_bits))
    return sources


def _vault(settings: HsmSettings, provider: CryptoProvider) -> Vault:
    if settings.hsm_backend == "software" or settings.hsm_pkcs11_library is None:
        return SoftwareVault()
    try:
        from servers.hsm.pkcs11_vault import Pkcs11Vault  # noqa: PLC0415 -- an extra that not everybody installs
    except ImportError:
        raise OperatorError("the PKCS#11 back end needs python-pkcs11: pip install 'behaviorguard[pkcs11]'") from None
    return Pkcs11Vault(settings.hsm_pkcs11_library, settings.hsm_pkcs11_token, settings.hsm_pin_file, provider)


def _checks(parts: HsmParts) -> list[DependencyCheck]:
    async def modules() -> Mapping[str, str | float]:
        available = sum(module.available for module in parts.modules.all)
        if available < QUORUM:
            raise OperatorError("fewer than two of the HSM's modules are there")
        return {"available": float(available)}

    async def unsealed() -> Mapping[str, str | float]:
        if parts.ceremony.state is not State.UNSEALED:
            raise OperatorError(f"the HSM is {parts.ceremony.state}")
        return {"keys": float(len(parts.store.index))}

    async def entropy() -> Mapping[str, str | float]:
        failed = [state.name for state in parts.entropy.states() if not state.healthy]
        if failed:
            raise OperatorError("an entropy source fails its health tests")
        return {}

    # A sealed HSM answers: whoever unseals it must reach it, and others are told what is missing.
    return [
        DependencyCheck("modules", modules),
        DependencyCheck("unsealed", unsealed, required=False),
        DependencyCheck("entropy", entropy, required=False),
    ]


def _measure(telemetry: Telemetry, parts: HsmParts) -> None:
    gauges = {
        "behaviorguard.hsm.keys": ("Key versions inside.", lambda: float(len(parts.store.index))),
        "behaviorguard.hsm.unsealed": (
            "1 while the HSM can work.",
            lambda: float(parts.ceremony.state is State.UNSEALED),
        ),
        "behaviorguard.hsm.channels": ("Open channels.", lambda: float(len(parts.channels))),
        "behaviorguard.hsm.token_replays": (
            "Tokens that came a second time.",
            lambda: float(parts.channels.replays),
        ),
        "behaviorguard.hsm.repaired_replicas": (
            "Replicas repaired since the start.",
            lambda: float(sum(module.repaired for module in parts.modules.all)),
        ),
        "behaviorguard.hsm.entropy_failed": (
            "Entropy sources that fail now.",
            lambda: float(sum(not state.healthy for state in parts.entropy.states())),
        ),
        "behaviorguard.hsm.operations": ("Operations since the start.", lambda: float(parts.rates.total)),
    }
    for name, (description, read) in gauges.items():
        telemetry.gauge(name, "1", description, read)
