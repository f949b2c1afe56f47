"""Enum values in JSON: short lower-case names, as the contract's prefixes allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor


def enum_prefix(enum: EnumDescriptor) -> str:
    """The prefix that all value names share, as the zero value shows (`THREAT_LEVEL_UNSPECIFIED`: `THREAT_LEVEL_`)."""
    zero = enum.values[0].name
    prefix = zero.removesuffix("UNSPECIFIED")
    return prefix if prefix != zero and all(value.name.startswith(prefix) for value in enum.values) else ""


def short_enum_name(enum: EnumDescriptor, number: int) -> str | int:
    """The short lower-case name of an enum's value; the number itself where the contract at hand does not know it."""
    value = enum.values_by_number.get(number)
    return number if value is None else value.name.removeprefix(enum_prefix(enum)).lower()
