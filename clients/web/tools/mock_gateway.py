"""A stand-in for the gateway while the page is being worked on: its endpoints, and a toy score instead of the models.

Run it from the repository's root with `.venv/bin/python -m clients.web.tools.mock_gateway`; it serves the built page on
http://127.0.0.1:3100. Nothing is kept.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

from servers.gateway.edge import SECURITY_HEADERS

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from starlette.websockets import WebSocket

PORT = 3100
NEEDED = 12
THRESHOLDS = ((0.9, "critical"), (0.7, "threat"), (0.3, "suspicious"), (0.0, "normal"))


@dataclass
class Person:
    """Somebody on trial."""

    session_id: str
    rhythms: list[list[float]] = field(default_factory=list)
    mouse_samples: int = 0
    risk: float = 0.5
    alerts: list[dict[str, Any]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def score(self, metrics: dict[str, Any]) -> tuple[float, float]:
        """A toy: how many usual spreads holds and flights are away, squeezed into 0 to 1. Returns (score, spreads)."""
        for pattern in metrics["keystrokeDynamics"]:
            rhythm = [*pattern["holdMs"], *pattern["flightMs"]]
            known = [other for other in self.rhythms if len(other) == len(rhythm)]
            away = _spreads(rhythm, known)
            score = 1 / (1 + math.exp(-2.2 * (away - 2.2)))
            if len(self.rhythms) < NEEDED or score < THRESHOLDS[2][0]:
                self.rhythms.append(rhythm)
            return score, away
        self.mouse_samples += 1
        return 0.12, 0.6


def _spreads(rhythm: list[float], known: list[list[float]]) -> float:
    if len(known) < 2:
        return 1.4
    columns = list(zip(*known, strict=True))
    return statistics.fmean(
        abs(value - statistics.fmean(column)) / (statistics.stdev(column) + 12.0)
        for value, column in zip(rhythm, columns, strict=True)
    )


class Mock:
    """The endpoints."""

    def __init__(self) -> None:
        self._people: dict[str, Person] = {}

    async def start(self, _: Request) -> JSONResponse:
        """`POST /api/threat/trials`."""
        user, session = str(uuid.uuid4()), str(uuid.uuid4())
        self._people[user] = Person(session)
        expires = datetime.now(UTC) + timedelta(hours=1)
        return JSONResponse({"userId": user, "sessionId": session, "expiresAt": expires.isoformat()})

    async def profile(self, request: Request) -> JSONResponse:
        """`GET` and `DELETE /api/threat/risk-profiles/{user_id}`."""
        person = self._people.get(request.path_params["user_id"])
        if person is None:
            problem = {
                "error": "Unknown user.",
                "errorCode": "ERROR_REASON_UNKNOWN_USER",
                "suggestedAction": "Start again.",
            }
            return JSONResponse(problem | {"correlationId": str(uuid.uuid4())}, 404)
        if request.method == "DELETE":
            del self._people[request.path_params["user_id"]]
            return JSONResponse({"eventsErased": str(len(person.alerts))})
        baseline = {
            "typingSamples": len(person.rhythms),
            "mouseSamples": person.mouse_samples,
            "samplesNeeded": NEEDED,
            "enrolling": max(len(person.rhythms), person.mouse_samples) < NEEDED,
        }
        return JSONResponse({"profile": {"riskScore": person.risk, "baseline": baseline}})

    async def analyze(self, request: Request) -> JSONResponse:
        """`POST /api/threat/analyze-realtime`."""
        return JSONResponse(await self._accept(await request.json()))

    async def stream(self, socket: WebSocket) -> None:
        """`/api/threat/stream`."""
        await socket.accept()
        try:
            while True:
                frame = await socket.receive_json()
                await socket.send_json({"accepted": await self._accept(frame["event"])})
        except WebSocketDisconnect:
            return

    async def watch(self, socket: WebSocket) -> None:
        """`/ws`."""
        await socket.accept()
        request = await socket.receive_json()
        person = self._people[request["userIds"][0]]
        telling = asyncio.create_task(self._tell(socket, person, request.get("resumeToken")))
        with suppress(WebSocketDisconnect):
            await socket.receive_json()
        telling.cancel()

    async def _tell(self, socket: WebSocket, person: Person, token: str | None) -> None:
        position = int(token or len(person.alerts))
        while True:
            for alert in person.alerts[position:]:
                position += 1
                await socket.send_json({"type": "threat_alert", "data": alert, "resumeToken": str(position)})
            person.arrived.clear()
            await person.arrived.wait()

    async def _accept(self, request: dict[str, Any]) -> dict[str, Any]:
        person = self._people[request["userId"]]
        event = request["eventData"]
        score, away = person.score(event["behavioralMetrics"])
        person.risk += 0.2 * (score - person.risk)
        asyncio.get_running_loop().call_later(0.02, _announce, person, _alert(request, score, away))
        status = "queued_for_morpheus"
        return {"eventId": event["eventId"], "preliminaryRisk": score * 0.8, "processingStatus": status}


def _announce(person: Person, alert: dict[str, Any]) -> None:
    person.alerts.append(alert)
    person.arrived.set()


def _alert(request: dict[str, Any], score: float, away: float) -> dict[str, Any]:
    event = request["eventData"]
    text = f"Pauses between keys are {away:.1f} times this person's usual spread longer than usual."
    reasons = [
        {"feature": "flight_mean", "text": text, "deviation": away, "contribution": 0.5, "modality": "typing"},
        {
            "feature": "hold_mean",
            "text": "Keys are let go sooner than usual.",
            "deviation": -away * 0.7,
            "contribution": 0.3,
            "modality": "typing",
        },
    ]
    return {
        "userId": request["userId"],
        "threatLevel": next(level for least, level in THRESHOLDS if score >= least),
        "threatScore": score,
        "timestamp": datetime.now(UTC).isoformat(),
        "recommendations": ["End the session.", "Ask for a second factor."] if score > 0.7 else [],
        "correlationId": request["correlationId"],
        "eventId": event["eventId"],
        "sessionId": event["sessionId"],
        "reasons": reasons if away > 1 else [],
        "mlConfidence": 0.86,
        "anomalyScore": min(1.0, score * 1.05),
        "sequenceThreatScore": score * 0.9,
        "patternAnomalyScore": score * 0.96,
        "processingTimeMs": 18 + int(time.monotonic() * 1000) % 9,
    }


class Secured:
    """Adds the gateway's own security headers, so that what they forbid is noticed here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        await self._app(scope, receive, secured)


def app(dist: Path) -> Starlette:
    """The mock, serving the pages built into `dist`."""
    mock = Mock()
    return Starlette(
        routes=[
            Route("/api/threat/trials", mock.start, methods=["POST"]),
            Route("/api/threat/risk-profiles/{user_id}", mock.profile, methods=["GET", "DELETE"]),
            Route("/api/threat/analyze-realtime", mock.analyze, methods=["POST"]),
            WebSocketRoute("/api/threat/stream", mock.stream),
            WebSocketRoute("/ws", mock.watch),
            Mount("/", StaticFiles(directory=dist, html=True)),
        ],
        middleware=[Middleware(Secured)],
    )


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else PORT
    uvicorn.run(app(Path(__file__).parents[1] / "dist"), host="127.0.0.1", port=port, log_level="warning")
