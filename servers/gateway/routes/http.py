"""Small helpers that all HTTP routes share: reading bodies within limits, writing JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from servers.gateway.exchange import STATE_KEY, Exchange
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send


class ClientGoneError(Exception):
    """The client hung up before its request was complete."""


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that the edge put into a request's scope."""
    return cast("Exchange", scope["state"][STATE_KEY])


async def read_body(exchange: Exchange, receive: Receive, *, limit: int, seconds: float) -> bytes:
    """The request's body.

    Raises:
        MeshError: it is over the limit, not said to be JSON, or not complete in time.
        ClientGoneError: the client hung up.
    """
    length = exchange.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            body = await _collect(receive, limit)
    except TimeoutError:
        raise MeshError(ErrorReason.ERROR_REASON_DEADLINE, "The body did not arrive in time.") from None
    if body:
        check_json(exchange)
    return body


def check_json(exchange: Exchange) -> None:
    """Refuses bodies that are not said to be JSON in UTF-8: pages of other sites cannot send that without asking first.

    Raises:
        MeshError: the content type is missing or another.
    """
    kind, _, parameters = exchange.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise MeshError(ErrorReason.ERROR_REASON_MALFORMED_BODY, "Send the body as application/json in UTF-8.")


async def _collect(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> MeshError:
    return MeshError(ErrorReason.ERROR_REASON_TOO_LARGE, f"The body is over {limit} bytes.")


async def send_json(
    send: Send, body: bytes, status: int = 200, cookie: str = "", more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Sends a JSON answer that nobody stores; `more` are further headers."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *more,
    ]
    if cookie:
        headers.append((b"set-cookie", cookie.encode("latin-1")))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
