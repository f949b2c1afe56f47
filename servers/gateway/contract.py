"""What the contract says about the RPCs that browsers may reach."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from behaviorguard.api.v1 import policy_pb2
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from servers.mesh.context import GATEWAY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.api.http_pb2 import HttpRule
    from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
    from google.protobuf.message import Message

_VERBS: Final = ("get", "post", "put", "patch", "delete")


class ContractError(ValueError):
    """The contract asks for a route that the gateway cannot serve."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One RPC at one HTTP path."""

    rpc: str
    """Full name on the wire: `/behaviorguard.threat.v1.ThreatService/AnalyzeRealtime`."""
    service: str
    """Full name of its service: `behaviorguard.threat.v1.ThreatService`."""
    verb: str
    """HTTP method, upper case; `GET` for sockets."""
    path: str
    """Path template, variables as field names: `/api/threat/risk-profiles/{user_id}`."""
    body: str
    """`*` when the body is the request, a field's name when it is that field, empty when there is none."""
    request: Descriptor
    """Type of the request."""
    response: Descriptor
    """Type of the answer."""
    client_streams: bool
    """True when the client sends a stream."""
    server_streams: bool
    """True when the service answers with a stream."""
    policy: policy_pb2.MethodPolicy
    """Scope and rate class."""

    @property
    def is_socket(self) -> bool:
        """True when the RPC streams, so that browsers reach it by WebSocket."""
        return self.client_streams or self.server_streams

    def new_request(self) -> Message:
        """An empty request."""
        return GetMessageClass(self.request)()

    def parse_response(self, data: bytes) -> Message:
        """An answer from its wire form."""
        return GetMessageClass(self.response).FromString(data)


def read_contract(descriptors: Path, services: set[str]) -> list[Operation]:
    """The operations of the named services that have an HTTP path and that the gateway may call for an end user.

    Args:
        descriptors: file with a serialised `google.protobuf.FileDescriptorSet`.
        services: full names of services.

    Raises:
        ContractError: a service is not in the contract, or a path has a form that cannot be served.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    homes = {f"{file.package}.{service.name}": file.name for file in files.file for service in file.service}
    operations: list[Operation] = []
    for service in sorted(services):
        if service not in homes:
            raise ContractError(f"{service} is not in {descriptors.name}: run `make generate`, or correct the settings")
        importlib.import_module(homes[service].removesuffix(".proto").replace("/", ".") + "_pb2")
        methods: Any = descriptor_pool.Default().FindServiceByName(service).methods
        for method in methods:
            operations.extend(_operations(service, method))
    return operations


def _operations(service: str, method: MethodDescriptor) -> Iterator[Operation]:
    options = method.GetOptions()
    policy: policy_pb2.MethodPolicy = options.Extensions[policy_pb2.policy]
    reachable = GATEWAY in policy.callers and policy.scope != policy_pb2.SCOPE_UNSPECIFIED
    if not reachable or not options.HasExtension(annotations_pb2.http):
        return
    rule: HttpRule = options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        verb = binding.WhichOneof("pattern")
        if verb not in _VERBS:
            raise ContractError(f"{method.full_name}: only {', '.join(_VERBS)} can be served, not {verb}")
        operation = Operation(
            rpc=f"/{service}/{method.name}",
            service=service,
            verb=verb.upper(),
            path=getattr(binding, verb),
            body=binding.body,
            request=method.input_type,
            response=method.output_type,
            client_streams=method.client_streaming,
            server_streams=method.server_streaming,
            policy=policy,
        )
        _check(operation)
        yield operation


def path_fields(path: str) -> list[str]:
    """Names of the variables of a path template."""
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]


def _check(operation: Operation) -> None:
    fields = operation.request.fields_by_name
    for part in operation.path.split("/"):
        variable = part[1:-1]
        if "{" in part and not (part == f"{{{variable}}}" and variable in fields and fields[variable].cpp_type != 10):
            raise ContractError(f"{operation.rpc}: {part!r} must be one scalar field of the request")
    if operation.body not in ("", "*") and operation.body not in fields:
        raise ContractError(f"{operation.rpc}: the body {operation.body!r} is no field of the request")
    _check_http_fields(operation)
    if operation.client_streams and not operation.server_streams:
        raise ContractError(f"{operation.rpc}: a stream of requests with a single answer has no form over WebSocket")


def _check_http_fields(operation: Operation) -> None:
    """Headers and cookies carry single values of the request or answer itself, by calls that are no sockets."""
    for field in (*operation.request.fields, *operation.response.fields):
        carried = http_field(field)
        if carried is None:
            continue
        if operation.is_socket or field.is_repeated or field.message_type is not None:
            raise ContractError(f"{operation.rpc}: no header or cookie can carry {field.full_name}")


def http_field(field: FieldDescriptor) -> policy_pb2.HttpField | None:
    """Where a field travels in HTTP besides the body; None when nowhere."""
    options = field.GetOptions()
    if not options.HasExtension(policy_pb2.http):
        return None
    found: policy_pb2.HttpField = options.Extensions[policy_pb2.http]
    return found
