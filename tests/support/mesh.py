"""A real mesh server around a servicer without a domain, and callers with identities of an authority made for the
test run."""
# ruff: noqa: N802 -- RPC names come from the contract

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.threat.v1 import threat_service_pb2 as threat
from behaviorguard.threat.v1 import threat_service_pb2_grpc as threat_grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

from infra import pki
from servers.mesh.context import CallContext, call_context
from servers.mesh.settings import MeshSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from servers.mesh.server import MeshServer

SERVICE = "behaviorguard.threat.v1.ThreatService"
ANNA = "11111111-1111-4111-8111-111111111111"
BELA = "22222222-2222-4222-8222-222222222222"
SESSION = "33333333-3333-4333-8333-333333333333"
ORGANIZATION = "44444444-4444-4444-8444-444444444444"


class FakeThreat(threat_grpc.ThreatServiceServicer):
    """Answers without a domain; remembers what the mesh told it."""

    def __init__(self) -> None:
        self.calls: list[CallContext] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.failure: BaseException | None = None

    async def AnalyzeRealtime(self, request: Any, context: Any) -> Any:
        self.calls.append(call_context())
        if self.failure is not None:
            raise self.failure
        return threat.AnalyzeRealtimeResponse(event_id=request.event_data.event_id, preliminary_risk=0.5)

    async def StreamEvents(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(call_context())
        async for request in request_iterator:
            yield threat.StreamEventsResponse(
                accepted=threat.AnalyzeRealtimeResponse(event_id=request.event.event_data.event_id)
            )

    async def WatchAlerts(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(call_context())
        yield threat.WatchAlertsResponse(type="threat_alert", resume_token="1")
        self.entered.set()
        await self.release.wait()
        yield threat.WatchAlertsResponse(type="threat_alert", resume_token="2")

    async def GetRiskProfile(self, request: Any, context: Any) -> Any:
        self.calls.append(call_context())
        self.entered.set()
        await self.release.wait()
        return threat.GetRiskProfileResponse()

    async def ListThreatEvents(self, request: Any, context: Any) -> Any:
        self.calls.append(call_context())
        return threat.ListThreatEventsResponse()

    async def GetThreatEvent(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def EraseBehavior(self, request: Any, context: Any) -> Any:
        return threat.EraseBehaviorResponse()

    async def RecordVerdict(self, request: Any, context: Any) -> Any:
        return threat.RecordVerdictResponse()

    async def StartTrial(self, request: Any, context: Any) -> Any:
        self.calls.append(call_context())
        return threat.StartTrialResponse(user_id=ANNA)


@dataclass
class Identities:
    folder: Path

    def of(self, service: str) -> pki.Identity:
        return pki.issue(self.folder, service)


@dataclass
class Running:
    """A server that serves the fake."""

    server: MeshServer
    servicer: FakeThreat
    port: int
    identities: Identities
    _open: list[aio.Channel] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def channel(self, caller: str, identity: pki.Identity | None = None) -> aio.Channel:
        files = identity or self.identities.of(caller)
        credentials = grpc.ssl_channel_credentials(
            self.identities.of("threat").ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        channel = aio.secure_channel(self.target, credentials, [("grpc.enable_retries", 0)])
        self._open.append(channel)
        return channel

    def stub(self, caller: str) -> Any:
        return threat_grpc.ThreatServiceStub(self.channel(caller))

    async def close(self) -> None:
        for channel in self._open:
            await channel.close()
        await self.server.drain()


def settings_for(identity: pki.Identity, service: str = "threat", **more: Any) -> MeshSettings:
    defaults: dict[str, Any] = {"drain_seconds": 5.0}
    return MeshSettings(
        service_name=service,
        tls_ca=identity.ca,
        tls_cert=identity.cert,
        tls_key=identity.key,
        **(defaults | more),
    )


@asynccontextmanager
async def refused(code: grpc.StatusCode) -> AsyncIterator[list[aio.AioRpcError]]:
    """The calls inside are refused with `code`; the list holds the error afterwards."""
    caught: list[aio.AioRpcError] = []
    with pytest.raises(aio.AioRpcError) as error:
        yield caught
    caught.append(error.value)
    assert error.value.code() is code, error.value.details()


def event(user_id: str = ANNA, **changes: Any) -> threat.AnalyzeRealtimeRequest:
    """A valid event."""
    request = threat.AnalyzeRealtimeRequest(user_id=user_id, timestamp=Timestamp(seconds=1_800_000_000))
    request.event_data.session_id = SESSION
    request.event_data.behavioral_metrics.session_duration = 10
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def acting_for(user_id: str = ANNA, scope: str = "self", organization_id: str = ORGANIZATION) -> tuple[Any, ...]:
    """What the gateway says about the person behind a call."""
    return (
        ("x-bg-user-id", user_id),
        ("x-bg-organization-id", organization_id),
        ("x-bg-scope", scope),
    )


def reason_of(error: aio.AioRpcError) -> str:
    """The reason in the error's `google.rpc.ErrorInfo`."""
    return str(detail_of(error, error_details_pb2.ErrorInfo()).reason)


def detail_of(error: aio.AioRpcError, detail: Any) -> Any:
    """The detail of this type in the error; fails when there is none."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError is a call here
    assert status is not None, f"no details in {error.code()}: {error.details()}"
    for packed in status.details:
        if packed.Is(detail.DESCRIPTOR):
            packed.Unpack(detail)
            return detail
    raise AssertionError(f"no {detail.DESCRIPTOR.name} in {status}")
