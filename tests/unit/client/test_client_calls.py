"""The Python client against a real server over mutual TLS in this process."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.api.v1 import errors_pb2
from behaviorguard.client import AsyncBehaviorGuardClient, BehaviorGuardClient, ServiceError, Tls
from behaviorguard.threat.v1 import threat_service_pb2 as messages
from behaviorguard.threat.v1 import threat_service_pb2_grpc as services
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from infra import pki as authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

USER = "3f0c9a52-6f0e-4a58-9b3f-1f5f4b8f7c11"
ASK = messages.GetRiskProfileRequest(user_id=USER)


@dataclass
class Threat(services.ThreatServiceServicer):
    """Answers as it is told and remembers what it was asked."""

    refuse: list[status_pb2.Status] = field(default_factory=list)
    drop_after: list[int] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any], float | None]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    async def GetRiskProfile(self, request: messages.GetRiskProfileRequest, context: Any) -> Any:  # noqa: N802 - contract
        self.asked.append((request.user_id, dict(context.invocation_metadata()), context.time_remaining()))
        if self.refuse:
            await context.abort_with_status(rpc_status.to_status(self.refuse.pop(0)))
        answer = messages.GetRiskProfileResponse()
        answer.profile.risk_score = 0.25
        return answer

    async def EraseBehavior(self, request: messages.EraseBehaviorRequest, context: Any) -> Any:  # noqa: N802 - contract
        await asyncio.sleep(10)

    async def StartTrial(self, request: messages.StartTrialRequest, context: Any) -> Any:  # noqa: N802 - contract
        self.asked.append(("trial", {}, None))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    async def WatchAlerts(self, request: messages.WatchAlertsRequest, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - contract
        self.tokens.append(request.resume_token)
        start = int(request.resume_token or 0)
        stop = self.drop_after.pop(0) if self.drop_after else 100
        for position in range(start + 1, stop + 1):
            yield messages.WatchAlertsResponse(type="threat_alert", resume_token=str(position))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    async def StreamEvents(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802 - contract
        async for request in requests:
            accepted = messages.AnalyzeRealtimeResponse(event_id=request.event.event_data.event_id)
            yield messages.StreamEventsResponse(accepted=accepted)


def service(refuse: Sequence[status_pb2.Status] = (), drop_after: Sequence[int] = ()) -> Threat:
    return Threat(list(refuse), list(drop_after))  # type: ignore[abstract]  # the other RPCs answer UNIMPLEMENTED


@asynccontextmanager
async def serving(pki: Path, threat: Threat) -> AsyncIterator[tuple[str, Tls]]:
    """Serve with the threat service's certificate; yields the address and the operator's identity."""
    server_files = authority.issue(pki, "threat")
    client_files = authority.issue(pki, "operator")
    server = aio.server()
    services.add_ThreatServiceServicer_to_server(threat, server)
    credentials = grpc.ssl_server_credentials(
        [(server_files.key.read_bytes(), server_files.cert.read_bytes())], server_files.ca.read_bytes(), True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", Tls.from_files(client_files.ca, client_files.cert, client_files.key)
    finally:
        await server.stop(0)


def refusal(code: grpc.StatusCode, *details: Message) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message="that did not work", details=packed)


async def test_calls_carry_a_deadline_and_a_correlation_id(pki: Path) -> None:
    threat = service()
    async with serving(pki, threat) as (address, tls), AsyncBehaviorGuardClient(address, "threat", tls) as client:
        answer = await client.threat.GetRiskProfile(ASK)
        await client.threat.GetRiskProfile(ASK, metadata=(("x-correlation-id", "mine"),), timeout=1)
    assert answer.profile.risk_score == 0.25
    (_, first, remaining), (_, second, shorter) = threat.asked
    assert uuid.UUID(first["x-correlation-id"]).version == 4
    assert second["x-correlation-id"] == "mine"
    assert remaining is not None
    assert shorter is not None
    assert shorter < 2 < remaining < 6


async def test_refusals_are_typed(pki: Path) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="user_id", description="must be a UUID", reason="string.uuid")
    status = refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        error_details_pb2.ErrorInfo(reason="ERROR_REASON_RATE_LIMITED", domain="behaviorguard"),
        error_details_pb2.LocalizedMessage(locale="en", message="Wait a little."),
        bad,
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
    )
    threat = service(refuse=[status])
    async with serving(pki, threat) as (address, tls), AsyncBehaviorGuardClient(address, "threat", tls) as client:
        with pytest.raises(ServiceError) as caught:
            await client.threat.GetRiskProfile(ASK)
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited")
    assert (error.message, error.suggested_action) == ("that did not work", "Wait a little.")
    assert [(found.field, found.description) for found in error.field_violations] == [("user_id", "must be a UUID")]
    assert error.retry_after_s == 1.5
    assert error.correlation_id == threat.asked[0][1]["x-correlation-id"]
    assert isinstance(error.__cause__, grpc.RpcError)


async def test_reads_are_repeated_while_the_service_is_away(pki: Path) -> None:
    threat = service(refuse=[refusal(grpc.StatusCode.UNAVAILABLE)] * 2)
    async with serving(pki, threat) as (address, tls), AsyncBehaviorGuardClient(address, "threat", tls) as client:
        assert (await client.threat.GetRiskProfile(ASK)).profile.risk_score == 0.25
    assert len(threat.asked) == 3


async def test_calls_with_effects_are_not_repeated(pki: Path) -> None:
    threat = service()
    async with serving(pki, threat) as (address, tls), AsyncBehaviorGuardClient(address, "threat", tls) as client:
        with pytest.raises(ServiceError) as caught:
            await client.threat.StartTrial(messages.StartTrialRequest())
    assert caught.value.reason == "dependency_unavailable"
    assert caught.value.suggested_action
    assert len(threat.asked) == 1


async def test_a_deadline_is_a_typed_error_with_the_contracts_advice(pki: Path) -> None:
    async with serving(pki, service()) as (address, tls), AsyncBehaviorGuardClient(address, "threat", tls) as client:
        with pytest.raises(ServiceError) as caught:
            await client.threat.EraseBehavior(messages.EraseBehaviorRequest(user_id=USER), timeout=0.05)
    value = errors_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_name["ERROR_REASON_DEADLINE"]
    assert caught.value.reason == "deadline"
    assert caught.value.suggested_action == value.GetOptions().Extensions[errors_pb2.suggested_action]


async def test_watching_goes_on_behind_the_last_alert(pki: Path) -> None:
    threat = service(drop_after=[3, 3, 5])
    seen: list[str] = []
    async with serving(pki, threat) as (address, tls), AsyncBehaviorGuardClient(address, "threat", tls) as client:
        async for alert in client.watch_alerts(messages.WatchAlertsRequest()):
            seen.append(alert.resume_token)
            if len(seen) == 5:
                break
    assert seen == ["1", "2", "3", "4", "5"]
    assert threat.tokens == ["", "3", "3"]


async def test_a_stream_can_be_read_and_written_step_by_step(pki: Path) -> None:
    async with serving(pki, service()) as (address, tls), AsyncBehaviorGuardClient(address, "threat", tls) as client:
        call = client.threat.StreamEvents()
        request = messages.StreamEventsRequest()
        request.event.event_data.event_id = USER
        await call.write(request)
        answer = await call.read()
        await call.done_writing()
        assert isinstance(answer, messages.StreamEventsResponse)
        assert answer.accepted.event_id == USER


async def test_another_workload_at_the_address_is_refused(pki: Path) -> None:
    async with serving(pki, service()) as (address, tls), AsyncBehaviorGuardClient(address, "quantum", tls) as client:
        with pytest.raises(ServiceError) as caught:
            await client.threat.GetRiskProfile(ASK, timeout=2)
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_blocking_calls_are_typed_and_stream(pki: Path) -> None:
    threat = service(refuse=[refusal(grpc.StatusCode.NOT_FOUND)], drop_after=[2])

    def block(address: str, tls: Tls) -> tuple[ServiceError, float, list[str], ServiceError]:
        tokens: list[str] = []
        with BehaviorGuardClient(address, "threat", tls) as client:
            with pytest.raises(ServiceError) as refused:
                client.threat.GetRiskProfile(ASK)
            score = client.threat.GetRiskProfile(ASK).profile.risk_score
            with pytest.raises(ServiceError) as dropped:
                tokens.extend(alert.resume_token for alert in client.threat.WatchAlerts(messages.WatchAlertsRequest()))
        return refused.value, score, tokens, dropped.value

    async with serving(pki, threat) as (address, tls):
        refused, score, tokens, dropped = await asyncio.to_thread(block, address, tls)
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert score == 0.25
    assert tokens == ["1", "2"]
    assert dropped.reason == "dependency_unavailable"


def test_missing_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIORGUARD_TLS_CA", "ca.crt")
    monkeypatch.delenv("BEHAVIORGUARD_TLS_CERT", raising=False)
    monkeypatch.delenv("BEHAVIORGUARD_TLS_KEY", raising=False)
    with pytest.raises(ValueError, match="BEHAVIORGUARD_TLS_CERT, BEHAVIORGUARD_TLS_KEY"):
        Tls.from_environment()


def test_the_key_is_not_shown() -> None:
    assert "hidden" not in repr(Tls(b"ca", b"certificate", b"hidden"))
