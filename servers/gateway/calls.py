"""Calls to services on behalf of end users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servers.mesh.identity import on_behalf_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from google.protobuf.message import Message
    from grpc import aio

    from servers.gateway.admission import Principal
    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange


class Upstream:
    """The service behind one operation."""

    def __init__(self, channel: aio.Channel, operation: Operation, *, call_seconds: float) -> None:
        self._call_seconds = call_seconds
        kinds: Mapping[tuple[bool, bool], Any] = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, True): channel.stream_stream,
        }
        self._call = kinds[operation.client_streams, operation.server_streams](
            operation.rpc,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=operation.parse_response,
        )

    async def unary(self, request: Message, principal: Principal, exchange: Exchange) -> Message:
        """Calls and waits for the answer.

        Raises:
            grpc.aio.AioRpcError, MeshError: the service refused, failed or did not answer in time.
        """
        answer: Message = await self._call(request, timeout=self._call_seconds, metadata=metadata(principal, exchange))
        return answer

    def follow(self, request: Message, principal: Principal, exchange: Exchange) -> Any:
        """Calls for a stream of answers; cancel it when nobody reads any more."""
        return self._call(request, metadata=metadata(principal, exchange))

    def converse(self, requests: AsyncIterator[Message], principal: Principal, exchange: Exchange) -> Any:
        """Calls with a stream of requests for a stream of answers; cancel it when nobody reads any more."""
        return self._call(requests, metadata=metadata(principal, exchange))


def metadata(principal: Principal, exchange: Exchange) -> tuple[tuple[str, str], ...]:
    """What services are told of the end user. Who they are comes from nothing that the client says."""
    return (
        *on_behalf_of(principal.end_user, client=exchange.client, came_from=exchange.origin),
        ("x-correlation-id", exchange.correlation_id),
    )
