"""How large a request's body may be: what the contract's rules allow, where whoever sends it is trusted with that."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from behaviorguard.api.v1 import policy_pb2
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor

from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange

_SCALAR: Final = 32
_ESCAPED: Final = 6  # `\u0000`: a character of a string at its longest
_UNRULED_TEXT: Final = 1024
_MAX_DEPTH: Final = 8


def largest_json(message: Descriptor, depth: int = 0) -> int:
    """Bytes of the longest JSON that the field rules of a message allow; lists without a limit count once."""
    if depth > _MAX_DEPTH:
        return 0
    return 2 + sum(_largest_field(field, depth) for field in message.fields)


def _largest_field(field: FieldDescriptor, depth: int) -> int:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    name = len(field.json_name) + 4
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = rules.map.keys, rules.map.values
            entry = field.message_type.fields_by_name
            return name + rules.map.max_pairs * (_one(entry["key"], key, depth) + _one(entry["value"], value, depth))
        return name + max(1, rules.repeated.max_items) * _one(field, rules.repeated.items, depth)
    return name + _one(field, rules, depth)


def _one(field: FieldDescriptor, rules: Any, depth: int) -> int:
    if field.message_type is not None:
        return largest_json(field.message_type, depth + 1) + 2
    if field.type == FieldDescriptor.TYPE_BYTES:
        return 4 * (int(rules.bytes.max_len or rules.bytes.len) // 3 + 1) + 3
    if field.type == FieldDescriptor.TYPE_STRING:
        return _ESCAPED * int(rules.string.max_len or rules.string.len or _UNRULED_TEXT) + 3
    return _SCALAR


class BodyLimits:
    """Says how large a body may be, and keeps few large ones in memory at once.

    Only analysts and administrators may send more than `usual`: anybody can become everybody else.
    """

    def __init__(self, *, usual: int, largest: int, large_at_once: int) -> None:
        """`usual` and `largest` are bytes; `large_at_once` bodies over `usual` are held at most."""
        self._usual = usual
        self._largest = largest
        self._room = large_at_once

    def limit(self, operation: Operation) -> int:
        """Bytes that the operation's body may have."""
        if operation.policy.scope < policy_pb2.SCOPE_ANALYST:
            return self._usual
        return max(self._usual, min(self._largest, largest_json(operation.request)))

    @contextmanager
    def held(self, exchange: Exchange, limit: int) -> Iterator[None]:
        """Holds a place for a body of at most `limit` bytes while it is worked on.

        Raises:
            MeshError: it may be large, and there are too many large ones.
        """
        if limit <= self._usual or _length(exchange) <= self._usual:
            yield
            return
        if self._room == 0:
            raise MeshError(ErrorReason.ERROR_REASON_OVERLOADED, "Too many large requests at once.", retry_after_s=1.0)
        self._room -= 1
        try:
            yield
        finally:
            self._room += 1


def _length(exchange: Exchange) -> float:
    """Bytes of the body as its head says; infinite when it comes in pieces and the head does not say."""
    said = exchange.headers.get("content-length", "")
    if said.isdecimal():
        return float(said[:20])
    return math.inf if "transfer-encoding" in exchange.headers else 0.0
