"""The client for blocking code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import grpc
from behaviorguard.client._internal.sync_calls import SyncCalls
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
from behaviorguard.threat.v1.threat_service_pb2_grpc import ThreatServiceStub

if TYPE_CHECKING:
    from types import TracebackType


class BehaviorGuardClient:
    """Calls one workload's services; use it with `with`, from any thread.

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
        self._channel = grpc.secure_channel(address, tls.credentials(), options=channel_options(workload))
        calls = SyncCalls(self._channel, timeout_s)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and the connection."""
        self._channel.close()
