"""Fields that travel in HTTP headers and cookies besides the body: the contract's `(api.v1.http)`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from servers.gateway.admission import read_cookie, write_cookie
from servers.gateway.contract import http_field
from servers.gateway.json_values import JsonMismatchError, query_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from behaviorguard.api.v1 import policy_pb2
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange
    from servers.gateway.transcoding import Codec

# What browsers send by themselves: a body that says something else means it, and is no conflict.
_CLIENTS_OWN: Final = ("user-agent",)
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")  # RFC 9110: a line break would begin another header
_COOKIE_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")  # RFC 6265: cookie-octet


@dataclass(frozen=True, slots=True)
class _Carried:
    """A request field that a header or cookie fills."""

    field: str
    json_name: str
    header: str
    cookie: str
    read: Callable[[str], Any]

    def value(self, exchange: Exchange) -> str:
        """What the client sent; empty when nothing.

        Raises:
            JsonMismatchError: the header comes twice with different values.
        """
        if self.cookie:
            return read_cookie(exchange, self.cookie)
        values = {value.strip() for value in exchange.headers.getlist(self.header)}
        if len(values) > 1:
            raise JsonMismatchError("is given twice", self.header)
        return values.pop() if values else ""


class RequestFields:
    """Fills one RPC's requests from headers and cookies, where path, query and body left the field unset."""

    def __init__(self, operation: Operation) -> None:
        self._carried = [
            _Carried(field.name, field.json_name, option.request_header, option.request_cookie, query_reader(field))
            for field, option in _options(operation.request)
            if option.request_header or option.request_cookie
        ]

    def apply(self, request: Message, exchange: Exchange) -> None:
        """Fills a request in place.

        Raises:
            JsonMismatchError: a value cannot be taken, or the body says something else than the header.
        """
        for carried in self._carried:
            text = carried.value(exchange)
            if not text:
                continue
            try:
                value = carried.read(text)
            except JsonMismatchError as error:
                raise error.under(carried.header or carried.cookie) from None
            said = getattr(request, carried.field)
            if not said:
                setattr(request, carried.field, value)
            elif said != value and carried.header.lower() not in _CLIENTS_OWN:
                where = f"the header {carried.header}" if carried.header else f"the cookie {carried.cookie}"
                raise JsonMismatchError(f"says something else than {where}: send one of them", carried.json_name)


class AnswerFields:
    """Writes one RPC's answers: the JSON body, and the headers and cookies that carry fields of it."""

    def __init__(self, operation: Operation, codec: Codec) -> None:
        found = list(_options(operation.response))
        self._write = codec.write_from(operation.response)
        self._headers = [
            (option.response_header.lower().encode("ascii"), field.json_name)
            for field, option in found
            if option.response_header
        ]
        self._cookies = [(option.response_cookie, field.json_name) for field, option in found if option.response_cookie]

    def apply(self, answer: Message) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """The body, without what cookies carry, and the headers; a field that is empty or unset gives none.

        Raises:
            ValueError: a service answered with what no header or cookie can hold.
        """
        document = self._write(answer)
        headers = [
            (name, _header_text(document[field]))
            for name, field in self._headers
            if document.get(field) not in (None, "")
        ]
        for cookie, field in self._cookies:
            value = document.pop(field, "")
            if not value:
                continue
            if not isinstance(value, str) or not _COOKIE_VALUE.fullmatch(value):
                raise ValueError(f"{field} cannot be a cookie")
            headers.append((b"set-cookie", write_cookie(value, None, secure=True, name=cookie).encode("ascii")))
        return orjson.dumps(document), headers


def _header_text(value: object) -> bytes:
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    if not _HEADER_VALUE.fullmatch(text):
        raise ValueError("an answer's field cannot be a header")
    return text.encode("ascii")


def _options(message: Descriptor) -> Iterator[tuple[FieldDescriptor, policy_pb2.HttpField]]:
    for field in message.fields:
        option = http_field(field)
        if option is not None:
            yield field, option
