"""One record for each audited call, allowed or refused, and no success without it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat

from servers.mesh.audit import Outcome, audit_unavailable
from servers.mesh.context import CallContext, call_context
from servers.mesh.errors import ErrorReason, MeshError
from tests.support.mesh import ANNA, BELA, FakeThreat, acting_for, reason_of, refused

if TYPE_CHECKING:
    from collections.abc import Callable

ERASE = threat.EraseBehaviorRequest(user_id=ANNA)


@dataclass
class Kept:
    """A sink that remembers, or fails."""

    records: list[tuple[CallContext, Outcome]] = field(default_factory=list)
    failure: Exception | None = None
    written: asyncio.Event = field(default_factory=asyncio.Event)

    async def record(self, call: CallContext, outcome: Outcome) -> None:
        if self.failure is not None:
            raise self.failure
        self.records.append((call, outcome))
        self.written.set()


class Noting(FakeThreat):
    """Notes particulars; fails, waits or writes its own record when told to."""

    recorded = False
    waits = False

    async def EraseBehavior(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        notes = call_context().audit
        notes.data["rows"] = 3
        notes.recorded = self.recorded
        if self.waits:
            self.entered.set()
            await self.release.wait()
        if self.failure is not None:
            raise self.failure
        return threat.EraseBehaviorResponse()


async def test_an_audited_success_leaves_one_record_with_its_notes(serve: Callable[..., Any]) -> None:
    kept = Kept()
    running = await serve(servicer=Noting(), server={"audit": kept})
    await running.stub("gateway").EraseBehavior(ERASE, timeout=5, metadata=acting_for())
    [(call, outcome)] = kept.records
    assert (call.caller, call.actor, call.audit.data) == ("gateway", ANNA, {"rows": 3})
    assert (outcome.code, outcome.reason, outcome.success) == ("OK", "", True)
    assert 0 < outcome.seconds < 5


async def test_refusals_leave_a_record_with_their_reason(serve: Callable[..., Any]) -> None:
    kept = Kept()
    running = await serve(servicer=Noting(), server={"audit": kept})
    for caller, request, metadata, code, reason in (
        ("pipeline", ERASE, (), grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED"),
        ("gateway", ERASE, acting_for(BELA), grpc.StatusCode.PERMISSION_DENIED, "SCOPE_NOT_ALLOWED"),
        ("gateway", threat.EraseBehaviorRequest(user_id="x"), (), grpc.StatusCode.UNAUTHENTICATED, "SESSION_REQUIRED"),
        (
            "operator",
            threat.EraseBehaviorRequest(user_id="x"),
            (),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        ),
    ):
        kept.records.clear()
        async with refused(code):
            await running.stub(caller).EraseBehavior(request, timeout=5, metadata=metadata)
        [(_, outcome)] = kept.records
        assert (outcome.code, outcome.reason) == (code.name, f"ERROR_REASON_{reason}")
        assert outcome.message


async def test_a_success_whose_record_cannot_be_written_fails(serve: Callable[..., Any]) -> None:
    running = await serve(servicer=Noting(), server={"audit": Kept(failure=audit_unavailable("no room"))})
    async with refused(grpc.StatusCode.UNAVAILABLE) as caught:
        await running.stub("operator").EraseBehavior(ERASE, timeout=5)
    assert reason_of(caught[0]) == "ERROR_REASON_AUDIT_UNAVAILABLE"


async def test_a_fault_of_the_sink_fails_the_call_without_saying_what_it_was(serve: Callable[..., Any]) -> None:
    running = await serve(servicer=Noting(), server={"audit": Kept(failure=RuntimeError("the inner workings"))})
    async with refused(grpc.StatusCode.UNAVAILABLE) as caught:
        await running.stub("operator").EraseBehavior(ERASE, timeout=5)
    assert "inner" not in (caught[0].details() or "")


async def test_a_refusal_keeps_its_own_reason_when_its_record_cannot_be_written(serve: Callable[..., Any]) -> None:
    servicer = Noting()
    servicer.failure = MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "nobody")
    running = await serve(servicer=servicer, server={"audit": Kept(failure=audit_unavailable("no room"))})
    async with refused(grpc.StatusCode.NOT_FOUND) as caught:
        await running.stub("operator").EraseBehavior(ERASE, timeout=5)
    assert reason_of(caught[0]) == "ERROR_REASON_NOT_FOUND"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_method_that_wrote_its_record_itself_gets_no_second(serve: Callable[..., Any], fails: bool) -> None:
    kept, servicer = Kept(), Noting()
    servicer.recorded = True
    running = await serve(servicer=servicer, server={"audit": kept})
    if fails:
        servicer.failure = MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "nobody")
        async with refused(grpc.StatusCode.NOT_FOUND):
            await running.stub("operator").EraseBehavior(ERASE, timeout=5)
    else:
        await running.stub("operator").EraseBehavior(ERASE, timeout=5)
    assert kept.records == []


async def test_a_call_that_its_caller_gave_up_leaves_a_record(serve: Callable[..., Any]) -> None:
    kept, servicer = Kept(), Noting()
    servicer.waits = True
    running = await serve(servicer=servicer, server={"audit": kept})
    calling = running.stub("operator").EraseBehavior(ERASE, timeout=5)
    await asyncio.wait_for(servicer.entered.wait(), 5)
    calling.cancel()
    await asyncio.wait_for(kept.written.wait(), 5)
    [(_, outcome)] = kept.records
    assert (outcome.code, outcome.reason) == ("CANCELLED", "")


async def test_calls_that_are_not_audited_never_reach_the_sink(serve: Callable[..., Any]) -> None:
    running = await serve(server={"audit": Kept(failure=RuntimeError("never called"))})
    await running.stub("operator").StartTrial(threat.StartTrialRequest(), timeout=5)
