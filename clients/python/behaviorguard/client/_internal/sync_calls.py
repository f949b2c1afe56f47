"""Blocking calls with a deadline, a correlation id and typed errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from behaviorguard.client._internal.errors import service_error
from behaviorguard.client._internal.transport import with_correlation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class SyncCalls(grpc.Channel):
    """A channel for stubs; closing is its owner's business."""

    def __init__(self, channel: grpc.Channel, timeout_s: float) -> None:
        self._channel = channel
        self._timeout_s = timeout_s

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """See `grpc.Channel`."""
        return _calls(self._channel.unary_unary(*args, **options), self._timeout_s)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """See `grpc.Channel`."""
        return _streams(self._channel.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """See `grpc.Channel`."""
        return _calls(self._channel.stream_unary(*args, **options), None)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """See `grpc.Channel`."""
        return _streams(self._channel.stream_stream(*args, **options))

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """See `grpc.Channel`."""
        self._channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """See `grpc.Channel`."""
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        """Close the channel underneath."""
        self._channel.close()

    def __enter__(self) -> SyncCalls:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _calls(start: Callable[..., Any], timeout_s: float | None) -> Callable[..., Any]:
    def call(
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] | None = None,
        **options: Any,
    ) -> Any:
        carried, correlation_id = with_correlation(metadata)
        deadline = timeout_s if timeout is None else timeout
        try:
            return start(request, timeout=deadline, metadata=carried, **options)
        except grpc.RpcError as error:
            raise service_error(error, correlation_id) from error

    return call


def _streams(start: Callable[..., Any]) -> Callable[..., _Stream]:
    def call(request: Any, *, metadata: Sequence[tuple[str, str | bytes]] | None = None, **options: Any) -> _Stream:
        carried, correlation_id = with_correlation(metadata)
        return _Stream(start(request, metadata=carried, **options), correlation_id)

    return call


class _Stream:
    """A stream of gRPC's whose errors are typed; everything else is gRPC's own."""

    def __init__(self, call: Any, correlation_id: str) -> None:
        self._call = call
        self._correlation_id = correlation_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise service_error(error, self._correlation_id) from error
