"""The contracts as their descriptors say them: one reading for OpenAPI, the reference and the contract tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import (
        Descriptor,
        EnumDescriptor,
        EnumValueDescriptor,
        FieldDescriptor,
        MethodDescriptor,
        ServiceDescriptor,
    )

OURS = "behaviorguard."


@dataclass(frozen=True)
class Route:
    """One HTTP binding of an RPC."""

    verb: str
    """Lower-case HTTP method."""
    path: str
    """Template with the request's field names as variables: `/api/threat/events/{event_id}`."""
    body: str
    """`*`, the name of the field that is the body, or empty."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Field names in the path."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


class Contracts:
    """Reads a descriptor set with its own pool, so that the options are understood as that very set declares them."""

    def __init__(self, descriptors: bytes) -> None:
        """Take a serialised `google.protobuf.FileDescriptorSet` that holds all imports."""
        self._files = files = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
        self._pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self._pool.Add(file)
        self._comments = {name: text for file in files.file for name, text in _comments(file).items()}

    def services(self) -> list[ServiceDescriptor]:
        """Our services, sorted by full name."""
        names = (f"{f.package}.{s.name}" for f in self._files.file if f.package.startswith(OURS) for s in f.service)
        return [self._pool.FindServiceByName(name) for name in sorted(names)]

    def messages(self) -> list[Descriptor]:
        """Our messages, sorted by full name; there are no nested ones besides map entries."""
        names = (
            f"{f.package}.{m.name}" for f in self._files.file if f.package.startswith(OURS) for m in f.message_type
        )
        return [self._pool.FindMessageTypeByName(name) for name in sorted(names)]

    def enums(self) -> list[EnumDescriptor]:
        """Our enums, sorted by full name."""
        names = (f"{f.package}.{e.name}" for f in self._files.file if f.package.startswith(OURS) for e in f.enum_type)
        return [self._pool.FindEnumTypeByName(name) for name in sorted(names)]

    def request_messages(self) -> dict[str, Descriptor]:
        """Every message of ours that a caller can send, by full name: the requests and what they hold."""
        found: dict[str, Descriptor] = {}
        waiting = [method.input_type for service in self.services() for method in service.methods]
        while waiting:
            message = waiting.pop()
            if message.full_name in found or not message.full_name.startswith(OURS):
                continue
            found[message.full_name] = message
            waiting.extend(field.message_type for field in message.fields if field.message_type is not None)
        return found

    def comment(self, element: Any) -> str:
        """The comment before a service, method, message, field, enum or enum value; empty without one."""
        name = element.full_name if hasattr(element, "full_name") else f"{element.type.full_name}.{element.name}"
        return self._comments.get(name, "")

    def _options(self, element: Any, kind: str) -> Any:
        options = GetMessageClass(self._pool.FindMessageTypeByName(f"google.protobuf.{kind}"))
        return options.FromString(element.GetOptions().SerializeToString())

    def _extension(self, element: Any, kind: str, name: str) -> Any:
        """The value of a custom option; None when it is not set."""
        extension = self._pool.FindExtensionByName(name)
        options = self._options(element, kind)
        return options.Extensions[extension] if options.HasExtension(extension) else None

    def policy(self, method: MethodDescriptor) -> Any:
        """The RPC's `MethodPolicy`; None when it declares none."""
        return self._extension(method, "MethodOptions", "behaviorguard.api.v1.policy")

    def scope(self, method: MethodDescriptor) -> str:
        """The scope's short name: `self`; empty for workloads only."""
        policy = self.policy(method)
        if policy is None or not policy.scope:
            return ""
        return short_name(self._pool.FindEnumTypeByName("behaviorguard.api.v1.Scope").values_by_number[policy.scope])

    def rate_class(self, method: MethodDescriptor) -> tuple[str, int]:
        """The rate class's short name and the calls a minute that it allows."""
        policy = self.policy(method)
        rates = self._pool.FindEnumTypeByName("behaviorguard.api.v1.RateClass")
        value = rates.values_by_number[0 if policy is None else policy.rate_class]
        per_minute = self._extension(value, "EnumValueOptions", "behaviorguard.api.v1.calls_per_minute")
        return short_name(value), int(per_minute)

    def routes(self, method: MethodDescriptor) -> Iterator[Route]:
        """The RPC's HTTP bindings, the main one first."""
        rule = self._extension(method, "MethodOptions", "google.api.http")
        if rule is None:
            return
        for binding in (rule, *rule.additional_bindings):
            verb = binding.WhichOneof("pattern")
            yield Route(verb, getattr(binding, verb), binding.body)

    def rules(self, field: FieldDescriptor) -> Any:
        """The field's protovalidate rules; None when it has none."""
        return self._extension(field, "FieldOptions", "buf.validate.field")

    def message_rules(self, message: Descriptor) -> Any:
        """The message's own protovalidate rules; None when it has none."""
        return self._extension(message, "MessageOptions", "buf.validate.message")

    def sensitivity(self, field: FieldDescriptor) -> str:
        """How the field's content must be treated: `public`, `personal` or `secret`."""
        number = self._extension(field, "FieldOptions", "behaviorguard.api.v1.sensitivity")
        kinds = self._pool.FindEnumTypeByName("behaviorguard.api.v1.Sensitivity")
        return short_name(kinds.values_by_number[number or 1])

    def http_field(self, field: FieldDescriptor) -> Any:
        """Where the field travels in HTTP besides the body (`HttpField`); None when nowhere."""
        return self._extension(field, "FieldOptions", "behaviorguard.api.v1.http")

    def suggested_action(self, value: EnumValueDescriptor) -> str:
        """What a caller should do about an `ErrorReason`; empty when it does not say."""
        action = self._extension(value, "EnumValueOptions", "behaviorguard.api.v1.suggested_action")
        return action or ""

    def status_code(self, value: EnumValueDescriptor) -> str:
        """Name of the gRPC status that an `ErrorReason` goes with; empty when it does not say."""
        number = self._extension(value, "EnumValueOptions", "behaviorguard.api.v1.code")
        codes = self._pool.FindEnumTypeByName("google.rpc.Code")
        return "" if number is None else str(codes.values_by_number[number].name)

    def error_reasons(self) -> list[EnumValueDescriptor]:
        """All values of `ErrorReason`, by number."""
        return list(self._pool.FindEnumTypeByName("behaviorguard.api.v1.ErrorReason").values)


def enum_prefix(enum: EnumDescriptor) -> str:
    """What all values' names begin with: `THREAT_LEVEL_`."""
    return str(enum.values[0].name.removesuffix("UNSPECIFIED"))


def short_name(value: EnumValueDescriptor) -> str:
    """The value's name in JSON: without the prefix, lower-case."""
    return str(value.name.removeprefix(enum_prefix(value.type)).lower())


def message_type(field: FieldDescriptor) -> Descriptor:
    """The message that a field of type message holds."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} holds no message")
    return field.message_type


def is_map(field: FieldDescriptor) -> bool:
    """True for a map field."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    """Leading comments of a file's elements by full name; an enum value counts as its enum's member."""
    text = {tuple(place.path): _text(place.leading_comments) for place in file.source_code_info.location}
    names: dict[str, tuple[int, ...]] = {}
    for index, message in enumerate(file.message_type):
        names[message.name] = (4, index)
        names.update(
            {f"{message.name}.{field.name}": (4, index, 2, place) for place, field in enumerate(message.field)}
        )
    for index, enum in enumerate(file.enum_type):
        names[enum.name] = (5, index)
        names.update({f"{enum.name}.{value.name}": (5, index, 2, place) for place, value in enumerate(enum.value)})
    for index, service in enumerate(file.service):
        names[service.name] = (6, index)
        names.update({f"{service.name}.{rpc.name}": (6, index, 2, place) for place, rpc in enumerate(service.method)})
    return {f"{file.package}.{name}": text.get(path, "") for name, path in names.items()}


def _text(comment: str) -> str:
    """A comment without the blank that follows each `//`."""
    return "\n".join(line.strip() for line in comment.strip().splitlines())
