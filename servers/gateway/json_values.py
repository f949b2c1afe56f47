"""Single JSON values, and columns of them, to what protobuf takes: strict, and in words where one cannot be taken."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson
from google.protobuf.descriptor import FieldDescriptor

from servers.gateway.json_enums import enum_prefix, short_enum_name

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor

# Turns one JSON value into what protobuf takes.
Scalar: TypeAlias = Callable[[object], Any]

_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,19})", re.ASCII)
_FLOAT_MAX: Final = 3.4028235677973362e38  # the largest double that still rounds to a finite 32-bit float
_INTEGER_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_WIDE: Final = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


class JsonMismatchError(ValueError):
    """JSON that the message cannot take.

    Attributes:
        path: lowerCamelCase path of the value (`eventData.sessionId`, `items[3].name`); empty for the document.
        description: what is wrong, in words, without the value itself.
    """

    def __init__(self, description: str, path: str = "") -> None:
        super().__init__(description)
        self.description = description
        self.path = path

    def under(self, parent: str) -> JsonMismatchError:
        """Puts a parent's name, or an index such as `[3]`, in front of the path."""
        separator = "" if not self.path or self.path.startswith("[") else "."
        self.path = f"{parent}{separator}{self.path}"
        return self


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def fail(expected: str, value: object) -> JsonMismatchError:
    """The refusal of a value of another type than `expected` (in words: "a list")."""
    return JsonMismatchError(f"must be {expected}, not {_kind(value)}")


def _read_bool(value: object) -> bool:
    if type(value) is not bool:
        raise fail("true or false", value)
    return value


def read_string(value: object) -> str:
    """Takes text and nothing else."""
    if type(value) is not str:
        raise fail("a string", value)
    return value


def _read_bytes(value: object) -> bytes:
    if type(value) is not str:
        raise fail("a base64 string", value)
    text = value.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise JsonMismatchError("must be base64") from None


def _integer_reader(low: int, high: int, *, wide: bool) -> Scalar:
    def read(value: object) -> int:
        if wide and type(value) is str and _DECIMAL.fullmatch(value):
            number = int(value)
        elif type(value) is int:
            number = value
        elif type(value) is float and value.is_integer() and abs(value) <= 2**53:
            number = int(value)
        else:
            raise fail("an integer", value) if type(value) is not float else JsonMismatchError("must be an integer")
        if not low <= number <= high:
            raise JsonMismatchError(f"must be between {low} and {high}")
        return number

    return read


def _float_reader(limit: float) -> Scalar:
    def read(value: object) -> float:
        if type(value) is not float and type(value) is not int:
            raise fail("a number", value)
        if not -limit <= value <= limit:
            raise JsonMismatchError("must be a finite number that the field can hold")
        return float(value)

    return read


def _enum_reader(enum: EnumDescriptor) -> Scalar:
    numbers = _enum_numbers(enum)

    def read(value: object) -> int:
        if type(value) is not str:
            raise fail("a name", value)
        number = numbers.get(value)
        if number is None:
            raise JsonMismatchError(_enum_choices(enum))
        return number

    return read


def _enum_numbers(enum: EnumDescriptor) -> dict[str, int]:
    prefix = enum_prefix(enum)
    numbers = {value.name.removeprefix(prefix).lower(): value.number for value in enum.values}
    return numbers | {value.name: value.number for value in enum.values}


def _enum_choices(enum: EnumDescriptor) -> str:
    names = [str(short_enum_name(enum, value.number)) for value in enum.values if value.number]
    return "must be one of: " + ", ".join(names)


def scalar_reader(field: FieldDescriptor) -> Scalar:
    """What reads one value of a scalar or enum field."""
    kind = field.cpp_type
    if kind in _INTEGER_RANGES:
        return _integer_reader(*_INTEGER_RANGES[kind], wide=kind in _WIDE)
    if kind == FieldDescriptor.CPPTYPE_FLOAT:
        return _float_reader(_FLOAT_MAX)
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return _float_reader(math.inf)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _read_bool
    if kind == FieldDescriptor.CPPTYPE_ENUM and field.enum_type is not None:
        return _enum_reader(field.enum_type)
    return _read_bytes if field.type == FieldDescriptor.TYPE_BYTES else read_string


def column_reader(field: FieldDescriptor) -> Callable[[list[object]], list[Any]]:
    """What reads a list of scalars: a few C-level passes in the common case, item by item only to name the culprit."""
    read = scalar_reader(field)
    quick = _quick_column(field)

    def read_column(values: list[object]) -> list[Any]:
        known = quick(values)
        if known is not None:
            return known
        result = []
        for index, value in enumerate(values):
            try:
                result.append(read(value))
            except JsonMismatchError as error:
                raise error.under(f"[{index}]") from None
        return result

    return read_column


def _quick_column(field: FieldDescriptor) -> Callable[[list[Any]], list[Any] | None]:
    """Reads a list that holds what it should; None where it has to be looked at item by item."""
    kind = field.cpp_type
    if field.enum_type is not None:
        return _quick_enums(_enum_numbers(field.enum_type))
    types: set[type]
    if kind in _INTEGER_RANGES:
        low, high = _INTEGER_RANGES[kind]
        types = {int}
    elif kind == FieldDescriptor.CPPTYPE_FLOAT:
        low, high = -_FLOAT_MAX, _FLOAT_MAX  # type: ignore[assignment]  # integer bounds above, floating ones here
        types = {int, float}
    else:
        return lambda _values: None

    def quick(values: list[Any]) -> list[Any] | None:
        good = values and set(map(type, values)) <= types and low <= min(values) and max(values) <= high
        return values if good else None

    return quick


def _quick_enums(numbers: dict[str, int]) -> Callable[[list[Any]], list[Any] | None]:
    def quick(values: list[Any]) -> list[Any] | None:
        try:
            return [numbers[value] for value in values]
        except (KeyError, TypeError):  # no such name, or no name at all
            return None

    return quick


def query_reader(field: FieldDescriptor) -> Callable[[str], Any]:
    """Reads a scalar, enum or timestamp from the text of a path segment, query parameter or map key.

    Raises:
        TypeError: the field is of a type that has no such form.
    """
    read = scalar_reader(field)
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return lambda text: read({"true": True, "false": False}.get(text, text))
    if kind in _INTEGER_RANGES:
        return lambda text: read(int(text) if _DECIMAL.fullmatch(text) else text)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return lambda text: read(_parse_float(text))
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        raise TypeError(f"{field.full_name} has no textual form")
    return read


def _parse_float(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
