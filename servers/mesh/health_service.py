"""`grpc.health.v1` over a `HealthMonitor`: orchestrators and load balancers ask it whether to send calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.health import ServiceStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from grpc import aio

_Response = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Says for the server ("") and each of its services whether it is ready; all share the same dependencies."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._serving = False
        self._stopping = False
        self._changed = asyncio.Condition()

    async def set(self, status: ServiceStatus) -> None:
        """Take over the monitor's verdict: ready unless unhealthy."""
        async with self._changed:
            self._serving = status is not ServiceStatus.UNHEALTHY
            self._changed.notify_all()

    async def stop(self) -> None:
        """Not ready from now on, whatever the monitor says: the server drains."""
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()

    async def Check(  # noqa: N802 -- the contract's name
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> _Response:
        """The status now."""
        del context
        if request.service not in self._services:
            raise MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "this server has no such service")
        return self._answer()

    async def Watch(  # noqa: N802 -- the contract's name
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[_Response]:
        """The status now and at each change; SERVICE_UNKNOWN for a service that is not here."""
        del context
        known = request.service in self._services
        said = self._answer() if known else _Response(status=_Response.SERVICE_UNKNOWN)
        while True:
            yield said
            async with self._changed:
                while not known or self._answer().status == said.status:
                    await self._changed.wait()
                said = self._answer()

    def _answer(self) -> _Response:
        ready = self._serving and not self._stopping
        return _Response(status=_Response.SERVING if ready else _Response.NOT_SERVING)
