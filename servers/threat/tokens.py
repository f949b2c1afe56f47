"""Opaque tokens: where a reader of the alert stream was, and where a list's next page begins.

A token is bound to what it was issued for (organisation, filter) by a digest, so that it cannot be used with anything
else by mistake. It is not a secret and grants nothing: every query applies the caller's organisation and person again,
whatever the token says.
"""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from uuid import UUID

_RESUME: Final = struct.Struct(">BQ8s")
_PAGE: Final = struct.Struct(">Bq16s8s")
_RESUME_VERSION, _PAGE_VERSION = 1, 2
_MOST_POSITION: Final = 2**63 - 1


class InvalidTokenError(ValueError):
    """The token was not issued by this service for this purpose."""


@dataclass(frozen=True, slots=True)
class PageStart:
    """The last event of the page before."""

    stored_at_us: int
    """Microseconds since the Unix epoch."""
    event_id: str


def resume_token(organization_id: str, position: int) -> str:
    """Names a place in an organisation's alert stream."""
    bound = _bound("resume", organization_id, str(position))
    return _encode(_RESUME.pack(_RESUME_VERSION, position, bound))


def resume_position(token: str, organization_id: str) -> int:
    """The place that a token names.

    Raises:
        InvalidTokenError: it was issued for another organisation, or not by this service.
    """
    version, position, bound = _RESUME.unpack(_decode(token, _RESUME.size))
    if (
        version != _RESUME_VERSION
        or position > _MOST_POSITION
        or bound != _bound("resume", organization_id, str(position))
    ):
        raise InvalidTokenError("the resume token was not issued for this organisation's alerts")
    return int(position)


def page_token(start: PageStart, *issued_for: str) -> str:
    """Names the place after `start` in the list that `issued_for` (organisation and filter) describes."""
    bound = _bound("page", str(start.stored_at_us), start.event_id, *issued_for)
    return _encode(_PAGE.pack(_PAGE_VERSION, start.stored_at_us, UUID(start.event_id).bytes, bound))


def page_start(token: str, *issued_for: str) -> PageStart:
    """The place that a token names.

    Raises:
        InvalidTokenError: it was issued for another list, or not by this service.
    """
    version, stored_at_us, event, bound = _PAGE.unpack(_decode(token, _PAGE.size))
    start = PageStart(stored_at_us, str(UUID(bytes=event)))
    if version != _PAGE_VERSION or bound != _bound("page", str(stored_at_us), start.event_id, *issued_for):
        raise InvalidTokenError("the page token was not issued for this list: keep the filter while paging")
    return start


def _bound(*parts: str) -> bytes:
    return blake2b("\x1f".join(parts).encode(), digest_size=8, person=b"bg-token").digest()


def _encode(packed: bytes) -> str:
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _decode(token: str, size: int) -> bytes:
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidTokenError("the token is not one of this service") from None
    if len(packed) != size:
        raise InvalidTokenError("the token is not one of this service")
    return packed
