"""The outermost layer: every request gets its exchange, its headers, a place or a refusal, and an error in one form."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException

from servers.gateway.exchange import STATE_KEY
from servers.gateway.problems import Problem, from_mesh_error, internal
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from servers.gateway.exchange import Exchange, Frontier
    from servers.mesh.telemetry import Telemetry

_log = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
)
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
_PROBES: Final = ("/healthz", "/healthz/live", "/healthz/ready")


class HttpTelemetry:
    """Measures and logs requests, by their route's template: the path itself may name a person."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._durations: Histogram | None = None
        if telemetry.measures:
            text = "Duration of HTTP requests, and of sockets until they close."
            self._durations = telemetry.histogram("http.server.request.duration", "s", text)

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """A request or socket has ended."""
        method, route = scope.get("method", "WEBSOCKET"), getattr(scope.get("route"), "path", "-")
        _log.info(
            "request",
            extra={
                "http_method": method,
                "route": route,
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
                "correlation_id": scope["state"][STATE_KEY].correlation_id,
            },
        )
        if self._durations is not None:
            attributes = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            self._durations.record(seconds, attributes)


class Edge:
    """ASGI application around all routes."""

    def __init__(self, app: ASGIApp, frontier: Frontier, telemetry: HttpTelemetry, *, max_requests: int) -> None:
        self._app = app
        self._frontier = frontier
        self._telemetry = telemetry
        self._max_requests = max_requests
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or socket."""
        exchange = self._frontier.read(scope)
        scope.setdefault("state", {})[STATE_KEY] = exchange
        scope["app"] = self  # has the router raise its refusals instead of answering them in plain text
        answer = _Answer(scope, send, exchange)
        begun = time.perf_counter()
        is_http = scope["type"] == "http"
        self._in_progress += is_http
        try:
            await self._admitted(scope, receive, answer, exchange)
        finally:
            self._in_progress -= is_http
            self._telemetry.record(scope, answer.status, time.perf_counter() - begun)

    async def _admitted(self, scope: Scope, receive: Receive, answer: _Answer, exchange: Exchange) -> None:
        try:
            if scope["path"] not in _PROBES:
                self._frontier.check_host(exchange)
                self._check_room()
            await self._app(scope, receive, answer.send)
        except MeshError as error:
            await answer.refuse(from_mesh_error(error))
        except HTTPException as error:
            await answer.refuse(_from_http(error), dict(error.headers or {}))
        except Exception:
            _log.exception("a request failed", extra={"correlation_id": exchange.correlation_id})
            await answer.refuse(internal())

    def _check_room(self) -> None:
        if self._in_progress > self._max_requests:
            raise MeshError(ErrorReason.ERROR_REASON_OVERLOADED, "The gateway is full.", retry_after_s=1.0)


class _Answer:
    """The way back to the client: adds headers, remembers the status, says what went wrong while it still can."""

    def __init__(self, scope: Scope, send: Send, exchange: Exchange) -> None:
        self._scope = scope
        self._send = send
        self._exchange = exchange
        self.status = 0

    async def send(self, message: Message) -> None:
        """Hands an ASGI message on."""
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers()]
        elif kind == "websocket.accept":
            self.status = 101
            message["headers"] = [*message.get("headers", ()), (b"x-correlation-id", self._correlation_id)]
        await self._send(message)

    async def refuse(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        """Answers with a problem, unless an answer has begun."""
        if self.status:
            return
        body = problem.body(self._exchange.correlation_id)
        prefix = "websocket." if self._scope["type"] == "websocket" else ""
        all_headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        await self.send(
            {
                "type": f"{prefix}http.response.start",
                "status": problem.status,
                "headers": [*all_headers, *problem_headers(problem, body)],
            }
        )
        await self.send({"type": f"{prefix}http.response.body", "body": body})

    @property
    def _correlation_id(self) -> bytes:
        return self._exchange.correlation_id.encode()

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-correlation-id", self._correlation_id), *SECURITY_HEADERS]
        return [*headers, _HSTS] if self._exchange.secure else headers


def problem_headers(problem: Problem, body: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of an error's answer."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if problem.retry_after is not None:
        headers.append((b"retry-after", problem.retry_after.encode()))
    if problem.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="behaviorguard"'))
    return headers


def _from_http(error: HTTPException) -> Problem:
    """Starlette's own refusals: no such path, wrong method."""
    text = {404: "There is nothing at this path.", 405: "This path does not take that method."}
    reason = ErrorReason.ERROR_REASON_NOT_FOUND if error.status_code == 404 else ErrorReason.ERROR_REASON_MALFORMED_BODY
    message = text.get(error.status_code, "The request cannot be served.")
    return from_mesh_error(MeshError(reason, message), status=error.status_code)
