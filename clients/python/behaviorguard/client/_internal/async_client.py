"""The client for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import grpc
from behaviorguard.client._internal.async_calls import AsyncCalls
from behaviorguard.client._internal.errors import ServiceError
from behaviorguard.client._internal.transport import Tls, channel_options
from behaviorguard.identity.v1.biometric_service_pb2_grpc import BiometricServiceStub
from behaviorguard.identity.v1.document_service_pb2_grpc import DocumentServiceStub
from behaviorguard.identity.v1.organization_service_pb2_grpc import OrganizationServiceStub
from behaviorguard.identity.v1.session_service_pb2_grpc import SessionServiceStub
from behaviorguard.identity.v1.user_service_pb2_grpc import UserServiceStub
from behaviorguard.mobile.v1.mobile_service_pb2_grpc import MobileServiceStub
from behaviorguard.monitoring.v1.health_pb2_grpc import HealthServiceStub
from behaviorguard.monitoring.v1.monitoring_service_pb2_grpc import MonitoringServiceStub
from behaviorguard.quantum.v1.audit_service_pb2_grpc import AuditServiceStub
from behaviorguard.quantum.v1.key_service_pb2_grpc import KeyServiceStub
from behaviorguard.quantum.v1.template_service_pb2_grpc import TemplateServiceStub
from behaviorguard.quantum.v1.token_service_pb2_grpc import TokenServiceStub
from behaviorguard.threat.v1.threat_service_pb2 import WatchAlertsRequest, WatchAlertsResponse
from behaviorguard.threat.v1.threat_service_pb2_grpc import ThreatServiceStub
from grpc import aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0


class AsyncBehaviorGuardClient:
    """Calls one workload's services; use it with `async with`, from one event loop.

    The stubs are attributes; which of them the workload serves is a matter of the workload (`threat` serves `threat`).
    Every call raises `ServiceError` alone.
    """

    def __init__(self, address: str, workload: str, tls: Tls, *, timeout_s: float = 5.0) -> None:
        """Set the client up; it connects with the first call.

        Args:
            address: "host:port".
            workload: the service that must be there ("threat"): its certificate has to name it.
            tls: who we are.
            timeout_s: deadline of calls with a single answer that set none.
        """
        self._channel = aio.secure_channel(address, tls.credentials(), options=channel_options(workload))
        calls = AsyncCalls(self._channel, timeout_s)
        self.audit = AuditServiceStub(calls)
        self.biometrics = BiometricServiceStub(calls)
        self.documents = DocumentServiceStub(calls)
        self.health = HealthServiceStub(calls)
        self.keys = KeyServiceStub(calls)
        self.mobile = MobileServiceStub(calls)
        self.monitoring = MonitoringServiceStub(calls)
        self.organizations = OrganizationServiceStub(calls)
        self.sessions = SessionServiceStub(calls)
        self.templates = TemplateServiceStub(calls)
        self.threat = ThreatServiceStub(calls)
        self.tokens = TokenServiceStub(calls)
        self.users = UserServiceStub(calls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close()

    async def watch_alerts(
        self, request: WatchAlertsRequest, *, patience_s: float = 300.0
    ) -> AsyncIterator[WatchAlertsResponse]:
        """Follow alerts without end: after a dropped connection it goes on behind the last alert seen.

        The connection is tried again with pauses of 0.2 s to 10 s. End it by leaving the loop.

        Args:
            request: which alerts.
            patience_s: how long the service may be away before its absence is raised.

        Raises:
            ServiceError: the service refuses, or was away for too long.
        """
        wanted = WatchAlertsRequest()
        wanted.CopyFrom(request)
        clock = asyncio.get_running_loop().time
        pause, away_since = _FIRST_PAUSE_S, clock()
        while True:
            try:
                async for alert in self.threat.WatchAlerts(wanted):
                    wanted.resume_token = alert.resume_token
                    pause, away_since = _FIRST_PAUSE_S, clock()
                    yield alert
            except ServiceError as error:
                # A reader that was too slow was let go: it goes on from its token like one that lost its connection.
                gone = error.code is grpc.StatusCode.UNAVAILABLE or error.reason == "overloaded"
                if not gone or clock() - away_since > patience_s:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
