"""uvicorn's HTTP protocol with limits on a request's head, which it has none for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

_MAX_HEAD_BYTES: Final = 64 * 1024


class HeadLimitedProtocol(HttpToolsProtocol):
    """Closes a connection that does not send a whole head in time, or sends too large a one, so that none pile up."""

    head_seconds: ClassVar[float] = 10.0
    """Time for a whole head, from the connection's start or the head's first byte."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base says
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._head_is_complete()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The parser has seen a head's first byte."""
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser has seen a head's end."""
        self._head_is_complete()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.close()

    def _expect_head(self) -> None:
        self._head_is_complete()
        self._timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _head_is_complete(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._head_bytes = None, 0


def limited_protocol(head_seconds: float) -> type[HeadLimitedProtocol]:
    """The protocol with another limit of time."""

    class Protocol(HeadLimitedProtocol):
        """One connection."""

    Protocol.head_seconds = head_seconds
    return Protocol
