"""A service's audited calls end in the trail that its settings name, or are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from behaviorguard.quantum.v1 import audit_service_pb2, audit_service_pb2_grpc
from behaviorguard.threat.v1 import threat_service_pb2 as threat

from infra.stack.ports import free_port
from servers.mesh.audit import AUDIT_SERVICE, LogAudit
from servers.mesh.audit_link import open_audit
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding
from tests.support.mesh import ANNA, ORGANIZATION, acting_for, reason_of, refused, settings_for

if TYPE_CHECKING:
    from tests.support.mesh import Identities, Running

ERASE = threat.EraseBehaviorRequest(user_id=ANNA)


class Trail(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps records."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    async def AppendAuditRecord(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        self.records.append(request)
        return audit_service_pb2.AppendAuditRecordResponse()


async def test_an_audited_call_is_recorded_in_the_trail_and_refused_without_it(
    serve: Any, identities: Identities
) -> None:
    trail = Trail()  # type: ignore[abstract]  # the RPCs that no test here calls
    binding = ServiceBinding(AUDIT_SERVICE, audit_service_pb2_grpc.add_AuditServiceServicer_to_server, trail)
    quantum = MeshServer(
        settings_for(identities.of("quantum"), "quantum", drain_seconds=0.5), [binding], limiter=Unlimited()
    )
    target = f"127.0.0.1:{await quantum.start()}"
    async with open_audit(settings_for(identities.of("threat"), audit_target=target)) as audit:
        running: Running = await serve(server={"audit": audit})
        stub = running.stub("gateway")
        await stub.EraseBehavior(ERASE, timeout=5, metadata=acting_for(ANNA))
        (record,) = trail.records
        assert record.method == "behaviorguard.threat.v1.ThreatService/EraseBehavior"
        assert (record.user_id, record.organization_id) == (ANNA, ORGANIZATION)
        assert record.result == audit_service_pb2.OPERATION_RESULT_SUCCESS
        await quantum.drain()
        async with refused(grpc.StatusCode.UNAVAILABLE) as errors:
            await stub.EraseBehavior(ERASE, timeout=10, metadata=acting_for(ANNA))
        assert reason_of(errors[0]) == "ERROR_REASON_AUDIT_UNAVAILABLE"
        await stub.ListThreatEvents(  # not audited
            threat.ListThreatEventsRequest(), timeout=5, metadata=acting_for(ANNA, "analyst")
        )


async def test_the_log_takes_the_records_where_no_trail_is_named(identities: Identities) -> None:
    async with open_audit(settings_for(identities.of("threat"))) as audit:
        assert isinstance(audit, LogAudit)


async def test_a_trail_that_was_never_there_refuses_within_its_deadline(serve: Any, identities: Identities) -> None:
    target = f"127.0.0.1:{free_port()}"
    async with open_audit(settings_for(identities.of("threat"), audit_target=target)) as audit:
        running: Running = await serve(server={"audit": audit})
        async with refused(grpc.StatusCode.UNAVAILABLE) as errors:
            await running.stub("gateway").EraseBehavior(ERASE, timeout=10, metadata=acting_for(ANNA))
        assert reason_of(errors[0]) == "ERROR_REASON_AUDIT_UNAVAILABLE"
