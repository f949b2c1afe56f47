"""The audit trail's parts put together, for the service's `app.py`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from behaviorguard.quantum.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server

from servers.crypto.algorithms import Algorithm
from servers.mesh.server import ServiceBinding
from servers.mesh.tasks import RestartBudget
from servers.quantum.alarms import Alarms
from servers.quantum.audit_reader import AuditReader
from servers.quantum.audit_service import AuditParts, AuditService
from servers.quantum.audit_trail import AuditTrail
from servers.quantum.audit_watch import Streams
from servers.quantum.checkpoints import Checkpointer
from servers.quantum.security_events import SecurityEvents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.mesh.tasks import TaskOwner
    from servers.mesh.telemetry import Telemetry
    from servers.quantum.app import Core
    from servers.quantum.settings import QuantumSettings

SERVICE_NAME: Final = "behaviorguard.quantum.v1.AuditService"
CHECKPOINT_KEY: Final = ("audit", Algorithm.ML_DSA_65)
"""The platform's own key for checkpoints: service id and algorithm."""
_EVENT_LAG: Final = 1000


def audit_trail(settings: QuantumSettings) -> AuditTrail:
    """The trail with its alarms; its `run` must run as a task of the service."""
    return AuditTrail(
        settings.postgres_dsn.get_secret_value(),
        queue=settings.audit_queue,
        within_seconds=settings.audit_seconds,
        in_transaction=Alarms().check,
    )


def audit_service(core: Core, tasks: TaskOwner, telemetry: Telemetry) -> ServiceBinding:
    """AuditService, with its tasks started (checkpoints, followers of the streams) and measured."""
    settings = core.settings
    reader, events = AuditReader(core.pool), SecurityEvents(core.pool)
    checkpoints = Checkpointer(
        reader,
        core.hsm,
        partial(core.platform.ensure, *CHECKPOINT_KEY),
        events,
        every_records=settings.checkpoint_records,
        every_seconds=settings.checkpoint_seconds,
    )
    record_streams = Streams(reader.heads, readers=settings.watch_readers, lag=settings.watch_lag)
    event_streams = Streams(events.heads, readers=settings.watch_readers, lag=_EVENT_LAG)

    def appended(heads: Mapping[str, int]) -> None:
        checkpoints.on_appended(heads)
        record_streams.poke(heads)
        event_streams.poke(heads)

    core.trail.on_appended(appended)
    budget = RestartBudget(restarts=5)
    tasks.start("audit checkpoints", checkpoints.run, budget=budget)
    tasks.start("audit followers", record_streams.run, budget=budget)
    tasks.start("security event followers", event_streams.run, budget=budget)
    _measure(telemetry, core.trail, checkpoints, record_streams, event_streams)
    service = AuditService(AuditParts(core.trail, reader, events, checkpoints, record_streams, event_streams))
    return ServiceBinding(SERVICE_NAME, add_AuditServiceServicer_to_server, service)


def _measure(
    telemetry: Telemetry, trail: AuditTrail, checkpoints: Checkpointer, records: Streams, events: Streams
) -> None:
    gauges = {
        "audit_waiting": ("Audit records that wait for the database.", lambda: float(trail.waiting)),
        "audit_written": ("Audit records written since the start.", lambda: float(trail.written)),
        "audit_transactions": ("Transactions that wrote audit records.", lambda: float(trail.transactions)),
        "checkpoints_made": ("Checkpoints signed since the start.", lambda: float(checkpoints.made)),
        "checkpoints_failing": ("1 while checkpoints cannot be made.", lambda: float(checkpoints.failing)),
        "audit_followers": ("Followers of audit records.", lambda: float(records.readers)),
        "security_event_followers": ("Followers of security events.", lambda: float(events.readers)),
    }
    for name, (description, read) in gauges.items():
        telemetry.gauge(f"behaviorguard.quantum.{name}", "1", description, read)
