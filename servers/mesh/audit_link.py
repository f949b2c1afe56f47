"""The way of a service's audit records to the trail that the quantum service keeps."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from servers.mesh.audit import AUDIT_SERVICE, LogAudit, RemoteAudit
from servers.mesh.channels import open_channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from servers.mesh.audit import AuditSink
    from servers.mesh.settings import MeshSettings

TRAIL_KEEPER: Final = "quantum"
"""The workload that keeps the trail."""


@asynccontextmanager
async def open_audit(settings: MeshSettings) -> AsyncIterator[AuditSink]:
    """The sink that the settings name: the trail where `audit_target` is set, else the log.

    Raises:
        OperatorError: a certificate file cannot be read.
    """
    if not settings.audit_target:
        yield LogAudit()
        return
    # In the service's own name: the record itself says on whose behalf the call was.
    channel = open_channel(settings, settings.audit_target, TRAIL_KEEPER, contract=[AUDIT_SERVICE], own_name=True)
    async with channel:
        yield RemoteAudit(channel)
