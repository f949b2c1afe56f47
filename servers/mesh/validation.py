"""Field rules of the contract (protovalidate), turned into field problems that callers can act on.

A message is first checked up to its first problem. Only when it has one are all collected, and before that the
lengths of its lists are
looked at: collecting every problem of a hostile message of a few kilobytes takes a second, of a few megabytes
minutes, on the event loop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import protovalidate
from buf.validate import validate_pb2

from servers.mesh.errors import ErrorReason, FieldProblem, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

_NOT_A_REASON: Final = re.compile(r"[^A-Z0-9]+")
_NO_LIMIT: Final = 2**63
_TIMESTAMP: Final = "google.protobuf.Timestamp"
_FIRST_SECOND: Final = -62_135_596_800  # 0001-01-01
_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31, as google/protobuf/timestamp.proto says


@dataclass(frozen=True, slots=True)
class _Bound:
    """A field that is a list, or that holds lists."""

    name: str
    repeated: bool
    max_items: int
    inside: tuple[_Bound, ...]


@dataclass(frozen=True, slots=True)
class _Time:
    """A field that is a point in time, or that holds some."""

    name: str
    repeated: bool
    inside: tuple[_Time, ...]
    """Empty for the point in time itself."""


class MessageValidator:
    """Checks messages against the rules that their proto declares; rules are compiled once a message type."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()
        self._bounds: dict[str, tuple[_Bound, ...]] = {}
        self._times: dict[str, tuple[_Time, ...]] = {}

    def check(self, message: Message) -> None:
        """Return when the message keeps all rules.

        Raises:
            MeshError: INVALID_FIELD, with one problem for each broken rule; values are never repeated.
        """
        if self._validator.collect_violations(message, fail_fast=True):
            problems = list(_too_long(message, self._bounds_of(message), ""))
            raise _invalid(problems or [_problem(found) for found in self._validator.collect_violations(message)])
        impossible = list(_impossible(message, self._times_of(message), ""))
        if impossible:
            raise _invalid(impossible)

    def _times_of(self, message: Message) -> tuple[_Time, ...]:
        name = message.DESCRIPTOR.full_name
        if name not in self._times:
            self._times[name] = tuple(_find_times(message.DESCRIPTOR, (name,)))  # type: ignore[arg-type]  # as below
        return self._times[name]

    def _bounds_of(self, message: Message) -> tuple[_Bound, ...]:
        name = message.DESCRIPTOR.full_name
        if name not in self._bounds:
            bounds = _find_bounds(message.DESCRIPTOR, (name,))  # type: ignore[arg-type]  # the same class, in C
            self._bounds[name] = tuple(bounds)
        return self._bounds[name]


def _invalid(problems: Sequence[FieldProblem]) -> MeshError:
    names = ", ".join(dict.fromkeys(problem.field or "request" for problem in problems[:3]))
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, f"invalid: {names}{more}", fields=problems)


def _problem(violation: protovalidate.Violation) -> FieldProblem:
    said = violation.proto
    path: list[str] = []
    for element in said.field.elements if said.field is not None else ():
        index = element.subscript
        # A map's key is the caller's text and stays out of the answer.
        suffix = "" if index is None else f"[{index.value}]" if index.field == "index" else "[key]"
        path.append(f"{element.field_name}{suffix}")
    reason = _NOT_A_REASON.sub("_", said.rule_id.upper()).strip("_")
    return FieldProblem(".".join(path), said.message or f"breaks the rule {said.rule_id}", reason)


def _too_long(message: Any, bounds: tuple[_Bound, ...], path: str) -> Iterator[FieldProblem]:
    """The lists that are over their limit; what lies inside them is not looked at."""
    for bound in bounds:
        if bound.repeated:
            items = getattr(message, bound.name)
            if len(items) > bound.max_items:
                description = f"must contain no more than {bound.max_items} item(s)"
                yield FieldProblem(path + bound.name, description, "REPEATED_MAX_ITEMS")
            elif bound.inside:
                for index, item in enumerate(items):
                    yield from _too_long(item, bound.inside, f"{path}{bound.name}[{index}].")
        elif message.HasField(bound.name):
            yield from _too_long(getattr(message, bound.name), bound.inside, f"{path}{bound.name}.")


def _impossible(message: Any, times: tuple[_Time, ...], path: str) -> Iterator[FieldProblem]:
    """The points in time that are none: the wire carries any pair of numbers, and no rule can ask for a valid one."""
    for time in times:
        if time.repeated:
            places = [(item, f"{path}{time.name}[{index}]") for index, item in enumerate(getattr(message, time.name))]
        elif message.HasField(time.name):
            places = [(getattr(message, time.name), path + time.name)]
        else:
            continue
        for value, place in places:
            if time.inside:
                yield from _impossible(value, time.inside, f"{place}.")
            elif not (0 <= value.nanos < 1_000_000_000 and _FIRST_SECOND <= value.seconds <= _LAST_SECOND):
                yield FieldProblem(place, "must be a point in time", "TIMESTAMP")


def _find_times(descriptor: Descriptor, above: tuple[str, ...]) -> Iterator[_Time]:
    for field in descriptor.fields:
        child = field.message_type
        if child is None or child.GetOptions().map_entry or child.full_name in above:
            continue
        if child.full_name == _TIMESTAMP:
            yield _Time(field.name, field.is_repeated, ())
            continue
        inside = tuple(_find_times(child, (*above, child.full_name)))
        if inside:
            yield _Time(field.name, field.is_repeated, inside)


def _find_bounds(descriptor: Descriptor, above: tuple[str, ...]) -> Iterator[_Bound]:
    for field in descriptor.fields:
        child = field.message_type
        inside: tuple[_Bound, ...] = ()
        is_map = child is not None and child.GetOptions().map_entry
        if child is not None and not is_map and child.full_name not in above:
            inside = tuple(_find_bounds(child, (*above, child.full_name)))
        limit = _max_items(field)
        if inside or limit < _NO_LIMIT:
            yield _Bound(field.name, field.is_repeated, limit, inside)


def _max_items(field: FieldDescriptor) -> int:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if field.is_repeated and rules.repeated.HasField("max_items"):
        return int(rules.repeated.max_items)
    if field.is_repeated and rules.map.HasField("max_pairs"):
        return int(rules.map.max_pairs)
    return _NO_LIMIT
