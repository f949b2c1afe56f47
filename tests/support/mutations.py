"""Bad input by descriptor: each field of a request changed in every way that its type allows, and the bytes besides."""

from __future__ import annotations

import random
import uuid
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

_TEXTS = (
    "",
    "x",
    " ",
    "\x00",
    "'; DROP TABLE quantum_keys.quantum_key_store; --",
    "../../etc/passwd",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{SNOWMAN}",
    "99999999-9999-4999-8999-999999999999",  # well-formed, and nobody's
    "99999999-9999-4999-8999-99999999999",
    "a" * 300,
    "a" * 20_000,
    "-1",
    "NaN",
)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 64, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, 2**63 - 1, -(2**63)),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**63, 2**64 - 1),
}
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e308)
_MANY = 1000


def mutations(message: Message, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """What to send instead of a valid message: (what was changed, serialised request).

    Each comes with one field of it changed, at any depth, or with its bytes damaged. The same for the same seed.
    """
    rng = random.Random(seed)  # noqa: S311 - the same mutations each time
    for path, change in _field_changes(message, rng):
        copy = type(message)()
        copy.CopyFrom(message)
        try:
            change(copy)
            changed = copy.SerializeToString()
        except (ValueError, TypeError):  # no protobuf library would send it
            continue
        yield path, changed
    yield from _damaged(message.SerializeToString(), rng)


def _field_changes(message: Message, rng: random.Random) -> Iterator[tuple[str, Any]]:
    descriptor: Any = message.DESCRIPTOR
    for field in descriptor.fields:
        name = field.name
        yield name, lambda copy, name=name: copy.ClearField(name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from _map_changes(field)
        elif field.is_repeated:
            yield from _list_changes(message, field, rng)
        elif field.message_type is not None:
            yield name, lambda copy, name=name: getattr(copy, name).SetInParent()
            yield from _inside(message, name, rng)
        else:
            for value in _values(field, getattr(message, name), rng):
                yield name, lambda copy, name=name, value=value: setattr(copy, name, value)


def _inside(message: Message, name: str, rng: random.Random) -> Iterator[tuple[str, Any]]:
    for path, change in _field_changes(getattr(message, name), rng):
        yield f"{name}.{path}", lambda copy, change=change: change(getattr(copy, name))


def _map_changes(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    def fill(copy: Any, entries: dict[str, str]) -> None:
        for key, value in entries.items():
            getattr(copy, field.name)[key] = value

    for entries in ({"": ""}, {"a b": "c"}, {"k" * 64: "v"}, {"k": "v" * 300}, {f"k{n}": "" for n in range(_MANY)}):
        yield field.name, lambda copy, entries=entries: fill(copy, entries)


def _list_changes(message: Message, field: FieldDescriptor, rng: random.Random) -> Iterator[tuple[str, Any]]:
    name = field.name

    def repeat(copy: Any, times: int) -> None:
        items = getattr(copy, name)
        items.extend(list(items) * times)

    for times in (1, 63, _MANY):
        yield f"{name} x{times + 1}", lambda copy, times=times: repeat(copy, times)
    items = getattr(message, name)
    if not len(items):
        return
    if field.message_type is not None:
        for path, change in _field_changes(items[0], rng):
            yield f"{name}[0].{path}", lambda copy, change=change: change(getattr(copy, name)[0])
        return
    for value in _values(field, items[0], rng):
        yield f"{name}[0]", lambda copy, value=value: getattr(copy, name).__setitem__(0, value)


def _values(field: FieldDescriptor, current: Any, rng: random.Random) -> Iterator[Any]:
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        yield from _bytes(current, rng)
    elif kind == FieldDescriptor.CPPTYPE_STRING:
        yield from _TEXTS
        yield str(uuid.UUID(int=rng.getrandbits(128), version=4))
        yield current.upper()
        yield current + "\n"
        yield _flipped(current.encode(), rng).decode(errors="replace")
    elif kind == FieldDescriptor.CPPTYPE_ENUM and field.enum_type is not None:
        yield from (value.number for value in field.enum_type.values)
        yield from (-1, 999, 2**31 - 1)
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        yield not current
    elif kind in _INTEGERS:
        yield from _INTEGERS[kind]
    else:
        yield from _FLOATS


def _bytes(current: bytes, rng: random.Random) -> Iterator[bytes]:
    yield from (b"", b"\x00", rng.randbytes(100), b"\xff" * 70_000, current + b"\x00", current[:-1], current[1:])
    for _ in range(4):
        yield _flipped(current, rng)
    yield rng.randbytes(len(current))


def _flipped(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\x01"
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _damaged(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """What no library would make of any message."""
    yield "nothing", b""
    yield "an unknown field", content + b"\xfa\xff\x3f\x01x"
    yield "an unfinished field", content + b"\x0a\xff\xff\xff\xff\x0f"
    yield "a group that never ends", content + b"\x0b"
    yield "noise", rng.randbytes(64)
    for _ in range(8):
        yield "cut short", content[: rng.randrange(len(content) + 1)]
        yield "a flipped bit", _flipped(content, rng)
    yield "a whole message too large", b"\x0a\x80\x80\x80\x05" + b"x" * (10 * 1024 * 1024)
