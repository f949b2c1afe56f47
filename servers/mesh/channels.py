"""Channels to other services: mTLS, deadlines, retries, circuit breaker, correlation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpc import aio

    from servers.mesh.context import EndUser
    from servers.mesh.settings import MeshSettings


def open_channel(settings: MeshSettings, target: str, service_name: str) -> aio.Channel:
    """A channel to `target` ("host:port"), whose certificate must be that of workload `service_name`."""
    raise NotImplementedError


def on_behalf_of(end_user: EndUser | None, *, client: str = "") -> tuple[tuple[str, str], ...]:
    """The metadata with which the gateway tells a service whose call it passes on (x-bg-user-id, ...).

    Args:
        end_user: who is signed in; None for somebody who is not.
        client: opaque digest of the client's address, against which calls of people who are not signed in are counted.
    """
    raise NotImplementedError
