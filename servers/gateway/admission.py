"""Who sends a request, and whether they may."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final

from behaviorguard.api.v1 import policy_pb2

from servers.mesh.context import EndUser
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from pathlib import Path

    from servers.gateway.budgets import Budgets
    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange, Frontier
    from servers.gateway.sessions import Session, SessionStore

OPERATOR_USER_ID: Final = "00000000-0000-4000-8000-00000000000a"
"""Whom audit records name for the holder of the operator's token."""
COOKIE: Final = "auth_token"
"""Name of the session cookie, the document's."""
_MIN_TOKEN_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request."""

    end_user: EndUser | None
    """The person; None for somebody who is not signed in."""
    subject: str
    """Whose request budget is spent."""
    session: Session | None = None
    """The browser's session, when a cookie proved it."""
    handle: str = ""
    """The session's handle."""


class OperatorToken:
    """The operator's bearer token, known by its SHA-256 alone."""

    def __init__(self, digest: bytes | None) -> None:
        self._digest = digest

    @classmethod
    def read(cls, path: Path | None) -> OperatorToken:
        """Reads the token's file.

        Raises:
            ValueError: the file is missing, the token is too short, or others may read the file.
        """
        if path is None:
            return cls(None)
        if not path.is_file():
            raise ValueError(f"{path} is missing: write the operator's token into it, or unset the setting")
        if path.stat().st_mode & 0o077:
            raise ValueError(f"others may read {path}: run `chmod 600` on it, and replace the token if it was seen")
        token = path.read_bytes().strip()
        if len(token) < _MIN_TOKEN_LENGTH:
            raise ValueError(f"the token in {path} is shorter than {_MIN_TOKEN_LENGTH} characters: write a longer one")
        return cls(hashlib.sha256(token).digest())

    def matches(self, token: str) -> bool:
        """True for the token; takes the same time for every other one."""
        presented = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        return self._digest is not None and hmac.compare_digest(presented, self._digest)


class Admission:
    """Decides, from the contract's policy, whether a request may go on."""

    def __init__(
        self,
        frontier: Frontier,
        sessions: SessionStore,
        budgets: Budgets,
        operator: OperatorToken,
        organization_id: str,
    ) -> None:
        self._frontier = frontier
        self._sessions = sessions
        self._budgets = budgets
        self._operator = operator
        self._operator_user = EndUser(OPERATOR_USER_ID, organization_id, policy_pb2.SCOPE_ADMIN)

    async def identify(self, exchange: Exchange) -> Principal:
        """Who sends a request, by bearer token or by session cookie.

        Raises:
            MeshError: the bearer token is not the operator's; the session store is away.
        """
        authorization = exchange.headers.get("authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() == "bearer" and self._operator.matches(token.strip()):
                return Principal(self._operator_user, OPERATOR_USER_ID)
            raise MeshError(ErrorReason.ERROR_REASON_SESSION_REQUIRED, "The bearer token is not valid.")
        handle = read_cookie(exchange)
        session = await self._sessions.find(handle) if handle else None
        if session is None:
            return Principal(None, f"anonymous-{exchange.client}")
        return Principal(session.end_user, session.user_id, session, handle)

    def check_origin(self, exchange: Exchange) -> None:
        """Refuses what comes from another site's page.

        Raises:
            MeshError: it does.
        """
        self._frontier.check_origin(exchange)

    def check_request(self, exchange: Exchange) -> None:
        """`check_origin` for requests that may change something.

        Raises:
            MeshError: it comes from another site's page.
        """
        self._frontier.check_request(exchange)

    async def admit(self, exchange: Exchange, operation: Operation) -> Principal:
        """Admits a request, counting it against its sender's budget.

        Raises:
            MeshError: it comes from another site, nobody is signed in, the scope is too low, or the budget is spent.
        """
        if operation.is_socket:
            self._frontier.check_origin(exchange)
        else:
            self._frontier.check_request(exchange)
        principal = await self.identify(exchange)
        await self.authorize(principal, exchange, operation)
        return principal

    async def authorize(self, principal: Principal, exchange: Exchange, operation: Operation) -> None:
        """Admits a request of a known sender, counting it against their budget.

        Raises:
            MeshError: nobody is signed in, the scope is too low, or the budget is spent.
        """
        check_scope(principal, operation)
        subject = principal.subject
        if principal.session is not None and operation.policy.scope == policy_pb2.SCOPE_ANONYMOUS:
            # What anybody may do is counted by address, or each session that it opens would bring a budget of its own.
            subject = f"anonymous-{exchange.client}"
        await self._budgets.spend(subject, operation)

    async def spend(self, principal: Principal, operation: Operation) -> None:
        """Counts one more message of a stream.

        Raises:
            MeshError: the budget is spent.
        """
        await self._budgets.spend(principal.subject, operation)

    async def still_signed_in(self, principal: Principal) -> bool:
        """False once a principal's session has ended.

        Raises:
            MeshError: the session store is away.
        """
        return principal.session is None or await self._sessions.find(principal.handle) is not None


def check_scope(principal: Principal, operation: Operation) -> None:
    """Refuses whom the contract's scope does not admit.

    Raises:
        MeshError: nobody is signed in, or the person may do less than the RPC asks for.
    """
    needed = operation.policy.scope
    if needed == policy_pb2.SCOPE_ANONYMOUS:
        return
    if principal.end_user is None:
        raise MeshError(ErrorReason.ERROR_REASON_SESSION_REQUIRED, "This needs a session.")
    if principal.end_user.scope < needed:
        raise MeshError(ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED, "Your role does not allow this.")


def read_cookie(exchange: Exchange, name: str = COOKIE) -> str:
    """A cookie that a browser sent, by default the session's handle; empty when there is none."""
    jar = SimpleCookie()
    try:
        for header in exchange.headers.getlist("cookie"):
            jar.load(header)
    except CookieError:
        return ""
    return jar[name].value if name in jar else ""


def write_cookie(handle: str, seconds: int | None, *, secure: bool, name: str = COOKIE) -> str:
    """A Set-Cookie value that browsers send back to this host alone and that no script can read.

    Args:
        handle: the session's handle; empty to forget it.
        seconds: how long the browser keeps it; None: until it is closed.
        secure: True to have it sent over TLS alone (and to this machine itself).
        name: the cookie's name.
    """
    life = "" if seconds is None else f"; Max-Age={seconds}"
    return f"{name}={handle}{life}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"
