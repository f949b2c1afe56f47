"""Streams of the contract over WebSocket.

The first frame of a socket is the request of a server-streaming RPC, as JSON; each frame of a socket on a bidirectional
RPC is one of its requests. Every answer is one frame. A socket that fails is closed with 4000 + the gRPC code and
a short reason, so that a page can tell what happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from servers.gateway.json_values import JsonMismatchError
from servers.gateway.problems import Problem, from_mesh_error, from_mismatch, from_rpc_error, internal
from servers.gateway.routes.http import exchange_of
from servers.gateway.stamping import Stamp
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from google.protobuf.message import Message
    from starlette.types import Receive, Scope, Send

    from servers.gateway.admission import Admission, Principal
    from servers.gateway.calls import Upstream
    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange
    from servers.gateway.settings import GatewaySettings
    from servers.gateway.transcoding import Codec

_log = logging.getLogger(__name__)

CLOSE_BASE: Final = 4000
_NORMAL: Final = 1000
_MAX_REASON_BYTES: Final = 120  # a control frame holds 123


class ClientGoneError(Exception):
    """The client closed the socket or is gone."""


class SocketCensus:
    """Counts open sockets, so that nobody holds more than their share."""

    def __init__(self, *, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._open: Counter[str] = Counter()
        self._sum = 0

    @contextmanager
    def seat(self, subject: str) -> Iterator[None]:
        """Holds one place while a socket is open.

        Raises:
            MeshError: there is none.
        """
        if self._sum >= self._total:
            raise MeshError(ErrorReason.ERROR_REASON_OVERLOADED, "The gateway is full.", retry_after_s=5.0)
        if self._open[subject] >= self._each:
            text = f"You have {self._each} sockets open: close one first."
            raise MeshError(ErrorReason.ERROR_REASON_RATE_LIMITED, text, retry_after_s=5.0)
        self._sum += 1
        self._open[subject] += 1
        try:
            yield
        finally:
            self._sum -= 1
            self._open[subject] -= 1
            if not self._open[subject]:
                del self._open[subject]


class _Socket:
    """One accepted WebSocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def frame(self, seconds: float | None) -> bytes:
        """The next text frame.

        Raises:
            ClientGoneError: there will be none.
            MeshError: none came in time, or the frame is not text.
        """
        try:
            async with asyncio.timeout(seconds):
                message = await self._receive()
        except TimeoutError:
            raise MeshError(ErrorReason.ERROR_REASON_DEADLINE, "Nothing was sent in time.") from None
        if message["type"] == "websocket.disconnect":
            raise ClientGoneError
        text = message.get("text")
        if text is None:
            raise MeshError(ErrorReason.ERROR_REASON_MALFORMED_BODY, "Send JSON in text frames.")
        encoded: bytes = text.encode()
        return encoded

    async def send(self, document: bytes) -> None:
        """Sends one frame; waits while the client does not read."""
        await self._send({"type": "websocket.send", "text": document.decode()})

    async def close(self, code: int, reason: str) -> None:
        """Ends the socket."""
        text = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": code, "reason": text})


class SocketEndpoint:
    """ASGI application for one streaming operation."""

    def __init__(
        self,
        operation: Operation,
        upstream: Upstream,
        admission: Admission,
        codec: Codec,
        census: SocketCensus,
        settings: GatewaySettings,
    ) -> None:
        self._operation = operation
        self._upstream = upstream
        self._admission = admission
        self._codec = codec
        self._census = census
        self._settings = settings
        self._stamp = Stamp(operation)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one socket from handshake to close."""
        exchange = exchange_of(scope)
        self._admission.check_origin(exchange)  # refused as HTTP: a page of another site learns nothing
        if (await receive())["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        socket = _Socket(receive, send)
        try:
            code, reason = await self._serve(socket, exchange)
            await socket.close(code, reason)
        except (ClientGoneError, OSError):
            return

    async def _serve(self, socket: _Socket, exchange: Exchange) -> tuple[int, str]:
        """Runs the stream; returns how to close the socket.

        Raises:
            ClientGoneError: there is nobody to close it for.
        """
        try:
            principal = await self._admission.admit(exchange, self._operation)
            with self._census.seat(principal.subject):
                if self._operation.client_streams:
                    await self._converse(socket, principal, exchange)
                else:
                    await self._follow(socket, principal, exchange)
        except MeshError as error:
            return _closing(from_mesh_error(error))
        except JsonMismatchError as error:
            return _closing(from_mismatch(error))
        except grpc.aio.AioRpcError as error:
            return _closing(from_rpc_error(error))
        except (ClientGoneError, OSError):
            raise
        except Exception:
            _log.exception("a socket failed", extra={"correlation_id": exchange.correlation_id})
            return _closing(internal())
        return _NORMAL, "The stream has ended."

    async def _follow(self, socket: _Socket, principal: Principal, exchange: Exchange) -> None:
        """One request, many answers."""
        frame = await socket.frame(self._settings.body_seconds)
        request = self._decode(frame, principal, exchange)
        call = self._upstream.follow(request, principal, exchange)
        try:
            await _first(
                self._pump(call, socket),
                _expect_nothing(socket),
                self._watch_session(principal),
            )
        finally:
            call.cancel()

    async def _converse(self, socket: _Socket, principal: Principal, exchange: Exchange) -> None:
        """Many requests, each with its answer."""
        inbox = _Inbox()
        call = self._upstream.converse(inbox, principal, exchange)

        async def forward() -> None:
            while True:
                frame = await socket.frame(self._settings.socket_idle_seconds)
                request = self._decode(frame, principal, exchange)
                await self._admission.spend(principal, self._operation)
                await inbox.put(request)

        try:
            await _first(self._pump(call, socket), forward(), self._watch_session(principal))
        finally:
            call.cancel()

    def _decode(self, frame: bytes, principal: Principal, exchange: Exchange) -> Message:
        request = self._operation.new_request()
        self._codec.decode(frame, request)
        self._stamp.apply(request, principal, exchange)
        return request

    async def _pump(self, call: AsyncIterator[Message], socket: _Socket) -> None:
        """Hands answers on. Each send is awaited, so that a slow reader slows the service (gRPC's flow control)."""
        async for answer in call:
            await socket.send(self._codec.encode(answer))

    async def _watch_session(self, principal: Principal) -> None:
        """Ends the socket with its session."""
        while True:
            await asyncio.sleep(self._settings.session_check_seconds)
            if not await self._admission.still_signed_in(principal):
                raise MeshError(ErrorReason.ERROR_REASON_SESSION_REQUIRED, "The session has ended.")


class _Inbox:
    """Hands requests to an RPC one at a time, so that nothing piles up between socket and service."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)

    async def put(self, request: Message) -> None:
        """Waits until the RPC has taken the request before."""
        await self._queue.put(request)

    def __aiter__(self) -> _Inbox:
        return self

    async def __anext__(self) -> Message:
        return await self._queue.get()


async def _expect_nothing(socket: _Socket) -> None:
    await socket.frame(None)
    raise MeshError(ErrorReason.ERROR_REASON_MALFORMED_BODY, "This stream takes one request: open another socket.")


async def _first(*work: Coroutine[Any, Any, None]) -> None:
    """Runs all until one ends, cancels the others, and raises what it raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _closing(problem: Problem) -> tuple[int, str]:
    return CLOSE_BASE + int(problem.code.value[0]), f"{problem.error_code}: {problem.message}"
