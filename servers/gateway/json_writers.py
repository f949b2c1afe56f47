"""Protobuf to JSON, one writer per field, compiled from the descriptor."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from servers.gateway.json_enums import short_enum_name

if TYPE_CHECKING:
    from google.protobuf.message import Message

# Turns what protobuf holds into a JSON value.
Writer: TypeAlias = Callable[[Any], Any]
# Finds the writer for a message type.
WriteFrom: TypeAlias = Callable[[Descriptor], Writer]

_FLOAT_MAX: Final = 3.4028235677973362e38  # the largest double that still rounds to a finite 32-bit float
_WIDE: Final = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_PACK: Final = struct.Struct("<f")


def shortest_float(value: float) -> float | str:
    """The shortest decimal that reads back as the same 32-bit float (0.1, not 0.10000000149011612)."""
    if not math.isfinite(value):
        return _non_finite(value)
    packed = _PACK.pack(value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if abs(short) <= _FLOAT_MAX and _PACK.pack(short) == packed:
            return short
    return float(f"{value:.9g}")


def _non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _write_double(value: float) -> float | str:
    return value if math.isfinite(value) else _non_finite(value)


def _scalar_writer(field: FieldDescriptor) -> Writer | None:
    """What turns a field's value into JSON; None where it is JSON already."""
    kind = field.cpp_type
    if kind in _WIDE:
        return str
    if kind == FieldDescriptor.CPPTYPE_FLOAT:
        return shortest_float
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return _write_double
    if kind == FieldDescriptor.CPPTYPE_ENUM and field.enum_type is not None:
        enum = field.enum_type
        names = {value.number: short_enum_name(enum, value.number) for value in enum.values}
        return lambda number: names.get(number, number)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode("ascii")
    return None


class MessageWriter:
    """Turns messages of one type into JSON-ready dicts."""

    def __init__(self, descriptor: Descriptor, write_from: WriteFrom) -> None:
        self._fields = [
            (field.json_name, field.name, field.has_presence, _field_writer(field, write_from))
            for field in descriptor.fields
        ]

    def write(self, message: Message) -> dict[str, Any]:
        """The message as a dict of JSON values."""
        result: dict[str, Any] = {}
        for json_name, name, presence, writer in self._fields:
            if presence and not message.HasField(name):
                continue
            value = getattr(message, name)
            result[json_name] = value if writer is None else writer(value)
        return result


def _field_writer(field: FieldDescriptor, write_from: WriteFrom) -> Writer | None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_writer = _value_writer(field.message_type.fields_by_name["value"], write_from)
        return lambda items: {
            (str(key).lower() if isinstance(key, bool) else str(key)): value_writer(items[key]) for key in items
        }
    if field.is_repeated:
        writer = _value_writer(field, write_from)
        return lambda items: [writer(item) for item in items]
    return write_from(field.message_type) if field.message_type is not None else _scalar_writer(field)


def _value_writer(field: FieldDescriptor, write_from: WriteFrom) -> Writer:
    if field.message_type is not None:
        return write_from(field.message_type)
    return _scalar_writer(field) or (lambda value: value)
