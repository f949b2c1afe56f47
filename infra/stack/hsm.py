"""The embedded HSM: initialised at the first start, unsealed at each, with a share that lies beside it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from infra import pki
from infra.stack.errors import StackError
from infra.stack.ports import LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path

    from infra.settings import StackSettings

MODULES: Final = ("module-1", "module-2", "module-3")
JOURNAL: Final = "journal.log"
"""File that a module has from the first ceremony on."""
SHARE_FILE: Final = "hsm-share"
"""File in the stack's secrets with the only share of the embedded HSM."""


def module_folders(settings: StackSettings) -> list[Path]:
    """The folders that keep the replicas of sealed keys."""
    return [settings.data / "hsm" / name for name in MODULES]


def share_file(settings: StackSettings) -> Path:
    """Where the only share of the embedded HSM lies."""
    return settings.secrets / SHARE_FILE


def has_master_key(settings: StackSettings) -> bool:
    """Tell whether the embedded HSM was initialised, as far as its folders show."""
    return any((folder / JOURNAL).exists() for folder in module_folders(settings))


def notice(settings: StackSettings) -> str:
    """What whoever starts the stack must know about its HSM."""
    if settings.hsm_unseal == "manual":
        return "HSM: it starts sealed; unseal it with its shares: behaviorguard hsm unseal"
    return (
        f"HSM: a software store, not hardware, and its only share lies beside it in {share_file(settings)}: "
        "for trying out, no protection for keys that matter (docs/runbook.md, HSM)"
    )


def describe(settings: StackSettings, seconds: float = 3.0) -> str:
    """How the HSM is now, in its own words; asks it, and says so when it does not answer within `seconds`."""
    from behaviorguard.hsm.v1 import hsm_service_pb2 as pb  # noqa: PLC0415 -- as below

    from infra.hsm import hsm_operator  # noqa: PLC0415
    from servers.mesh.errors import MeshError  # noqa: PLC0415

    async def work() -> str:
        identity = pki.identity(settings.pki, "operator")
        async with hsm_operator(f"{LOOPBACK}:{settings.hsm_port}", identity) as operator, asyncio.timeout(seconds):
            found = await operator.status()
        failed = [source.name for source in found.entropy_sources if source.health == pb.ENTROPY_HEALTH_FAILED]
        away = [module.name for module in found.modules if not module.available]
        amiss = [f"entropy fails: {', '.join(failed)}"] * bool(failed) + [f"away: {', '.join(away)}"] * bool(away)
        state = pb.SealState.Name(found.state).removeprefix("SEAL_STATE_").lower()
        words = [state, f"{found.key_count} keys", *amiss, found.backend_notice]
        return "; ".join(words)

    try:
        return asyncio.run(work())
    except (MeshError, TimeoutError, OSError):
        return "does not answer"


def unseal(settings: StackSettings, seconds: float) -> None:
    """Make the master key of an HSM that has none, and unseal it.

    Raises:
        StackError: it cannot be unsealed.
    """
    # The supervisor's other parts need none of this, and it takes half a second to import: the HSM starts meanwhile.
    from infra.hsm import ensure_unsealed, hsm_operator  # noqa: PLC0415
    from servers.mesh.errors import MeshError  # noqa: PLC0415

    async def work() -> None:
        identity = pki.identity(settings.pki, "operator")
        async with hsm_operator(f"{LOOPBACK}:{settings.hsm_port}", identity) as operator:
            await ensure_unsealed(operator, share_file(settings), within_seconds=seconds)

    try:
        asyncio.run(work())
    except MeshError as error:
        raise StackError(f"the HSM cannot be unsealed: {error.message}", error.suggested_action) from error
    except FileNotFoundError as error:
        raise StackError(
            f"the HSM has a master key, and its share in {share_file(settings)} is gone",
            "put the share back, or set BEHAVIORGUARD_HSM_UNSEAL=manual and run behaviorguard hsm unseal; "
            f"when no key was ever made in it, remove {settings.data / 'hsm'}",
        ) from error
    except FileExistsError as error:
        raise StackError(
            f"the HSM has no master key, and {share_file(settings)} holds a share of another one",
            f"put the HSM's folders back into {settings.data / 'hsm'}, or move that file away to begin anew",
        ) from error
