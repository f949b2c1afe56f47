"""AuditService over real sockets and stores."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from behaviorguard.quantum.v1 import key_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.alarms import Alarms
from servers.quantum.audit_chain import CHECKPOINT_CONTEXT, Checkpoint, checkpoint_message
from tests.support.audit import chain, entry, holds
from tests.support.mesh import reason_of, refused
from tests.support.quantum import ORGANIZATION, StandInHsm, master_key, person, running_quantum
from tests.support.threat import eventually

if TYPE_CHECKING:
    from tests.support.audit import Trails
    from tests.support.quantum import QuantumStores, RunningQuantum

MADE = "SELECT 1 FROM quantum_audit.checkpoints WHERE organization_id = %s"


def append(organization_id: str, **changes: Any) -> pb.AppendAuditRecordRequest:
    """A record of another service's call."""
    values: dict[str, Any] = {
        "method": "behaviorguard.threat.v1.ThreatService/RecordVerdict",
        "organization_id": organization_id,
        "correlation_id": str(uuid.uuid4()),
        "operation_timestamp": Timestamp(seconds=1_790_000_000, nanos=123_456_789),
        "result": pb.OPERATION_RESULT_SUCCESS,
        "processing_time_ms": 7,
    }
    return pb.AppendAuditRecordRequest(**(values | changes))


async def fill(running: RunningQuantum, organization_id: str, count: int) -> None:
    """Records of `threat`."""
    stub = running.audit("threat")
    for _number in range(count):
        await stub.AppendAuditRecord(append(organization_id), timeout=5)


async def take(stream: Any, count: int) -> list[Any]:
    """The next messages of a stream."""
    async with asyncio.timeout(10):
        return [await stream.read() for _ in range(count)]


async def test_every_call_leaves_one_record(stores: QuantumStores, hsm: StandInHsm, organization: str) -> None:
    async with running_quantum(stores, hsm) as running:
        keys = running.keys("gateway")
        made = await keys.GenerateKey(master_key(organization), timeout=5, metadata=person(organization))
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            wrong = master_key(organization, algorithm="RSA-2048")
            await keys.GenerateKey(wrong, timeout=5, metadata=person(organization))
        async with refused(grpc.StatusCode.NOT_FOUND):
            missing = key_service_pb2.GetKeyRequest(key_id=str(uuid.uuid4()))
            await keys.GetKey(missing, timeout=5, metadata=person(organization))
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await keys.GenerateKey(
                master_key(str(uuid.uuid4())), timeout=5, metadata=person(organization, user_id=str(uuid.uuid4()))
            )
    records = chain(stores.owner_dsn, organization)
    holds(records)
    assert [(record.operation, record.result) for record in records] == [
        ("keygen", "success"),
        ("keygen", "failure"),
        ("manage", "failure"),
        ("keygen", "failure"),
    ]
    assert records[0].key_id == made.key_id
    assert [record.error_details.partition(":")[0] for record in records[1:]] == [
        "ERROR_REASON_INVALID_FIELD",
        "ERROR_REASON_NOT_FOUND",
        "ERROR_REASON_SCOPE_NOT_ALLOWED",
    ]
    assert {record.service_id for record in records} == {"gateway"}


async def test_another_services_record(stores: QuantumStores, hsm: StandInHsm, organization: str) -> None:
    user = str(uuid.uuid4())
    async with running_quantum(stores, hsm) as running:
        request = append(
            organization,
            user_id=user,
            result=pb.OPERATION_RESULT_FAILURE,
            reason="ERROR_REASON_NOT_FOUND",
            source_ip="2001:DB8::1",
            user_agent="A browser",
        )
        answer = await running.audit("threat").AppendAuditRecord(request, timeout=5)
        ceremony = append(organization, method="behaviorguard.hsm.v1.HsmService/Unseal")
        await running.audit("hsm").AppendAuditRecord(ceremony, timeout=5)
        await running.audit("threat").AppendAuditRecord(ceremony, timeout=5)
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await running.audit("pipeline").AppendAuditRecord(request, timeout=5)
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await running.audit("threat").AppendAuditRecord(append(organization, result=0), timeout=5)
        listed = await running.audit("gateway").ListAuditRecords(
            pb.ListAuditRecordsRequest(user_id=user), timeout=5, metadata=person(organization)
        )
    records = chain(stores.owner_dsn, organization)
    holds(records)
    assert [record.operation for record in records] == ["call", "ceremony", "call"]
    [record] = listed.records
    assert record.audit_id == answer.audit_id == records[0].audit_id
    assert (record.service_id, record.user_id, record.source_ip) == ("threat", user, "2001:db8::1")
    assert record.operation_data["rpc"] == "behaviorguard.threat.v1.ThreatService/RecordVerdict"
    assert record.operation_timestamp.ToNanoseconds() == 1_790_000_000_123_456_000


async def test_lists_are_paged_and_filtered_newest_first(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str
) -> None:
    begin, key = datetime(2026, 1, 1, tzinfo=UTC), str(uuid.uuid4())
    async with trails() as trail:
        for number in range(9):
            await trail.commit(
                entry(
                    organization,
                    operation=("encrypt", "keygen", "sign")[number % 3],
                    result="failure" if number == 4 else "success",
                    key_id=key if number % 2 else "",
                    occurred_at=begin + timedelta(hours=number),
                    data={"number": number, "list": [1, "two", None, True]},
                )
            )
    async with running_quantum(stores, hsm) as running:
        stub, who = running.audit("gateway"), person(organization)

        async def listed(**wanted: Any) -> list[int]:
            found = await stub.ListAuditRecords(pb.ListAuditRecordsRequest(**wanted), timeout=5, metadata=who)
            return [record.sequence for record in found.records]

        assert await listed() == [9, 8, 7, 6, 5, 4, 3, 2, 1]
        assert await listed(operation=pb.QUANTUM_OPERATION_KEYGEN) == [8, 5, 2]
        assert await listed(result=pb.OPERATION_RESULT_FAILURE) == [5]
        assert await listed(key_id=key.upper()) == [8, 6, 4, 2]
        start, end = Timestamp(), Timestamp()
        start.FromDatetime(begin + timedelta(hours=2))
        end.FromDatetime(begin + timedelta(hours=4))
        assert await listed(start_time=start, end_time=end) == [4, 3]

        pages, token = [], ""
        while True:
            page = await stub.ListAuditRecords(
                pb.ListAuditRecordsRequest(page_size=4, page_token=token), timeout=5, metadata=who
            )
            pages.append([record.sequence for record in page.records])
            token = page.next_page_token
            if not token:
                break
        assert pages == [[9, 8, 7, 6], [5, 4, 3, 2], [1]]

        first = await stub.ListAuditRecords(pb.ListAuditRecordsRequest(page_size=1), timeout=5, metadata=who)
        for other in (
            {"operation": pb.QUANTUM_OPERATION_SIGN, "page_token": first.next_page_token},
            {"page_token": first.next_page_token[::-1]},
            {"page_token": "nonsense"},
        ):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
                await stub.ListAuditRecords(pb.ListAuditRecordsRequest(**other), timeout=5, metadata=who)
            assert reason_of(caught[0]) == "ERROR_REASON_INVALID_TOKEN"
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            request = pb.ListAuditRecordsRequest(page_token=first.next_page_token)
            await stub.ListAuditRecords(request, timeout=5, metadata=person(str(uuid.uuid4())))


async def test_organizations_see_nothing_of_each_other(
    stores: QuantumStores, hsm: StandInHsm, organization: str
) -> None:
    stranger = str(uuid.uuid4())
    async with running_quantum(stores, hsm, checkpoint_records=1) as running:
        keys = running.keys("gateway")
        for _ in range(6):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT):
                wrong = master_key(organization, algorithm="RSA-2048")
                await keys.GenerateKey(wrong, timeout=5, metadata=person(organization))
        stub, theirs, ours = running.audit("gateway"), person(stranger), person(organization)
        [record, *_] = (await stub.ListAuditRecords(pb.ListAuditRecordsRequest(), timeout=5, metadata=ours)).records
        [event] = (await stub.ListSecurityEvents(pb.ListSecurityEventsRequest(), timeout=5, metadata=ours)).events
        assert not (await stub.ListAuditRecords(pb.ListAuditRecordsRequest(), timeout=5, metadata=theirs)).records
        assert not (await stub.ListSecurityEvents(pb.ListSecurityEventsRequest(), timeout=5, metadata=theirs)).events
        assert not (await stub.ListCheckpoints(pb.ListCheckpointsRequest(), timeout=5, metadata=theirs)).checkpoints
        async with refused(grpc.StatusCode.NOT_FOUND):
            await stub.GetAuditProof(pb.GetAuditProofRequest(audit_id=record.audit_id), timeout=5, metadata=theirs)
        resolve = pb.ResolveSecurityEventRequest(event_id=event.event_id, response_action="Seen.")
        async with refused(grpc.StatusCode.NOT_FOUND):
            await stub.ResolveSecurityEvent(resolve, timeout=5, metadata=theirs)
        assert not event.HasField("resolved_at")
        closed = (await stub.ResolveSecurityEvent(resolve, timeout=5, metadata=ours)).event
        assert closed.response_action == "Seen."
        assert closed.HasField("resolved_at")
        still = pb.ListSecurityEventsRequest(open_only=True)
        assert not (await stub.ListSecurityEvents(still, timeout=5, metadata=ours)).events

        for named in (
            stub.ListAuditRecords(pb.ListAuditRecordsRequest(organization_id=organization), timeout=5, metadata=theirs),
            stub.ListCheckpoints(pb.ListCheckpointsRequest(organization_id=organization), timeout=5, metadata=theirs),
        ):
            async with refused(grpc.StatusCode.PERMISSION_DENIED):
                await named
        exporting = running.audit("monitoring").ExportAudit(
            pb.ExportAuditRequest(organization_id=organization), timeout=5
        )
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await exporting.read()

        following = stub.WatchAuditRecords(pb.WatchAuditRecordsRequest(), metadata=ours)
        metadata = dict(await following.initial_metadata())
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            taken = pb.WatchAuditRecordsRequest(resume_token=metadata["x-bg-resume-token"])
            await stub.WatchAuditRecords(taken, metadata=theirs).read()
        following.cancel()


async def test_a_follower_misses_nothing_across_connections(
    stores: QuantumStores, hsm: StandInHsm, organization: str
) -> None:
    async with running_quantum(stores, hsm) as running, running_quantum(stores, hsm) as elsewhere:
        who = person(organization)
        following = running.audit("gateway").WatchAuditRecords(pb.WatchAuditRecordsRequest(), metadata=who)
        begin = dict(await following.initial_metadata())["x-bg-resume-token"]
        await fill(running, organization, 2)
        await fill(elsewhere, organization, 1)
        first = await take(following, 3)
        following.cancel()
        await fill(elsewhere, organization, 2)
        resumed = elsewhere.audit("gateway").WatchAuditRecords(
            pb.WatchAuditRecordsRequest(resume_token=first[-1].resume_token), metadata=who
        )
        await fill(running, organization, 1)
        rest = await take(resumed, 3)
        again = elsewhere.audit("gateway").WatchAuditRecords(
            pb.WatchAuditRecordsRequest(resume_token=begin), metadata=who
        )
        everything = await take(again, 6)
        resumed.cancel()
        again.cancel()
    assert [each.record.sequence for each in (*first, *rest)] == [1, 2, 3, 4, 5, 6]
    assert [each.record.sequence for each in everything] == [1, 2, 3, 4, 5, 6]


async def test_a_follower_that_is_too_slow_is_told_to_resume(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str
) -> None:
    async with running_quantum(stores, hsm, watch_lag=50) as running:
        who = person(organization)
        following = running.audit("gateway").WatchAuditRecords(pb.WatchAuditRecordsRequest(), metadata=who)
        await following.initial_metadata()
        await fill(running, organization, 1)
        [live] = await take(following, 1)
        # Far more than what the connection's windows hold: the server waits for its reader.
        async with trails() as trail:
            big = {"text": "x" * 4000}
            await asyncio.gather(*(trail.commit(entry(organization, data=big)) for _ in range(1500)))
        seen = [live]
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED), asyncio.timeout(10):
            while True:
                seen.append(await following.read())
        last = seen[-1]
        assert len(seen) < 1500
        resumed = running.audit("gateway").WatchAuditRecords(
            pb.WatchAuditRecordsRequest(resume_token=last.resume_token), metadata=who
        )
        [following_on] = await take(resumed, 1)
        resumed.cancel()
    assert following_on.record.sequence == last.record.sequence + 1


async def test_a_proof_leads_from_a_record_to_a_signature(
    stores: QuantumStores, hsm: StandInHsm, organization: str
) -> None:
    async with running_quantum(stores, hsm, checkpoint_records=4, checkpoint_seconds=3600) as running:
        who, stub = person(organization), running.audit("gateway")
        await fill(running, organization, 2)
        first = chain(stores.owner_dsn, organization)[0]
        asking = pb.GetAuditProofRequest(audit_id=first.audit_id.upper())
        async with refused(grpc.StatusCode.FAILED_PRECONDITION) as caught:
            await stub.GetAuditProof(asking, timeout=5, metadata=who)
        assert reason_of(caught[0]) == "ERROR_REASON_WRONG_STATE"
        await fill(running, organization, 9)
        await eventually(lambda: stores.rows(MADE, organization))
        found = await stub.ListCheckpoints(pb.ListCheckpointsRequest(), timeout=5, metadata=who)
        proof = await stub.GetAuditProof(asking, timeout=5, metadata=who)
        public = next(iter(await _public_keys(running)))
    previous = proof.record.record_hash
    for record in proof.following:
        assert record.previous_hash == previous
        previous = record.record_hash
    assert previous == proof.checkpoint.record_hash
    oldest = found.checkpoints[-1]
    assert proof.checkpoint.sequence == oldest.sequence == proof.record.sequence + len(proof.following)
    verified = provider_named("cryptography").verifying_key(Algorithm.ML_DSA_65, public)
    message = checkpoint_message(
        Checkpoint(
            organization,
            oldest.sequence,
            oldest.record_hash,
            oldest.created_at.ToDatetime(UTC),
            oldest.key_id,
            oldest.key_version,
            "ML-DSA-65",
        )
    )
    assert verified.verify(message, oldest.signature, CHECKPOINT_CONTEXT)


async def test_an_export_holds_the_chain_and_ends_with_a_checkpoint(stores: QuantumStores, hsm: StandInHsm) -> None:
    async with running_quantum(stores, hsm, checkpoint_records=10, checkpoint_seconds=3600) as running:
        await fill(running, ORGANIZATION, 25)
        entries = [each async for each in running.audit("operator").ExportAudit(pb.ExportAuditRequest(), timeout=10)]
        part = [
            each
            async for each in running.audit("operator").ExportAudit(
                pb.ExportAuditRequest(first_sequence=20), timeout=10
            )
        ]
    sequences = [each.record.sequence for each in entries if each.HasField("record")]
    assert sequences == list(range(1, sequences[-1] + 1))
    assert entries[-1].WhichOneof("entry") == "checkpoint"
    assert entries[-1].checkpoint.sequence == sequences[-1]
    places = {each.record.sequence: n for n, each in enumerate(entries) if each.HasField("record")}
    for number, each in enumerate(entries):
        if each.HasField("checkpoint"):
            assert number == places[each.checkpoint.sequence] + 1
    assert part[0].record.sequence == 20
    exports = [r for r in chain(stores.owner_dsn, ORGANIZATION) if "ExportAudit" in str(r.operation_data)]
    assert [record.result for record in exports[-2:]] == ["success", "success"]


async def test_a_sealed_hsm_does_not_stop_exports_or_records(stores: QuantumStores, hsm: StandInHsm) -> None:
    hsm.failure = MeshError(ErrorReason.ERROR_REASON_HSM_SEALED, "sealed")
    async with running_quantum(stores, hsm) as running:
        await fill(running, ORGANIZATION, 1)
        entries = [each async for each in running.audit("operator").ExportAudit(pb.ExportAuditRequest(), timeout=10)]
    hsm.failure = None
    assert any(each.HasField("record") for each in entries)


async def _public_keys(running: RunningQuantum) -> list[bytes]:
    listed = await running.keys("operator").ListKeys(key_service_pb2.ListKeysRequest(page_size=500), timeout=5)
    return [key.public_key for key in listed.keys if key.service_id == "audit"]


async def test_security_events_are_streamed_and_resumed(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails, organization: str
) -> None:
    failed = {"operation": "keygen", "result": "failure", "reason": "ERROR_REASON_INTERNAL"}
    who = person(organization, "analyst")

    async def provoke(number: int) -> None:
        """The first makes a "high" event, the second a "medium" one."""
        async with trails(in_transaction=Alarms().check) as trail:
            many = [failed] * 6 if number == 1 else [{"operation": "manage"}] * 101
            await asyncio.gather(*(trail.commit(entry(organization, **each)) for each in many))

    async with running_quantum(stores, hsm) as running, running_quantum(stores, hsm) as elsewhere:
        stub = running.audit("gateway")
        everything = stub.WatchSecurityEvents(pb.WatchSecurityEventsRequest(), metadata=who)
        await everything.initial_metadata()
        urgent = stub.WatchSecurityEvents(
            pb.WatchSecurityEventsRequest(minimum_severity=pb.SEVERITY_HIGH), metadata=who
        )
        await urgent.initial_metadata()
        await provoke(1)
        [first] = await take(everything, 1)
        [high] = await take(urgent, 1)
        everything.cancel()
        await provoke(2)
        resumed = elsewhere.audit("gateway").WatchSecurityEvents(
            pb.WatchSecurityEventsRequest(resume_token=first.resume_token), metadata=who
        )
        [second] = await take(resumed, 1)
        listed = await stub.ListSecurityEvents(
            pb.ListSecurityEventsRequest(page_size=1, minimum_severity=pb.SEVERITY_MEDIUM), timeout=5, metadata=who
        )
        rest = await stub.ListSecurityEvents(
            pb.ListSecurityEventsRequest(
                page_size=1, minimum_severity=pb.SEVERITY_MEDIUM, page_token=listed.next_page_token
            ),
            timeout=5,
            metadata=who,
        )
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await stub.ListSecurityEvents(
                pb.ListSecurityEventsRequest(), timeout=5, metadata=person(organization, "self")
            )
        resumed.cancel()
        urgent.cancel()
    assert first.event.event_type == high.event.event_type == pb.SECURITY_EVENT_TYPE_KEY_GENERATION_FAILURES
    assert (first.event.severity, first.event.event_data["count"]) == (pb.SEVERITY_HIGH, 6)
    assert second.event.event_type == pb.SECURITY_EVENT_TYPE_EXCESSIVE_KEY_REQUESTS
    assert [each.event_id for each in (*listed.events, *rest.events)] == [second.event.event_id, first.event.event_id]
