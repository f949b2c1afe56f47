"""Opaque tokens: where the next page of a list of keys begins.

A token is bound to its list (organisation, filter) by a digest, so that it is not used with another by mistake. It is
no secret and grants nothing: every query names the caller's organisation, whatever the token says.
"""

from __future__ import annotations

import base64
import binascii
import struct
from hashlib import blake2b
from typing import Final
from uuid import UUID

from servers.quantum.key_store import PageStart

_PAGE: Final = struct.Struct(">Bq16s8s")
_VERSION: Final = 1
_LATEST_US: Final = 2**52
"""Year 2112: a time that the database can compare with."""


class InvalidPageTokenError(ValueError):
    """The token was not issued for this list."""

    def __init__(self) -> None:
        super().__init__("the page token was not issued for this list: keep the filter while paging")


def page_token(start: PageStart, *issued_for: str) -> str:
    """Names the place after `start` in the list that `issued_for` (organisation and filter) describes."""
    bound = _bound(start, issued_for)
    packed = _PAGE.pack(_VERSION, start.created_at_us, UUID(start.key_id).bytes, bound)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def page_start(token: str, *issued_for: str) -> PageStart:
    """The place that a token names.

    Raises:
        InvalidPageTokenError: it was issued for another list, or not by this service.
    """
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, created_at_us, key_id, bound = _PAGE.unpack(packed)
    except (binascii.Error, ValueError, struct.error):
        raise InvalidPageTokenError from None
    start = PageStart(created_at_us, str(UUID(bytes=key_id)))
    if version != _VERSION or not 0 <= created_at_us <= _LATEST_US or bound != _bound(start, issued_for):
        raise InvalidPageTokenError
    return start


def _bound(start: PageStart, issued_for: tuple[str, ...]) -> bytes:
    parts = "\x1f".join((str(start.created_at_us), start.key_id, *issued_for))
    return blake2b(parts.encode(), digest_size=8, person=b"bg-key-page").digest()
