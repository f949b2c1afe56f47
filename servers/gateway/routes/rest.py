"""Single calls of the contract over REST."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import parse_qsl

import grpc

from servers.gateway.contract import path_fields
from servers.gateway.edge import problem_headers
from servers.gateway.http_fields import AnswerFields, RequestFields
from servers.gateway.json_values import JsonMismatchError, query_reader
from servers.gateway.problems import Problem, from_mesh_error, from_mismatch, from_rpc_error, has_details
from servers.gateway.routes.http import ClientGoneError, exchange_of, read_body, send_json
from servers.gateway.stamping import Stamp
from servers.mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message
    from starlette.types import Receive, Scope, Send

    from servers.gateway.admission import Admission, Principal
    from servers.gateway.body_limits import BodyLimits
    from servers.gateway.calls import Upstream
    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange
    from servers.gateway.refusals import RefusalAudit
    from servers.gateway.transcoding import Codec

_OFF_LOOP_BYTES: Final = 64 * 1024
"""Larger bodies are transcoded in a thread: parsing them would hold the event loop for milliseconds."""
_MAX_PARAMETERS: Final = 64


class AfterCall(Protocol):
    """What happens once an RPC has succeeded, beside its answer."""

    async def __call__(self, answer: Message, exchange: Exchange) -> str:
        """Returns a Set-Cookie value, or an empty string."""


@dataclass(slots=True)
class _Request:
    """One request, as far as it is known."""

    exchange: Exchange
    principal: Principal | None = None
    """Who sent it; None until that is found out."""


class RestEndpoint:
    """ASGI application for one unary operation."""

    def __init__(
        self,
        operation: Operation,
        upstream: Upstream,
        admission: Admission,
        codec: Codec,
        refusals: RefusalAudit,
        limits: BodyLimits,
        *,
        body_seconds: float,
        after: AfterCall | None = None,
    ) -> None:
        self._operation = operation
        self._upstream = upstream
        self._admission = admission
        self._codec = codec
        self._refusals = refusals
        self._stamp = Stamp(operation)
        self._limits = limits
        self._max_body_bytes = limits.limit(operation)
        self._body_seconds = body_seconds
        self._after = after
        self._status = operation.policy.http_status or 200
        self._parameters = _Parameters(operation, codec)
        self._request_fields = RequestFields(operation)
        self._answer_fields = AnswerFields(operation, codec)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        exchange = exchange_of(scope)
        request = _Request(exchange)
        try:
            answer = await self._serve(request, scope, receive)
        except ClientGoneError:
            return
        except MeshError as error:
            await self._refuse(send, request, from_mesh_error(error), recorded=False)
        except JsonMismatchError as error:
            await self._refuse(send, request, from_mismatch(error), recorded=False)
        except grpc.aio.AioRpcError as error:
            # Without the mesh's details it was the way to the service that failed: nobody there has recorded it.
            await self._refuse(send, request, from_rpc_error(error), recorded=has_details(error))
        else:
            cookie = "" if self._after is None else await self._after(answer, exchange)
            document, headers = self._answer_fields.apply(answer)
            await send_json(send, document, self._status, cookie, headers)

    async def _serve(self, request: _Request, scope: Scope, receive: Receive) -> Message:
        """The service's answer.

        Raises:
            MeshError, JsonMismatchError: the gateway refuses.
            grpc.aio.AioRpcError: the service refuses or fails.
            ClientGoneError: the client hung up.
        """
        exchange = request.exchange
        self._admission.check_request(exchange)
        principal = request.principal = await self._admission.identify(exchange)
        await self._admission.authorize(principal, exchange, self._operation)
        with self._limits.held(exchange, self._max_body_bytes):
            body = await read_body(exchange, receive, limit=self._max_body_bytes, seconds=self._body_seconds)
            message = await self._read(scope, body)
            del body  # it may be megabytes
            self._request_fields.apply(message, exchange)
            self._stamp.apply(message, principal, exchange)
            return await self._upstream.unary(message, principal, exchange)

    async def _refuse(self, send: Send, request: _Request, problem: Problem, *, recorded: bool) -> None:
        exchange = request.exchange
        if not recorded:
            await self._refusals.refused(self._operation, request.principal, exchange, problem)
        body = problem.body(exchange.correlation_id)
        start = {"type": "http.response.start", "status": problem.status, "headers": problem_headers(problem, body)}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    async def _read(self, scope: Scope, body: bytes) -> Message:
        if len(body) > _OFF_LOOP_BYTES:
            return await asyncio.to_thread(self._build, scope, body)
        return self._build(scope, body)

    def _build(self, scope: Scope, body: bytes) -> Message:
        """The request from body, query and path.

        Raises:
            JsonMismatchError: something of it does not fit the contract.
        """
        request = self._operation.new_request()
        field = self._operation.body
        if field == "*":
            self._codec.decode(body or b"{}", request)
        elif field:
            self._codec.decode(body or b"{}", getattr(request, field))
        elif body:
            raise JsonMismatchError("is not taken by this path: send parameters in the query")
        self._parameters.apply(request, scope["query_string"], scope["path_params"])
        return request


class _Parameters:
    """Query and path parameters of one operation."""

    def __init__(self, operation: Operation, codec: Codec) -> None:
        bound = set(path_fields(operation.path))
        self._path = {name: query_reader(operation.request.fields_by_name[name]) for name in bound}
        self._json_names = {name: operation.request.fields_by_name[name].json_name for name in bound}
        self._query: dict[str, tuple[str, bool, Callable[[Message, str], None]]] = {}
        if operation.body == "*":
            return
        for field in operation.request.fields:
            setter = _setter(field, codec)
            if setter is not None and field.name not in bound and field.name != operation.body:
                self._query[field.json_name] = (field.name, field.is_repeated, setter)

    def apply(self, request: Message, query: bytes, path: dict[str, str]) -> None:
        """Sets all parameters on a request."""
        seen: set[str] = set()
        for name, text in _pairs(query):
            known = self._query.get(name)
            if known is None:
                raise JsonMismatchError("is not a query parameter here", name[:64])
            _, repeated, setter = known
            if name in seen and not repeated:
                raise JsonMismatchError("is given twice", name)
            seen.add(name)
            try:
                setter(request, text)
            except JsonMismatchError as error:
                raise error.under(name) from None
        for name, read in self._path.items():
            if getattr(request, name):
                raise JsonMismatchError("is set by the path: leave it out of the body", self._json_names[name])
            try:
                setattr(request, name, read(path[name]))
            except JsonMismatchError as error:
                raise error.under(self._json_names[name]) from None


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError:
        raise JsonMismatchError("does not come with a well-formed query", "query") from None


def _setter(field: FieldDescriptor, codec: Codec) -> Callable[[Message, str], None] | None:
    """What sets a field from a parameter's text; None for fields that only a body can carry."""
    name = field.name
    if field.message_type is not None:
        if field.is_repeated or field.message_type.full_name != "google.protobuf.Timestamp":
            return None
        read_into = codec.read_into(field.message_type)
        return lambda request, text: _discard(read_into(getattr(request, name), text))
    read = query_reader(field)
    if field.is_repeated:
        return lambda request, text: getattr(request, name).append(read(text))
    return lambda request, text: setattr(request, name, read(text))


def _discard(_members: int) -> None:
    """The count of members matters to bodies alone."""
