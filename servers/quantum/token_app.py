"""The token service put together, around what the quantum service's parts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servers.crypto.provider import provider_named
from servers.mesh.tasks import RestartBudget
from servers.quantum.jwks import TokenKeys
from servers.quantum.revocation_store import RevocationStore
from servers.quantum.revocations import Revocations
from servers.quantum.signatures import DetachedSignatures, SignatureVerifier
from servers.quantum.token_service import TokenParts, TokenService
from servers.quantum.tokens import Tokens

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from servers.mesh.tasks import TaskOwner
    from servers.mesh.telemetry import Telemetry
    from servers.quantum.app import Core


def token_service(core: Core, tasks: TaskOwner, stack: AsyncExitStack, telemetry: Telemetry) -> TokenService:
    """The service, its background work started.

    Args:
        core: what the services share.
        tasks: owner of the background work.
        stack: closes what is opened here.
        telemetry: shows what operators watch.
    """
    settings = core.settings
    dsn = settings.postgres_dsn.get_secret_value()
    store = RevocationStore(core.pool)
    revocations = Revocations(store, dsn, capacity=settings.revocations_held)
    keys = TokenKeys(core.platform)
    verifier = SignatureVerifier(provider_named(settings.crypto_provider), threads=settings.verify_threads)
    stack.callback(verifier.close)
    budget = RestartBudget(restarts=5)
    tasks.start("revocations", revocations.run, budget=budget)
    tasks.start("old revocations", revocations.forget, budget=budget)
    gauges = {
        "revocations_held": ("Ended sessions in memory.", lambda: float(len(revocations))),
        "revocations_in_memory": (
            "0 while each check of a token asks the database for revocations.",
            lambda: float(revocations.in_memory),
        ),
        "signatures_waiting": ("Signatures that wait to be checked.", lambda: float(verifier.waiting)),
    }
    for name, (description, read) in gauges.items():
        telemetry.gauge(f"behaviorguard.quantum.{name}", "1", description, read)
    return TokenService(
        TokenParts(
            tokens=Tokens(
                keys,
                core.hsm,
                verifier,
                revocations,
                issuer=settings.token_issuer,
                clock_skew_s=settings.token_clock_skew_seconds,
            ),
            keys=keys,
            signatures=DetachedSignatures(core.ring, core.limits, core.hsm, verifier),
            revocations=revocations,
            revocation_store=store,
            trail=core.trail,
        )
    )
