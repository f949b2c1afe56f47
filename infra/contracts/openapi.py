"""OpenAPI 3.1 of what the gateway serves: every RPC with an HTTP path that an end user may reach."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from infra.contracts.model import short_name
from infra.contracts.schemas import Schema, SchemaWriter

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor

    from infra.contracts.model import Contracts, Route

_ERROR_RESPONSES = {
    "400": "The request is not as the contract says.",
    "401": "Nobody is signed in.",
    "403": "The person may not do this.",
    "404": "There is no such thing.",
    "409": "The state of things does not allow it.",
    "413": "Too much at once.",
    "429": "Too many requests; Retry-After says when to try again.",
    "500": "A fault of ours.",
    "503": "A part that is needed is away; Retry-After says when to try again.",
    "504": "It took too long.",
}


def openapi(contracts: Contracts) -> bytes:
    """The document as JSON, the same bytes for the same contracts."""
    writer = SchemaWriter(contracts)
    paths: dict[str, dict[str, Any]] = {}
    services = [service for service in contracts.services() if any(_reachable(contracts, m) for m in service.methods)]
    for service in services:
        for method in service.methods:
            if _reachable(contracts, method):
                for route in contracts.routes(method):
                    operation = _operation(contracts, writer, service, method, route)
                    paths.setdefault(_json_path(method, route), {})[route.verb] = operation
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "BehaviorGuard",
            "version": "1",
            "summary": "Notices when somebody else has taken over a session, and says why.",
            "description": "Derived from the contracts in `protos/`. Enums are short lower-case names; unknown fields "
            "are refused; bytes are base64; 64-bit integers are strings; times are RFC 3339.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": service.name, "description": contracts.comment(service)} for service in services],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {**writer.components(), "Error": _error(contracts)},
            "responses": {
                code: {"description": text, "content": _json({"$ref": "#/components/schemas/Error"})}
                for code, text in _ERROR_RESPONSES.items()
            },
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": "auth_token"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _reachable(contracts: Contracts, method: MethodDescriptor) -> bool:
    policy = contracts.policy(method)
    return (
        policy is not None
        and "gateway" in policy.callers
        and bool(contracts.scope(method))
        and any(contracts.routes(method))
    )


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _json_path(method: MethodDescriptor, route: Route) -> str:
    """The path with the variables named as in JSON."""
    path = route.path
    for name in route.variables:
        path = path.replace(f"{{{name}}}", f"{{{method.input_type.fields_by_name[name].json_name}}}")
    return path


def _operation(
    contracts: Contracts, writer: SchemaWriter, service: ServiceDescriptor, method: MethodDescriptor, route: Route
) -> dict[str, Any]:
    policy = contracts.policy(method)
    rate, per_minute = contracts.rate_class(method)
    scope = contracts.scope(method)
    socket = method.client_streaming or method.server_streaming
    operation: dict[str, Any] = {
        "operationId": f"{service.name}_{method.name}",
        "tags": [service.name],
        "summary": policy.summary,
        "description": contracts.comment(method),
        "x-scope": scope,
        "x-rate-class": rate,
        "x-calls-per-minute": per_minute,
        "x-audited": policy.audited,
        "security": [] if scope == "anonymous" else [{"session": []}, {"bearer": []}],
    }
    if socket:
        operation["description"] += _socket_note(method)
        operation["x-websocket"] = {
            "send": writer.refer(method.input_type),
            "receive": writer.refer(method.output_type),
        }
        operation["responses"] = {"101": {"description": "The WebSocket is open."}, **_errors()}
        return operation
    operation["parameters"] = _parameters(contracts, writer, method.input_type, route)
    if route.body:
        operation["requestBody"] = {"required": True, "content": _json(_body(writer, method.input_type, route))}
    success = {
        "description": contracts.comment(method.output_type),
        "headers": _headers(contracts, writer, method.output_type),
        "content": _json(_answer(contracts, writer, method.output_type)),
    }
    operation["responses"] = {str(policy.http_status or 200): success, **_errors()}
    return {key: value for key, value in operation.items() if value != [] or key == "security"}


def _socket_note(method: MethodDescriptor) -> str:
    if method.client_streaming:
        return "\n\nA WebSocket: each text frame is one request, each frame received one answer."
    return (
        "\n\nA WebSocket: the first text frame is the request, each frame received one answer. "
        "A refusal closes it with 4000 + the gRPC code."
    )


def _errors() -> dict[str, Schema]:
    return {code: {"$ref": f"#/components/responses/{code}"} for code in _ERROR_RESPONSES}


def _body(writer: SchemaWriter, request: Descriptor, route: Route) -> Schema:
    if route.body != "*":
        return writer.field(request.fields_by_name[route.body])
    if route.variables:
        return writer.object(request, leave_out=route.variables)
    return writer.refer(request)


def _parameters(contracts: Contracts, writer: SchemaWriter, request: Descriptor, route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for field in request.fields:
        schema = writer.field(field)
        description = schema.pop("description", "")
        named = {"name": field.json_name, "description": description, "schema": schema}
        if field.name in route.variables:
            found.append({**named, "in": "path", "required": True})
        elif not route.body:
            found.append({**named, "in": "query", "required": writer.is_required(field)})
        http = contracts.http_field(field)
        for place, name in (("header", http.request_header), ("cookie", http.request_cookie)) if http else ():
            if name and name != "User-Agent":  # OpenAPI leaves the client's own headers out
                found.append({**named, "in": place, "name": name, "required": False})
    return found


def _answer(contracts: Contracts, writer: SchemaWriter, response: Descriptor) -> Schema:
    """The answer's body: fields that travel as a cookie are not in it."""
    cookies = tuple(
        field.name for field in response.fields if (http := contracts.http_field(field)) and http.response_cookie
    )
    return writer.object(response, leave_out=cookies) if cookies else writer.refer(response)


def _headers(contracts: Contracts, writer: SchemaWriter, response: Descriptor) -> dict[str, Any]:
    headers: dict[str, Any] = {
        "X-Correlation-ID": {
            "description": "UUID that follows the call through every service.",
            "schema": {"type": "string", "format": "uuid"},
        }
    }
    for field in response.fields:
        http = contracts.http_field(field)
        if http is None:
            continue
        schema = writer.field(field)
        description = schema.pop("description", "")
        if http.response_header:
            headers[http.response_header] = {"description": description, "schema": schema}
        if http.response_cookie:
            text = f"Cookie `{http.response_cookie}` (Secure, HttpOnly, SameSite=Strict): {description}"
            headers["Set-Cookie"] = {"description": text, "schema": {"type": "string"}}
    return headers


def _error(contracts: Contracts) -> Schema:
    """The body of every refusal."""
    reasons = contracts.error_reasons()
    lines = [
        f"- `{short_name(value)}` ({contracts.status_code(value)}): {contracts.comment(value)}" for value in reasons
    ]
    return {
        "type": "object",
        "description": "The body of every refusal and failure.",
        "required": ["error", "errorCode", "correlationId", "suggestedAction"],
        "properties": {
            "error": {"type": "string", "description": "What is wrong, in words."},
            "errorCode": {
                "type": "string",
                "description": "\n".join(["What is wrong, machine-readable.", "", *lines]),
                "enum": [short_name(value) for value in reasons],
            },
            "correlationId": {
                "type": "string",
                "format": "uuid",
                "description": "Names the call in the services' logs: give it to an operator.",
            },
            "suggestedAction": {"type": "string", "description": "What to do next."},
            "fields": {
                "type": "array",
                "description": "Each field that broke its rule.",
                "items": {
                    "type": "object",
                    "properties": {
                        "field": {"type": "string", "description": "Path in the request: `eventData.sessionId`."},
                        "description": {"type": "string", "description": "What is wrong with it."},
                    },
                },
            },
        },
    }
