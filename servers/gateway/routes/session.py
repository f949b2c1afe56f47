"""The browser's session: opened by the RPCs that begin one, read and ended here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from behaviorguard.api.v1 import policy_pb2
from behaviorguard.threat.v1 import threat_service_pb2

from servers.gateway.admission import write_cookie
from servers.gateway.routes.http import exchange_of, send_json
from servers.gateway.sessions import Session
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from starlette.types import Receive, Scope, Send

    from servers.gateway.admission import Admission
    from servers.gateway.exchange import Exchange, Frontier
    from servers.gateway.sessions import SessionStore

START_TRIAL = "/behaviorguard.threat.v1.ThreatService/StartTrial"


class OpenTrialSession:
    """Turns a started trial into a session; see `servers.gateway.routes.rest.AfterCall`."""

    def __init__(self, sessions: SessionStore, organization_id: str, *, secure_cookies: bool) -> None:
        self._sessions = sessions
        self._organization_id = organization_id
        self._secure_cookies = secure_cookies

    async def __call__(self, answer: Message, exchange: Exchange) -> str:
        """Stores the session; returns its cookie."""
        if not isinstance(answer, threat_service_pb2.StartTrialResponse):
            raise TypeError(f"{START_TRIAL} answered with {answer.DESCRIPTOR.full_name}")
        now = self._sessions.now()
        expires_at = answer.expires_at.ToDatetime(now.tzinfo)
        session = Session(
            session_id=answer.session_id,
            user_id=answer.user_id,
            organization_id=self._organization_id,
            scope=policy_pb2.SCOPE_SELF,
            login_time=now,
            last_activity=now,
            expires_at=expires_at,
        )
        handle = await self._sessions.open(session)
        seconds = max(1, int((expires_at - now).total_seconds()))
        return write_cookie(handle, seconds, secure=exchange.secure or self._secure_cookies)


class SessionEndpoint:
    """`GET /api/session`: whose session this is. `DELETE /api/session`: ends it."""

    def __init__(
        self, frontier: Frontier, admission: Admission, sessions: SessionStore, *, secure_cookies: bool
    ) -> None:
        self._frontier = frontier
        self._admission = admission
        self._sessions = sessions
        self._secure_cookies = secure_cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        del receive
        exchange = exchange_of(scope)
        self._frontier.check_request(exchange)
        principal = await self._admission.identify(exchange)
        session = principal.session
        if session is None:
            raise MeshError(ErrorReason.ERROR_REASON_SESSION_REQUIRED, "There is no session.")
        if exchange.method == "DELETE":
            await self._sessions.end(principal.handle)
            secure = exchange.secure or self._secure_cookies
            await send_json(send, b"{}", cookie=write_cookie("", 0, secure=secure))
            return
        document = {
            "userId": session.user_id,
            "sessionId": session.session_id,
            "loginTime": session.login_time,
            "expiresAt": session.expires_at,
            "quantumSecured": session.quantum_secured,
            "biometricVerified": session.biometric_verified,
        }
        await send_json(send, orjson.dumps(document))
