"""Puts the mesh's steps around the methods of a servicer, one wrapper for each of the four kinds of RPC."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from servers.mesh.errors import ErrorReason, MeshError
from servers.mesh.interceptors import Call, Mesh, MethodPlan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from google.protobuf.message import Message
    from grpc import aio

    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = aio.ServicerContext[Any, Any]


class HandlerCollector:
    """Stands in for a server so that a generated `add_..._to_server` hands over its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        """Handlers by full method name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Called by generated code."""
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Called by generated code with the same handlers in another form, which is not needed."""


class MeshHandler(grpc.GenericRpcHandler):
    """Finds an RPC's handler, ready-made. What is not known is refused like everything else: with a reason."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._handlers: dict[str, Handler] = {}
        self._unknown = _unknown_handler(mesh)

    def add(self, plan: MethodPlan, handler: Handler) -> None:
        """Serve the RPC of `plan` with `handler` inside the mesh's steps.

        Raises:
            TypeError: the method is not asynchronous, or answers a stream without being an async generator.
        """
        self._handlers[plan.name] = wrap(self._mesh, plan, handler)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Called by gRPC for each call."""
        return self._handlers.get(handler_call_details.method, self._unknown)


def wrap(mesh: Mesh, plan: MethodPlan, handler: Handler) -> Handler:
    """The handler inside the mesh's steps. See `MeshHandler.add` for errors."""
    if handler.request_streaming and handler.response_streaming:
        kind, make, behavior = grpc.stream_stream_rpc_method_handler, _stream_stream, handler.stream_stream
    elif handler.request_streaming:
        kind, make, behavior = grpc.stream_unary_rpc_method_handler, _stream_unary, handler.stream_unary
    elif handler.response_streaming:
        kind, make, behavior = grpc.unary_stream_rpc_method_handler, _unary_stream, handler.unary_stream
    else:
        kind, make, behavior = grpc.unary_unary_rpc_method_handler, _unary_unary, handler.unary_unary
    if plan.self_checked and not handler.request_streaming:
        raise TypeError(f"{plan.name} has no request stream to check itself: take it out of self_checked")
    _require_async(plan.name, behavior, streams=handler.response_streaming)
    plan = replace(plan, parse=handler.request_deserializer)
    wrapped: Handler = kind(make(mesh, plan, behavior), None, handler.response_serializer)
    return wrapped


def _unary_unary(mesh: Mesh, plan: MethodPlan, behavior: Any) -> Callable[..., Any]:
    async def serve(body: bytes, context: Context) -> Message:
        async with Call(mesh, plan, context) as call:
            call.admit()
            request = call.parse(body)
            await call.accept(request)
            response: Message = await behavior(request, context)
            return response

    return serve


def _unary_stream(mesh: Mesh, plan: MethodPlan, behavior: Any) -> Callable[..., Any]:
    async def serve(body: bytes, context: Context) -> AsyncIterator[Message]:
        async with Call(mesh, plan, context) as call:
            call.admit()
            request = call.parse(body)
            await call.accept(request)
            async with aclosing(behavior(request, context)) as responses:
                while True:
                    try:
                        response = await call.response(responses)
                    except StopAsyncIteration:
                        break
                    yield response

    return serve


def _stream_unary(mesh: Mesh, plan: MethodPlan, behavior: Any) -> Callable[..., Any]:
    async def serve(requests: AsyncIterator[bytes], context: Context) -> Message:
        async with Call(mesh, plan, context) as call:
            call.admit()
            response: Message = await behavior(call.requests(requests, resumable=False), _IterateOnly(context))
            return response

    return serve


def _stream_stream(mesh: Mesh, plan: MethodPlan, behavior: Any) -> Callable[..., Any]:
    async def serve(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        async with Call(mesh, plan, context) as call:
            call.admit()
            incoming = call.requests(requests, resumable=True)
            async with aclosing(behavior(incoming, _IterateOnly(context))) as responses:
                async for response in responses:
                    yield response
            incoming.end()

    return serve


class _IterateOnly:
    """A servicer context without `read`: what it reads would bypass the checks."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> NoReturn:
        raise RuntimeError("iterate over the request stream instead: its messages are checked")


def _unknown_handler(mesh: Mesh) -> Handler:
    plan = MethodPlan("/unknown", infrastructure=True)

    async def serve(_requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async with Call(mesh, plan, context) as call:
            call.admit()
            raise MeshError(ErrorReason.ERROR_REASON_NOT_IMPLEMENTED, "this server has no such RPC")
        yield b""  # makes this a generator

    return grpc.stream_stream_rpc_method_handler(serve)


def _require_async(name: str, behavior: Any, *, streams: bool) -> None:
    if getattr(behavior, "__module__", "").endswith("_pb2_grpc"):
        return  # the generated default, which refuses as not implemented
    if streams and not inspect.isasyncgenfunction(behavior):
        raise TypeError(f"{name} answers with a stream: write it as an async generator (async def with yield)")
    if not streams and not inspect.iscoroutinefunction(behavior):
        raise TypeError(f"{name} must be a coroutine function (async def)")
