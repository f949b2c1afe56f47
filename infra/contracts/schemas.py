"""JSON Schemas (2020-12) of the contracts' messages, as the gateway reads and writes them in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.contracts.model import OURS, is_map, message_type, short_name

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

    from infra.contracts.model import Contracts

Schema = dict[str, Any]

_INTEGERS = {
    "int32": (-(2**31), 2**31 - 1),
    "sint32": (-(2**31), 2**31 - 1),
    "sfixed32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "fixed32": (0, 2**32 - 1),
}
_LONG_INTEGERS = ("int64", "sint64", "sfixed64", "uint64", "fixed64")
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Struct": {"type": "object"},
}
_FORMATS: dict[str, Schema] = {
    "uuid": {"format": "uuid"},
    "email": {"format": "email"},
    "ip": {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
}


def type_name(field: FieldDescriptor) -> str:
    """Name of the field's type as protobuf writes it: `uint32`, `string`, `bytes`, `enum`, `message`."""
    kinds = {
        getattr(field, name): name.removeprefix("TYPE_").lower() for name in dir(field) if name.startswith("TYPE_")
    }
    return kinds[field.type]


def component_name(full_name: str) -> str:
    """Name of a type's component: `threat.v1.Reason`."""
    return full_name.removeprefix(OURS)


def reference(full_name: str) -> Schema:
    """A reference to a type's component."""
    return {"$ref": f"#/components/schemas/{component_name(full_name)}"}


class SchemaWriter:
    """Writes schemas and remembers which types they need."""

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self._needed: dict[str, Descriptor | EnumDescriptor] = {}

    def components(self) -> dict[str, Schema]:
        """Schemas of all types referred to so far, and of what these need, by component name."""
        done: dict[str, Schema] = {}
        while waiting := [element for name, element in self._needed.items() if component_name(name) not in done]:
            for element in waiting:
                done[component_name(element.full_name)] = self._component(element)
        return dict(sorted(done.items()))

    def _component(self, element: Any) -> Schema:
        comment = self._contracts.comment(element)
        if hasattr(element, "values"):
            lines = [f"- `{short_name(value)}`: {self._contracts.comment(value)}" for value in element.values]
            names = [short_name(value) for value in element.values]
            return {"type": "string", "description": "\n".join([comment, "", *lines]), "enum": names}
        return {"description": comment, **self.object(element)}

    def refer(self, element: Descriptor | EnumDescriptor) -> Schema:
        """The schema of a message or enum, by reference where it is ours."""
        if element.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[element.full_name])
        self._needed.setdefault(element.full_name, element)
        return reference(element.full_name)

    def object(self, message: Descriptor, leave_out: tuple[str, ...] = ()) -> Schema:
        """The schema of a message's JSON, without the named fields."""
        fields = [field for field in message.fields if field.name not in leave_out]
        schema: Schema = {
            "type": "object",
            "properties": {field.json_name: self.field(field) for field in fields},
            "additionalProperties": False,
        }
        required = [field.json_name for field in fields if self.is_required(field)]
        if required:
            schema["required"] = required
        rules = self._contracts.message_rules(message)
        if rules is not None and rules.cel:
            schema["x-rules"] = [rule.message for rule in rules.cel]
        return schema

    def is_required(self, field: FieldDescriptor) -> bool:
        """True when a request without the field is refused."""
        rules = self._contracts.rules(field)
        if rules is None or rules.ignore:
            return False
        http = self._contracts.http_field(field)
        if http is not None and (http.request_header or http.request_cookie):
            return False
        if field.has_presence:
            return bool(rules.required)
        kind = rules.WhichOneof("type")
        detail: Any = getattr(rules, kind) if kind else None
        if kind == "string":
            return bool(
                detail.uuid or detail.email or detail.min_len or (detail.pattern and "{0," not in detail.pattern)
            )
        if kind == "enum":
            return 0 in detail.not_in
        return bool(
            kind in ("bytes", "repeated") and (getattr(detail, "min_len", 0) or getattr(detail, "min_items", 0))
        )

    def field(self, field: FieldDescriptor) -> Schema:
        """The schema of one field with its rules and its comment."""
        rules = self._contracts.rules(field)
        if is_map(field):
            value = message_type(field).fields_by_name["value"]
            limits = rules.map if rules is not None else None
            schema: Schema = {
                "type": "object",
                "additionalProperties": self._single(value, limits.values if limits is not None else None),
            }
            if limits is not None and limits.max_pairs:
                schema["maxProperties"] = limits.max_pairs
        elif field.is_repeated:
            limits = rules.repeated if rules is not None else None
            schema = {"type": "array", "items": self._single(field, limits.items if limits is not None else None)}
            for name, key in (("min_items", "minItems"), ("max_items", "maxItems")):
                if limits is not None and getattr(limits, name):
                    schema[key] = getattr(limits, name)
            if limits is not None and limits.unique:
                schema["uniqueItems"] = True
        else:
            schema = self._single(field, rules)
        comment = self._contracts.comment(field)
        if comment:
            schema["description"] = comment
        if self._contracts.sensitivity(field) != "public":
            schema["x-sensitivity"] = self._contracts.sensitivity(field)
        return schema

    def _single(self, field: FieldDescriptor, rules: Any) -> Schema:
        kind = type_name(field)
        if kind == "message":
            return self.refer(message_type(field))
        if field.enum_type is not None:
            return self.refer(field.enum_type)
        if kind == "bool":
            return {"type": "boolean"}
        detail = getattr(rules, kind) if rules is not None and rules.WhichOneof("type") == kind else None
        if kind == "string":
            return _string(detail, optional=bool(rules is not None and rules.ignore))
        if kind == "bytes":
            return _bytes(detail)
        return _number(kind, detail)


def _string(rules: Any, *, optional: bool) -> Schema:
    schema: Schema = {"type": "string"}
    if rules is None:
        return schema
    for name, key in (("min_len", "minLength"), ("max_len", "maxLength")):
        if getattr(rules, name) and not (optional and name == "min_len"):
            schema[key] = getattr(rules, name)
    if rules.pattern:
        schema["pattern"] = rules.pattern
    well_known = rules.WhichOneof("well_known")
    if well_known in _FORMATS:
        schema.update(_FORMATS[well_known])
    values = list(getattr(rules, "in"))
    if values:
        schema["enum"] = values
    if optional:
        return {"anyOf": [{"const": ""}, schema]}
    return schema


def _bytes(rules: Any) -> Schema:
    """Base64, so lengths are of the text: four characters for each three bytes begun."""
    schema: Schema = {"type": "string", "contentEncoding": "base64"}
    if rules is None:
        return schema
    low, high = rules.len or rules.min_len, rules.len or rules.max_len
    if low:
        schema["minLength"] = -(-low // 3) * 4
    if high:
        schema["maxLength"] = -(-high // 3) * 4
    return schema


def _number(kind: str, rules: Any) -> Schema:
    if kind in _LONG_INTEGERS:  # JSON's numbers cannot carry 64 bits
        return {"type": "string", "format": "int64" if kind[0] != "u" else "uint64", "pattern": "^-?[0-9]+$"}
    schema: Schema = {"type": "number"}
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        schema = {"type": "integer", "minimum": low, "maximum": high}
    if rules is None:
        return schema
    for name, key in (("gte", "minimum"), ("gt", "exclusiveMinimum"), ("lte", "maximum"), ("lt", "exclusiveMaximum")):
        if rules.HasField(name):
            value = getattr(rules, name)
            schema[key] = int(value) if float(value).is_integer() else value
    values = list(getattr(rules, "in"))
    if values:
        schema["enum"] = values
    return schema
