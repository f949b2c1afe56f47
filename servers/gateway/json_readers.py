"""JSON objects to protobuf messages, one reader per field, compiled from the descriptor."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from servers.gateway.json_values import (
    JsonMismatchError,
    Scalar,
    column_reader,
    fail,
    query_reader,
    read_string,
    scalar_reader,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

# Sets what a JSON value says on a message; returns how many object members the value holds, all levels together.
Reader: TypeAlias = "Callable[[Message, object], int]"
# Finds the reader for a message type.
ReadInto: TypeAlias = Callable[[Descriptor], Reader]

_COMMON_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3}|\.[0-9]{6})?Z", re.ASCII
)


class MessageReader:
    """Fills messages of one type from parsed JSON."""

    def __init__(self, descriptor: Descriptor, read_into: ReadInto) -> None:
        self._name = descriptor.name
        self._fields = {field.json_name: _field_reader(field, read_into) for field in descriptor.fields}
        self._oneofs = {
            field.json_name: field.containing_oneof.name
            for field in descriptor.fields
            if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        }

    def read(self, message: Message, value: object) -> int:
        """Sets every member of a JSON object on the message; returns the number of members, nested ones included.

        Raises:
            JsonMismatchError: the value is no object, or a member is unknown or cannot be taken.
        """
        if type(value) is not dict:
            raise fail("an object", value)
        members = len(value)
        chosen: dict[str, str] = {}
        for name, item in value.items():
            reader = self._fields.get(name)
            if reader is None:
                raise JsonMismatchError(f"is not a field of {self._name}", name[:64])
            if item is None:
                continue
            group = self._oneofs.get(name)
            if group is not None and chosen.setdefault(group, name) != name:
                raise JsonMismatchError(f"excludes {chosen[group]}: send one of them", name)
            try:
                members += reader(message, item)
            except JsonMismatchError as error:
                raise error.under(name) from None
        return members


def _field_reader(field: FieldDescriptor, read_into: ReadInto) -> Reader:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map_reader(field, read_into)
    if field.is_repeated:
        return _repeated_message_reader(field, read_into) if field.message_type else _repeatedscalar_reader(field)
    if field.message_type is not None:
        return _message_reader(field, read_into)
    name, read = field.name, scalar_reader(field)

    def set_scalar(message: Message, value: object) -> int:
        setattr(message, name, read(value))
        return 0

    return set_scalar


def _message_reader(field: FieldDescriptor, read_into: ReadInto) -> Reader:
    name, read_message = field.name, read_into(_message_type(field))

    def read(message: Message, value: object) -> int:
        child: Message = getattr(message, name)
        child.SetInParent()
        return read_message(child, value)

    return read


def _repeated_message_reader(field: FieldDescriptor, read_into: ReadInto) -> Reader:
    name, read_message = field.name, read_into(_message_type(field))

    def read(message: Message, value: object) -> int:
        if type(value) is not list:
            raise fail("a list", value)
        members, items = 0, getattr(message, name)
        for index, item in enumerate(value):
            try:
                members += read_message(items.add(), item)
            except JsonMismatchError as error:
                raise error.under(f"[{index}]") from None
        return members

    return read


def _repeatedscalar_reader(field: FieldDescriptor) -> Reader:
    name, read_column = field.name, column_reader(field)

    def read(message: Message, value: object) -> int:
        if type(value) is not list:
            raise fail("a list", value)
        getattr(message, name).extend(read_column(value))
        return 0

    return read


def _map_reader(field: FieldDescriptor, read_into: ReadInto) -> Reader:
    name = field.name
    entry = _message_type(field).fields_by_name
    read_key, value_field = _map_key_reader(entry["key"]), entry["value"]
    read_message = read_into(value_field.message_type) if value_field.message_type is not None else None
    read_value = scalar_reader(value_field)

    def read(message: Message, value: object) -> int:
        if type(value) is not dict:
            raise fail("an object", value)
        members, target = len(value), getattr(message, name)
        for raw, item in value.items():
            try:
                key = read_key(raw)
                if read_message is not None:
                    members += read_message(target[key], item)
                else:
                    target[key] = read_value(item)
            except JsonMismatchError as error:
                raise error.under(f"[{raw[:64]}]") from None
        return members

    return read


def _map_key_reader(field: FieldDescriptor) -> Scalar:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return read_string
    read = query_reader(field)
    return lambda value: read(str(value))


def _message_type(field: FieldDescriptor) -> Descriptor:
    if field.message_type is None:
        raise TypeError(f"{field.full_name} is no message")
    return field.message_type


def _count_members(value: object) -> int:
    if type(value) is dict:
        return len(value) + sum(map(_count_members, value.values()))
    return sum(map(_count_members, value)) if type(value) is list else 0


def read_timestamp(message: Any, value: object) -> int:
    """Reads an RFC 3339 time into a `google.protobuf.Timestamp`."""
    if type(value) is not str:
        raise fail("an RFC 3339 time", value)
    try:
        if _COMMON_TIME.fullmatch(value):
            message.FromDatetime(datetime.fromisoformat(value))  # a fifth of the time of the general way
        else:
            message.FromJsonString(value)
    except (ValueError, OverflowError):
        raise JsonMismatchError("must be an RFC 3339 time such as 2026-01-31T12:00:00.000Z") from None
    return 0


def read_well_known(message: Message, value: object) -> int:
    """Reads what has a JSON form of its own (durations, wrappers, structs, masks) as protobuf's own library does."""
    try:
        json_format.ParseDict(value, message)  # type: ignore[arg-type]  # any JSON value is allowed for a well-known type
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError):
        raise JsonMismatchError("is not the JSON form of " + message.DESCRIPTOR.full_name) from None
    return _count_members(value)
