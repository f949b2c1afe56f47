"""The server that every service runs in: mTLS, the mesh's checks around each RPC, health, reflection, graceful
drain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from servers.mesh.health import HealthMonitor
    from servers.mesh.limits import RateLimiter
    from servers.mesh.settings import MeshSettings
    from servers.mesh.tasks import TaskOwner
    from servers.mesh.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """A service of the contract and the object that implements it."""

    full_name: str
    """`behaviorguard.threat.v1.ThreatService`."""
    add_to_server: Callable[[Any, Any], None]
    """The generated `add_..._to_server`."""
    servicer: object
    """The implementation."""
    self_checked: frozenset[str] = field(default=frozenset())
    """RPCs with a request stream that check each message themselves with `await call_context().check(message)`,
    because a refused
    message must not end the stream (`StreamEvents`). Going on without having checked a message ends the call as
    INTERNAL."""


class MeshServer:
    """One gRPC server; see `run` for a whole process."""

    def __init__(
        self,
        settings: MeshSettings,
        bindings: Sequence[ServiceBinding],
        *,
        health: HealthMonitor | None = None,
        telemetry: Telemetry | None = None,
        limiter: RateLimiter | None = None,
        tasks: TaskOwner | None = None,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> int:
        """Listen and serve; returns the port."""
        raise NotImplementedError

    async def wait(self) -> None:
        """Return when the server has stopped."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Stop accepting, let calls in progress finish within `settings.drain_seconds`, then stop."""
        raise NotImplementedError


def run(app_factory: Callable[[], AbstractAsyncContextManager[MeshServer]]) -> int:
    """Run a service's process on uvloop until SIGTERM or SIGINT, or until one of its background tasks dies; returns
    the exit status.

    `app_factory` is an async context manager that opens what the service needs, yields its server, and closes
    everything after the drain.
    """
    raise NotImplementedError
