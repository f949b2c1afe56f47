"""The HTTP server around the application."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from servers.gateway.app import Gateway, open_gateway
from servers.gateway.protocol import limited_protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.gateway.settings import GatewaySettings

_BACKLOG = 2048
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which ends the process before the gateway has closed its parts."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `GatewayServer`."""
        yield


class GatewayServer:
    """Serves one gateway on one socket until it is told to stop or a background task dies."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._socket = socket.create_server((settings.host, settings.port), backlog=_BACKLOG)
        # Accepted sockets inherit this. asyncio sets it only where a socket knows its protocol;
        # without it each answer waits 40 ms for the client's delayed acknowledgement of its head.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server: _Server | None = None
        self._stopping = False

    @property
    def port(self) -> int:
        """The port that it listens on; clients that come before it serves wait."""
        port: int = self._socket.getsockname()[1]
        return port

    async def serve(self) -> int:
        """Serves until `stop`; returns the exit status. Can be called once.

        Raises:
            ContractError, ValueError, OSError: the settings do not fit the contract or the files.
        """
        with self._socket:
            async with open_gateway(self._settings) as gateway:
                self._server = _Server(self._config(gateway))
                self._server.should_exit = self._stopping
                watchdog = asyncio.create_task(self._watch(gateway), name="watchdog")
                try:
                    await self._server.serve(sockets=[self._socket])
                finally:
                    watchdog.cancel()
                return 1 if gateway.tasks.failure is not None else 0

    async def serve_until_signal(self) -> int:
        """`serve`, which SIGTERM or SIGINT stop; a second one stops waiting for requests in progress."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._told)
        return await self.serve()

    def stop(self) -> None:
        """Lets requests in progress finish, closes sockets, then returns from `serve`."""
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True

    def _told(self) -> None:
        if self._stopping and self._server is not None:
            self._server.force_exit = True
        self.stop()

    async def _watch(self, gateway: Gateway) -> None:
        await gateway.tasks.failed()
        self.stop()

    def _config(self, gateway: Gateway) -> uvicorn.Config:
        settings = self._settings
        return uvicorn.Config(
            gateway.app,
            loop="none",
            http=limited_protocol(settings.body_seconds),
            ws="websockets-sansio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,  # the edge writes its own line, without addresses and queries
            proxy_headers=False,  # the frontier reads them, from trusted proxies alone
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.drain_seconds),
            ws_max_size=settings.max_frame_bytes,
            ws_ping_interval=settings.socket_ping_seconds,
            ws_ping_timeout=settings.socket_ping_seconds,
            ws_per_message_deflate=False,  # frames are small, and compression of secrets beside chosen text leaks them
            ssl_certfile=settings.http_tls_cert,
            ssl_keyfile=settings.http_tls_key,
        )
