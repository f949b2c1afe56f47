"""Client of BehaviorGuard's services: typed stubs over mutual TLS, with deadlines, retries of reads and typed errors.

`AsyncBehaviorGuardClient` for asyncio, `BehaviorGuardClient` for blocking code; both raise `ServiceError` alone.
"""

from behaviorguard.client._internal.async_client import AsyncBehaviorGuardClient
from behaviorguard.client._internal.errors import FieldViolation, ServiceError, service_error
from behaviorguard.client._internal.sync_client import BehaviorGuardClient
from behaviorguard.client._internal.transport import Tls

__all__ = [
    "AsyncBehaviorGuardClient",
    "BehaviorGuardClient",
    "FieldViolation",
    "ServiceError",
    "Tls",
    "service_error",
]
