"""The contract reference (`docs/contracts.md`) for people: services, RPCs, messages, enums, error reasons."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from infra.contracts.model import OURS, is_map, message_type, short_name
from infra.contracts.schemas import type_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

    from infra.contracts.model import Contracts

_INTRODUCTION = """# Contracts

Written by `make generate` from `protos/`; edit the protos, not this page.

Services speak gRPC to each other; the gateway serves the paths below as REST (JSON) and, for streams, WebSocket. In
JSON, names are lowerCamelCase, enums short lower-case names, bytes base64, 64-bit integers strings, times RFC 3339.
Unknown fields are refused.

**Who may call** names workloads: the last segment of the certificate's SPIFFE URI. **For whom** is the end user behind
the call: *anonymous* (anybody), *self* (a person, for their own data), *analyst*, *admin*; *workloads only* can be
reached by no end user and has no path. **Rate** is a budget for each person and RPC. 🔒 marks content that is personal
or secret: it never enters logs, spans, metrics or error texts.

"""


def reference(contracts: Contracts) -> bytes:
    """The page, the same bytes for the same contracts."""
    lines = [_INTRODUCTION, *_contents(contracts)]
    for package in _packages(contracts):
        lines.append(f"\n## {package}\n")
        for service in contracts.services():
            if _package(service) == package:
                lines += [f"\n### {service.name}\n", contracts.comment(service), ""]
                for method in service.methods:
                    lines += _method(contracts, method)
        messages = [message for message in contracts.messages() if _package(message) == package]
        enums = [enum for enum in contracts.enums() if _package(enum) == package and enum.name != "ErrorReason"]
        lines += [line for message in messages for line in _message(contracts, message)]
        lines += [line for enum in enums for line in _enum(contracts, enum)]
    lines += _reasons(contracts)
    return ("\n".join(line.rstrip(" ") for line in lines).rstrip() + "\n").encode()


def _package(element: Any) -> str:
    return str(element.file.package.removeprefix(OURS))


def _packages(contracts: Contracts) -> list[str]:
    return sorted({_package(element) for element in [*contracts.services(), *contracts.messages()]})


def _contents(contracts: Contracts) -> Iterator[str]:
    yield "| service | RPC | path | who may call | for whom | rate |"
    yield "|---|---|---|---|---|---|"
    for service in contracts.services():
        for method in service.methods:
            callers, scope, rate = _access(contracts, method)
            anchor = f"#{_method_anchor(method)}"
            paths = ", ".join(_paths(contracts, method))
            yield f"| {service.name} | [{method.name}]({anchor}) | {paths} | {callers} | {scope} | {rate} |"


def _access(contracts: Contracts, method: MethodDescriptor) -> tuple[str, str, str]:
    policy = contracts.policy(method)
    callers = ", ".join(policy.callers) if policy is not None else ""
    rate, per_minute = contracts.rate_class(method)
    return callers or "nobody", contracts.scope(method) or "workloads only", f"{rate} ({per_minute}/min)"


def _paths(contracts: Contracts, method: MethodDescriptor) -> list[str]:
    socket = method.client_streaming or method.server_streaming
    return [f"`{'WS' if socket else route.verb.upper()} {route.path}`" for route in contracts.routes(method)]


def _method(contracts: Contracts, method: MethodDescriptor) -> list[str]:
    callers, scope, rate = _access(contracts, method)
    policy = contracts.policy(method)
    sends = "stream of " if method.client_streaming else ""
    answers = "stream of " if method.server_streaming else ""
    facts = [
        f"{sends}{_link(method.input_type)} → {answers}{_link(method.output_type)}",
        *_paths(contracts, method),
        f"callers: {callers}",
        f"for: {scope}",
        f"rate: {rate}",
        *(["audited"] if policy is not None and policy.audited else []),
    ]
    return [
        f'#### <a id="{_method_anchor(method)}"></a>{method.name}\n',
        contracts.comment(method),
        "",
        " · ".join(facts),
        "",
    ]


def _link(element: Any) -> str:
    """A link to one of our types, the bare name of any other."""
    if not element.full_name.startswith(OURS):
        return f"`{element.name}`"
    return f"[{element.name}](#{_anchor(element)})"


def _anchor(element: Any) -> str:
    return re.sub(r"[^a-z0-9-]", "", f"{_package(element)}-{element.name}".lower())


def _method_anchor(method: MethodDescriptor) -> str:
    return f"{_anchor(method.containing_service)}-{method.name.lower()}"


def _heading(element: Any) -> str:
    return f'\n#### <a id="{_anchor(element)}"></a>{element.name}\n'


def _message(contracts: Contracts, message: Descriptor) -> list[str]:
    lines = [_heading(message), contracts.comment(message), ""]
    if not message.fields:
        return lines
    lines += ["| field | type | what |", "|---|---|---|"]
    for field in message.fields:
        mark = "" if contracts.sensitivity(field) == "public" else " 🔒"
        text = " ".join([_cell(contracts.comment(field)), *_rules(contracts, field)])
        lines.append(f"| `{field.name}`{mark} | {_type(field)} | {text} |")
    rules = contracts.message_rules(message)
    lines += [f"\nRule: {rule.message}." for rule in (rules.cel if rules is not None else ())]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(field: FieldDescriptor) -> str:
    if is_map(field):
        value = message_type(field).fields_by_name["value"]
        return f"map to {_type(value)}"
    kind = type_name(field)
    name = {"message": field.message_type, "enum": field.enum_type}.get(kind)
    text = _link(name) if name is not None else kind
    if field.is_repeated:
        return f"list of {text}"
    oneof = field.containing_oneof
    if oneof is not None and not oneof.name.startswith("_"):
        return f"{text}, one of `{oneof.name}`"
    return text


def _rules(contracts: Contracts, field: FieldDescriptor) -> Iterator[str]:
    """The field's rules as the contract writes them; the comment says them in words."""
    rules = contracts.rules(field)
    if rules is not None:
        written = re.sub(r"\s+", " ", str(rules)).strip()
        written = written.replace("ignore: IGNORE_IF_ZERO_VALUE", "empty is allowed")
        yield f"*Rule:* `{_cell(written)}`"
    http = contracts.http_field(field)
    if http is not None:
        yield f"*HTTP:* `{_cell(str(http))}`"


def _enum(contracts: Contracts, enum: EnumDescriptor) -> list[str]:
    lines = [_heading(enum), contracts.comment(enum), "", "| value | in JSON | what |", "|---|---|---|"]
    lines += [f"| `{v.name}` | `{short_name(v)}` | {_cell(contracts.comment(v))} |" for v in enum.values]
    return lines


def _reasons(contracts: Contracts) -> Iterator[str]:
    yield "\n## Error reasons\n"
    yield "Carried as `google.rpc.ErrorInfo.reason` (domain `behaviorguard`), in JSON as `errorCode`.\n"
    yield "| errorCode | status | what | what to do |"
    yield "|---|---|---|---|"
    for value in contracts.error_reasons():
        what, action = _cell(contracts.comment(value)), _cell(contracts.suggested_action(value))
        yield f"| `{short_name(value)}` | {contracts.status_code(value)} | {what} | {action} |"
