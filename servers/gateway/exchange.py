"""What the gateway knows of one HTTP request or socket before any route sees it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.identity import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Scope

STATE_KEY: Final = "behaviorguard.exchange"
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_IPV6_PREFIX: Final = 64
_MAX_USER_AGENT: Final = 512


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request or socket."""

    correlation_id: str
    """UUID that follows the request: the client's X-Correlation-ID when it is one, else our own."""
    method: str
    """HTTP method; `GET` for a socket."""
    headers: Headers
    """Request headers."""
    address: str
    """The client's IP address as the outermost trusted proxy saw it; empty when unknown."""
    client: str
    """Opaque digest of the address, against which people who are not signed in are counted."""
    secure: bool
    """True when the client speaks TLS, to us or to a trusted proxy."""
    host: str
    """Host header."""

    @property
    def origin(self) -> Origin:
        """Where the request came from, for audit records; an address goes without its zone, which only we know."""
        return Origin(self.address.partition("%")[0], self.headers.get("user-agent", "")[:_MAX_USER_AGENT])


class Frontier:
    """Reads requests as far as their origin can be believed."""

    def __init__(
        self,
        *,
        allowed_hosts: Sequence[str],
        allowed_origins: Sequence[str],
        trusted_proxies: Sequence[str],
        digest_key: bytes,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in allowed_origins)
        self._proxies = [ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies]
        self._digest_key = digest_key

    def read(self, scope: Scope) -> Exchange:
        """Reads the head of a request."""
        headers = Headers(scope=scope)
        peer = (scope.get("client") or ("", 0))[0]
        trusted = self._is_proxy(peer)
        scheme = (headers.get("x-forwarded-proto", "") if trusted else "") or scope["scheme"]
        address = self._client_address(peer, headers) if trusted else peer
        return Exchange(
            correlation_id=_correlation_id(headers.get("x-correlation-id", "")),
            method=scope.get("method", "GET"),
            headers=headers,
            address=address,
            client=self._digest(address),
            secure=scheme in ("https", "wss"),
            host=headers.get("host", ""),
        )

    def check_host(self, exchange: Exchange) -> None:
        """Refuses a request to a name that is not ours.

        Raises:
            MeshError: the Host header is missing or names another host.
        """
        if _without_port(exchange.host.lower()) not in self._hosts:
            raise MeshError(
                ErrorReason.ERROR_REASON_NOT_FOUND,
                "This server has no such host name; an operator can add it to BEHAVIORGUARD_ALLOWED_HOSTS.",
            )

    def check_origin(self, exchange: Exchange) -> None:
        """Refuses what another site's page makes a browser send: for whatever changes state, and for every socket.

        Browsers always say where a socket or a changing request comes from; what says nothing is no browser and has no
        cookies that were not its own.

        Raises:
            MeshError: the request comes from another site.
        """
        origin = exchange.headers.get("origin")
        if origin is not None:
            own = urlsplit(origin.lower())
            same = own.netloc == exchange.host.lower() and own.scheme == ("https" if exchange.secure else "http")
            if not same and origin.lower() not in self._origins:
                raise _foreign()
        elif exchange.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise _foreign()

    def check_request(self, exchange: Exchange) -> None:
        """`check_origin` for requests that may change something."""
        if exchange.method not in _SAFE:
            self.check_origin(exchange)

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)

    def _client_address(self, peer: str, headers: Headers) -> str:
        """The last hop that is no trusted proxy: what stands left of it may be made up."""
        hops = [hop.strip() for value in headers.getlist("x-forwarded-for") for hop in value.split(",")]
        for hop in reversed(hops):
            if not _is_address(hop):
                return peer
            if not self._is_proxy(hop):
                return hop
        return peer

    def _digest(self, address: str) -> str:
        if ":" in address:  # one person has a whole /64
            network = ipaddress.ip_network((address.partition("%")[0], _IPV6_PREFIX), strict=False)
            address = str(network)
        return hmac.new(self._digest_key, address.encode(), hashlib.sha256).hexdigest()[:32]


def _without_port(host: str) -> str:
    end = host.rfind("]")
    colon = host.find(":", end + 1)
    return host if colon < 0 else host[:colon]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _correlation_id(text: str) -> str:
    """A UUID in its usual form, or a new one."""
    if len(text) == 36:
        try:
            return str(uuid.UUID(text))
        except ValueError:
            pass
    return str(uuid.uuid4())


def _foreign() -> MeshError:
    return MeshError(
        ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED,
        "Pages of other sites may not do this; an operator can add theirs to BEHAVIORGUARD_ALLOWED_ORIGINS.",
    )
