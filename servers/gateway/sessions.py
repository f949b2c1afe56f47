"""Sessions of browsers: a random handle in a cookie, everything else in Redis in the document's form."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson
from behaviorguard.api.v1 import policy_pb2
from redis.exceptions import RedisError

from servers.mesh.context import EndUser
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

SESSION_SECONDS: Final = 3600
"""A session ends this long after its last request, as the document says."""
_TOUCH_SECONDS: Final = 60
_HANDLE_BYTES: Final = 32
_HANDLE_LENGTH: Final = 43  # 32 bytes as base64url without padding


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session."""

    session_id: str
    """UUID that events of this session carry."""
    user_id: str
    """UUID of the person."""
    organization_id: str
    """UUID of the person's organisation."""
    scope: policy_pb2.Scope.ValueType
    """What the person may do."""
    login_time: datetime
    """When the session began."""
    last_activity: datetime
    """When it was last used, to the minute."""
    expires_at: datetime | None = None
    """When it ends however much it is used; None when only idleness ends it."""
    device_id: str = ""
    quantum_secured: bool = False
    hybrid_token: str = ""
    risk_score: float = 0.5
    biometric_verified: bool = False

    @property
    def end_user(self) -> EndUser:
        """The person, as services are told."""
        return EndUser(self.user_id, self.organization_id, self.scope)

    def to_json(self) -> bytes:
        """The document's session value."""
        return orjson.dumps(
            {
                "userId": self.user_id,
                "deviceId": self.device_id,
                "loginTime": self.login_time,
                "lastActivity": self.last_activity,
                "quantumSecured": self.quantum_secured,
                "hybridToken": self.hybrid_token,
                "riskScore": self.risk_score,
                "biometricVerified": self.biometric_verified,
                "sessionId": self.session_id,
                "organizationId": self.organization_id,
                "scope": policy_pb2.Scope.Name(self.scope),
                "expiresAt": self.expires_at,
            }
        )

    @classmethod
    def from_json(cls, value: bytes | str) -> Session:
        """A session as it was stored.

        Raises:
            ValueError, KeyError: the value is no session.
        """
        data = orjson.loads(value)
        expires = data["expiresAt"]
        return cls(
            session_id=data["sessionId"],
            user_id=data["userId"],
            organization_id=data["organizationId"],
            scope=policy_pb2.Scope.Value(data["scope"]),
            login_time=datetime.fromisoformat(data["loginTime"]),
            last_activity=datetime.fromisoformat(data["lastActivity"]),
            expires_at=None if expires is None else datetime.fromisoformat(expires),
            device_id=data["deviceId"],
            quantum_secured=data["quantumSecured"],
            hybrid_token=data["hybridToken"],
            risk_score=data["riskScore"],
            biometric_verified=data["biometricVerified"],
        )

    def seconds_left(self, now: datetime) -> int:
        """Whole seconds that the session lives on when it is used now."""
        if self.expires_at is None:
            return SESSION_SECONDS
        return min(SESSION_SECONDS, int((self.expires_at - now).total_seconds()))


class SessionStore:
    """Sessions in Redis under the SHA-256 of their handle, so that a reader of the store cannot take one over."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock

    def now(self) -> datetime:
        """The store's time."""
        return datetime.fromtimestamp(self._clock(), UTC)

    async def open(self, session: Session) -> str:
        """Stores a new session; returns the handle for its cookie.

        Raises:
            MeshError: Redis is away.
        """
        handle = secrets.token_urlsafe(_HANDLE_BYTES)
        try:
            await self._redis.set(_key(handle), session.to_json(), ex=max(1, session.seconds_left(self.now())))
        except RedisError as error:
            raise store_is_away() from error
        return handle

    async def find(self, handle: str) -> Session | None:
        """The session of a handle, its life extended; None when there is none or it has ended.

        Raises:
            MeshError: Redis is away.
        """
        if len(handle) != _HANDLE_LENGTH or not handle.isascii():
            return None
        try:
            value = await self._redis.get(_key(handle))
            session = None if value is None else Session.from_json(value)
            return None if session is None else await self._touch(handle, session)
        except RedisError as error:
            raise store_is_away() from error
        except (ValueError, KeyError, TypeError):
            return None

    async def end(self, handle: str) -> None:
        """Forgets a session.

        Raises:
            MeshError: Redis is away.
        """
        try:
            await self._redis.delete(_key(handle))
        except RedisError as error:
            raise store_is_away() from error

    async def _touch(self, handle: str, session: Session) -> Session | None:
        """Extends the session's life, at most once a minute: to the second it would cost a write for each read."""
        now = self.now()
        if session.seconds_left(now) <= 0:
            return None
        if (now - session.last_activity).total_seconds() < _TOUCH_SECONDS:
            return session
        session = replace(session, last_activity=now)
        # XX: a session that was ended in between stays ended.
        await self._redis.set(_key(handle), session.to_json(), ex=session.seconds_left(now), xx=True)
        return session


def store_is_away() -> MeshError:
    """What everything that needs the session store is answered while it is away."""
    reason = ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    return MeshError(reason, "The session store cannot be reached.", retry_after_s=1.0)


def _key(handle: str) -> str:
    return "session:" + hashlib.sha256(handle.encode("ascii")).hexdigest()
