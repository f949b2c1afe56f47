"""Another service's audited calls: one record each in the trail, and no success without it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from behaviorguard.threat.v1 import threat_service_pb2_grpc as threat_grpc

from infra import pki
from servers.mesh.audit import AUDIT_SERVICE, RemoteAudit
from servers.mesh.channels import open_channel
from servers.mesh.server import MeshServer, ServiceBinding
from tests.support.audit import chain, holds
from tests.support.mesh import (
    ANNA,
    BELA,
    SERVICE,
    FakeThreat,
    Identities,
    Running,
    acting_for,
    reason_of,
    refused,
    settings_for,
)
from tests.support.quantum import running_quantum
from tests.support.threat import eventually

if TYPE_CHECKING:
    from tests.support.quantum import QuantumStores, StandInHsm

ERASE = threat.EraseBehaviorRequest(user_id=ANNA)


class Waiting(FakeThreat):
    """Waits for ever when told to."""

    waits = False

    async def EraseBehavior(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        if self.waits:
            await self.release.wait()
        return threat.EraseBehaviorResponse()


async def test_records_reach_the_trail_before_the_answer_leaves(
    stores: QuantumStores, hsm: StandInHsm, organization: str
) -> None:
    settings = settings_for(pki.issue(stores.pki, "threat"))
    who = (*acting_for(ANNA, "self", organization), ("x-bg-source-ip", "192.0.2.9"), ("x-bg-user-agent", "A browser"))
    async with AsyncExitStack() as trail:
        quantum = await trail.enter_async_context(running_quantum(stores, hsm))
        target = f"localhost:{quantum.port}"
        async with open_channel(settings, target, "quantum", contract=[AUDIT_SERVICE], own_name=True) as channel:
            fake = Waiting()
            binding = ServiceBinding(SERVICE, threat_grpc.add_ThreatServiceServicer_to_server, fake)
            server = MeshServer(settings, [binding], audit=RemoteAudit(channel, within_seconds=1.0))
            running = Running(server, fake, await server.start(), Identities(stores.pki))
            try:
                stub = running.stub("gateway")
                await stub.EraseBehavior(ERASE, timeout=5, metadata=who)
                async with refused(grpc.StatusCode.PERMISSION_DENIED):
                    await stub.EraseBehavior(threat.EraseBehaviorRequest(user_id=BELA), timeout=5, metadata=who)
                fake.waits = True
                async with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
                    await stub.EraseBehavior(ERASE, timeout=0.2, metadata=who)
                fake.waits = False
                await eventually(lambda: len(chain(stores.owner_dsn, organization)) == 3)
                await trail.aclose()
                async with refused(grpc.StatusCode.UNAVAILABLE) as caught:
                    await stub.EraseBehavior(ERASE, timeout=5, metadata=who)
                assert reason_of(caught[0]) == "ERROR_REASON_AUDIT_UNAVAILABLE"
            finally:
                await running.close()
    records = chain(stores.owner_dsn, organization)
    holds(records)
    assert [(record.operation, record.result, record.service_id) for record in records] == [
        ("call", "success", "threat"),
        ("call", "failure", "threat"),
        ("call", "failure", "threat"),
    ]
    assert records[0].operation_data == {"rpc": "behaviorguard.threat.v1.ThreatService/EraseBehavior"}
    assert (records[0].user_id, records[0].source_ip, records[0].user_agent) == (ANNA, "192.0.2.9", "A browser")
    assert records[1].error_details == "ERROR_REASON_SCOPE_NOT_ALLOWED"
    assert records[2].error_details == "DEADLINE_EXCEEDED"
