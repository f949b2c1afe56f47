"""A gateway on a free port, before a scripted threat service on a real mesh server, for the tests beside this file."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from behaviorguard.threat.v1 import threat_pb2, threat_service_pb2, threat_service_pb2_grpc
from redis.asyncio import Redis

from infra import pki as authority
from servers.gateway.server import GatewayServer
from servers.gateway.settings import GatewaySettings
from servers.mesh.context import CallContext, call_context
from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.limits import Unlimited
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.settings import MeshSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SERVICE = "behaviorguard.threat.v1.ThreatService"
OPERATOR_TOKEN = "an-operator-token-of-a-test-0123456789"


def alert(number: int, user_id: str = "") -> threat_service_pb2.WatchAlertsResponse:
    """An alert whose resume token is its number."""
    answer = threat_service_pb2.WatchAlertsResponse(type="threat_alert", resume_token=str(number))
    answer.data.user_id = user_id
    answer.data.threat_level = threat_pb2.THREAT_LEVEL_CRITICAL
    answer.data.threat_score = 0.93
    answer.data.timestamp.FromJsonString("2026-11-22T12:00:00Z")
    answer.data.recommendations.append("End the session.")
    answer.data.correlation_id = str(uuid.UUID(int=number))
    answer.data.reasons.add(feature="hold.mean", text="Keys are held longer.", deviation=2.5, modality="typing")
    return answer


@dataclass
class ScriptedThreatService(threat_service_pb2_grpc.ThreatServiceServicer):
    """Answers as told and remembers what it was asked."""

    calls: list[CallContext] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    error: Exception | None = None
    alerts: asyncio.Queue[threat_service_pb2.WatchAlertsResponse | Exception] = field(default_factory=asyncio.Queue)
    watchers: int = 0
    watching: asyncio.Event = field(default_factory=asyncio.Event)
    unwatched: asyncio.Event = field(default_factory=asyncio.Event)
    endless: bool = False
    sent: int = 0

    def _note(self, request: Any) -> None:
        self.calls.append(call_context())
        self.requests.append(request)
        if self.error is not None:
            raise self.error

    async def AnalyzeRealtime(self, request: Any, context: Any) -> threat_service_pb2.AnalyzeRealtimeResponse:  # noqa: N802 -- the contract's name
        self._note(request)
        return threat_service_pb2.AnalyzeRealtimeResponse(
            event_id=request.event_data.event_id or str(uuid.uuid4()),
            preliminary_risk=0.25,
            processing_status=threat_service_pb2.PROCESSING_STATUS_QUEUED_FOR_MORPHEUS,
        )

    async def StreamEvents(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        async for request in request_iterator:
            self._note(request)
            answer = threat_service_pb2.StreamEventsResponse()
            answer.accepted.event_id = request.event.event_data.event_id
            answer.accepted.preliminary_risk = 0.5
            yield answer

    async def WatchAlerts(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        self._note(request)
        self.watchers += 1
        self.watching.set()
        try:
            while self.endless:
                self.sent += 1
                yield alert(self.sent)
            while True:
                found = await self.alerts.get()
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            self.watchers -= 1
            self.unwatched.set()

    async def GetRiskProfile(self, request: Any, context: Any) -> threat_service_pb2.GetRiskProfileResponse:  # noqa: N802 -- the contract's name
        self._note(request)
        profile = threat_pb2.RiskProfile(user_id=request.user_id, risk_score=0.5)
        return threat_service_pb2.GetRiskProfileResponse(profile=profile)

    async def ListThreatEvents(self, request: Any, context: Any) -> threat_service_pb2.ListThreatEventsResponse:  # noqa: N802 -- the contract's name
        self._note(request)
        return threat_service_pb2.ListThreatEventsResponse()

    async def GetThreatEvent(self, request: Any, context: Any) -> threat_service_pb2.GetThreatEventResponse:  # noqa: N802 -- the contract's name
        self._note(request)
        raise MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "no such event")

    async def RecordVerdict(self, request: Any, context: Any) -> threat_service_pb2.RecordVerdictResponse:  # noqa: N802 -- the contract's name
        self._note(request)
        event = threat_pb2.ThreatEvent(event_id=request.event_id, verdict=request.verdict)
        return threat_service_pb2.RecordVerdictResponse(event=event)

    async def StartTrial(self, request: Any, context: Any) -> threat_service_pb2.StartTrialResponse:  # noqa: N802 -- the contract's name
        self._note(request)
        answer = threat_service_pb2.StartTrialResponse(user_id=str(uuid.uuid4()), session_id=str(uuid.uuid4()))
        answer.expires_at.GetCurrentTime()
        answer.expires_at.seconds += 1800
        return answer

    async def EraseBehavior(self, request: Any, context: Any) -> threat_service_pb2.EraseBehaviorResponse:  # noqa: N802 -- the contract's name
        self._note(request)
        return threat_service_pb2.EraseBehaviorResponse(events_erased=3)


@dataclass
class Stage:
    """A running gateway and what stands behind it."""

    threat: ScriptedThreatService
    settings: GatewaySettings
    server: GatewayServer
    client: httpx.AsyncClient

    @property
    def origin(self) -> str:
        """The gateway's own origin."""
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def socket_origin(self) -> str:
        """The same for WebSockets."""
        return f"ws://127.0.0.1:{self.server.port}"

    async def sign_in(self) -> dict[str, str]:
        """Starts a trial; the client keeps its cookie."""
        answer = await self.client.post("/api/threat/trials", json={})
        assert answer.status_code == 200, answer.text
        started: dict[str, str] = answer.json()
        return started

    def cookie(self) -> dict[str, str]:
        """Headers of a browser's socket from the gateway's own page."""
        handle = self.client.cookies["auth_token"]
        return {"Cookie": f"auth_token={handle}", "Origin": self.origin}


def event(**changes: Any) -> dict[str, Any]:
    """An event in the document's form, as a page with a session sends it."""
    return {
        "timestamp": "2026-11-22T12:00:00.000Z",
        "eventData": {
            "eventId": str(uuid.uuid4()),
            "behavioralMetrics": {
                "keystrokeDynamics": [{"keyClasses": ["letter_left"], "holdMs": [90.5], "flightMs": [0]}],
            },
        },
        **changes,
    }


@asynccontextmanager
async def open_stage(pki: Path, store: str, folder: Path, **changes: Any) -> AsyncIterator[Stage]:
    """A gateway with changed settings before a scripted service."""
    async with Redis.from_url(store) as redis:
        await redis.flushdb()  # budgets of the test before
    threat = ScriptedThreatService()
    mesh_settings = MeshSettings(service_name="threat", **_identity(pki, "threat"), drain_seconds=0.5)
    binding = ServiceBinding(SERVICE, threat_service_pb2_grpc.add_ThreatServiceServicer_to_server, threat)
    mesh = MeshServer(mesh_settings, [binding], limiter=Unlimited())
    port = await mesh.start()
    token = folder / "operator-token"
    token.touch(0o600)
    token.write_text(OPERATOR_TOKEN)
    settings = GatewaySettings(
        **{
            "port": 0,
            "redis_url": store,
            "threat_target": f"127.0.0.1:{port}",
            "quantum_target": "",
            "operator_token_file": token,
            "drain_seconds": 1.0,
            **_identity(pki, "gateway"),
            **changes,
        }
    )
    server = GatewayServer(settings)
    serving = asyncio.create_task(server.serve())
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
            yield Stage(threat, settings, server, client)
    finally:
        server.stop()
        try:
            await serving
        finally:
            await mesh.drain()


def _identity(pki: Path, service: str) -> dict[str, Any]:
    files = authority.identity(pki, service)
    return {"tls_ca": files.ca, "tls_cert": files.cert, "tls_key": files.key}
