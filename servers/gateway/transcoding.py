"""Strict JSON to protobuf and back, compiled once per message type from its descriptor.

The JSON form is the proto3 JSON mapping with three deliberate differences:

* Enum values are their short lower-case names (`THREAT_LEVEL_CRITICAL` is `"critical"`). The full name is accepted too,
  a number is not.
* Names are lowerCamelCase only, and everything that the message does not know is refused: unknown and repeated names,
  values of another type, numbers that are not finite or do not fit, text that is not UTF-8, a second document.
* Answers carry every field that has no presence, zeros and empty lists included, so that a reader never has to guess.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from google.protobuf import json_format

from servers.gateway.json_readers import MessageReader, Reader, read_timestamp, read_well_known
from servers.gateway.json_values import JsonMismatchError
from servers.gateway.json_writers import MessageWriter, Writer

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

_STRING_LITERAL: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_OWN_TEXT: Final = ("google.protobuf.Timestamp", "google.protobuf.Duration")


class Codec:
    """Readers and writers for message types, compiled when first needed and kept."""

    def __init__(self) -> None:
        self._readers: dict[str, MessageReader] = {}
        self._writers: dict[str, MessageWriter] = {}

    def decode(self, body: bytes, message: Message) -> None:
        """Fills an empty message from a JSON document.

        Raises:
            JsonMismatchError: the document is no JSON (empty path), or does not fit the message.
        """
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise JsonMismatchError(f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
        self.check_names(body, self.read_into(_descriptor(message))(message, value))

    @staticmethod
    def check_names(body: bytes, members: int) -> None:
        """Refuses a parsed document that names something twice in one object.

        Every member of an object has exactly one colon outside strings, so more colons than members that survived
        parsing mean that a name was repeated.

        Args:
            body: the document, already known to be JSON.
            members: how many object members its parsed form holds, all levels together.

        Raises:
            JsonMismatchError: a name is repeated.
        """
        if _STRING_LITERAL.sub(b"", body).count(b":") != members:
            raise JsonMismatchError(_repeated_name(body))

    def encode(self, message: Message) -> bytes:
        """The message as a JSON document."""
        return orjson.dumps(self.write_from(_descriptor(message))(message))

    def read_into(self, descriptor: Descriptor) -> Reader:
        """The function that fills a message of this type from parsed JSON."""
        if descriptor.full_name == "google.protobuf.Timestamp":
            return read_timestamp
        if descriptor.full_name.startswith("google.protobuf."):
            return read_well_known

        # Looked up at each call, so that types that contain themselves can be compiled.
        def read(message: Message, value: object) -> int:
            reader = self._readers.get(descriptor.full_name)
            if reader is None:
                reader = self._readers[descriptor.full_name] = MessageReader(descriptor, self.read_into)
            return reader.read(message, value)

        return read

    def write_from(self, descriptor: Descriptor) -> Writer:
        """The function that turns a message of this type into JSON-ready values."""
        if descriptor.full_name in _OWN_TEXT:
            return lambda message: message.ToJsonString()
        if descriptor.full_name.startswith("google.protobuf."):
            return json_format.MessageToDict

        def write(message: Message) -> dict[str, Any]:
            writer = self._writers.get(descriptor.full_name)
            if writer is None:
                writer = self._writers[descriptor.full_name] = MessageWriter(descriptor, self.write_from)
            return writer.write(message)

        return write


def _descriptor(message: Message) -> Descriptor:
    return cast("Descriptor", message.DESCRIPTOR)  # a C type at run time, which the annotations list beside this one


def _repeated_name(body: bytes) -> str:
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    json.loads(body, object_pairs_hook=collect)
    return f"names {json.dumps(repeated[0][:64])} twice in one object" if repeated else "repeats a name in one object"
