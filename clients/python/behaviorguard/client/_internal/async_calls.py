"""asyncio calls with a deadline, a correlation id and typed errors.

A wrapper around the channel rather than gRPC's interceptors, which start a task for every call and
every message written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from behaviorguard.client._internal.errors import service_error
from behaviorguard.client._internal.transport import with_correlation
from grpc import aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence


class AsyncCalls(aio.Channel):
    """A channel for stubs; closing is its owner's business."""

    def __init__(self, channel: aio.Channel, timeout_s: float) -> None:
        self._channel = channel
        self._timeout_s = timeout_s

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`."""
        return _calls(self._channel.unary_unary(*args, **options), self._timeout_s)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`."""
        return _calls(self._channel.unary_stream(*args, **options), None)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`."""
        return _calls(self._channel.stream_unary(*args, **options), None)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """See `aio.Channel`."""
        return _calls(self._channel.stream_stream(*args, **options), None)

    async def close(self, grace: float | None = None) -> None:
        """Close the channel underneath."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `aio.Channel`."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `aio.Channel`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `aio.Channel`."""
        await self._channel.channel_ready()

    async def __aenter__(self) -> AsyncCalls:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


def _calls(start: Callable[..., Any], timeout_s: float | None) -> Callable[..., _Call]:
    def call(
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
        **options: Any,
    ) -> _Call:
        carried, correlation_id = with_correlation(metadata)
        deadline = timeout_s if timeout is None else timeout
        return _Call(start(request, timeout=deadline, metadata=carried, **options), correlation_id)

    return call


class _Call:
    """A call of gRPC's whose errors are typed; everything else is gRPC's own."""

    def __init__(self, call: Any, correlation_id: str) -> None:
        self._call = call
        self._correlation_id = correlation_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._typed(self._call).__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for message in self._call:
                yield message
        except grpc.RpcError as error:
            raise service_error(error, self._correlation_id) from error
        finally:
            self._call.cancel()  # whoever leaves the loop early wants no more

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        return await self._typed(self._call.read())

    async def write(self, request: Any) -> None:
        """Send one message."""
        await self._typed(self._call.write(request))

    async def _typed(self, awaited: Awaitable[Any]) -> Any:
        try:
            return await awaited
        except grpc.RpcError as error:
            raise service_error(error, self._correlation_id) from error
