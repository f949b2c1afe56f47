"""The contract's services that outsiders may have use for."""

from __future__ import annotations

from behaviorguard.identity.v1 import (
    biometric_service_pb2,
    document_service_pb2,
    organization_service_pb2,
    session_service_pb2,
    user_service_pb2,
)
from behaviorguard.mobile.v1 import mobile_service_pb2
from behaviorguard.monitoring.v1 import health_pb2, monitoring_service_pb2
from behaviorguard.quantum.v1 import (
    audit_service_pb2,
    key_service_pb2,
    template_service_pb2,
    token_service_pb2,
)
from behaviorguard.threat.v1 import threat_service_pb2

CONTRACT = tuple(
    service
    for module in (
        audit_service_pb2,
        biometric_service_pb2,
        document_service_pb2,
        health_pb2,
        key_service_pb2,
        mobile_service_pb2,
        monitoring_service_pb2,
        organization_service_pb2,
        session_service_pb2,
        template_service_pb2,
        threat_service_pb2,
        token_service_pb2,
        user_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Their descriptors."""
