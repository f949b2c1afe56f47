"""Opaque tokens for places in a list or stream of one organisation.

A token is bound to what it was issued for by a digest, so that it is not used with anything else by mistake. It is no
secret and grants nothing: every query names the caller's organisation, whatever the token says.
"""

from __future__ import annotations

import base64
import binascii
import struct
from hashlib import blake2b
from typing import Final

_FORM: Final = struct.Struct(">BQ8s")
_VERSION: Final = 1
_LAST: Final = 2**63 - 1


class InvalidTokenError(ValueError):
    """The token was not issued by this service for this purpose."""


def place_token(place: int, *issued_for: str) -> str:
    """Names a place (0 to 2^63 - 1) in what `issued_for` describes: purpose, organisation, filter."""
    packed = _FORM.pack(_VERSION, place, _bound(place, issued_for))
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def place_of(token: str, *issued_for: str) -> int:
    """The place that a token names.

    Raises:
        InvalidTokenError: it was issued for something else, or not by this service.
    """
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        _version, place, _bound_to = _FORM.unpack(packed)
    except (binascii.Error, ValueError, struct.error):
        raise InvalidTokenError("the token is not one of this service") from None
    if place > _LAST or token != place_token(place, *issued_for):
        raise InvalidTokenError("the token was issued for another list or stream: keep the filter while paging")
    return int(place)


def _bound(place: int, issued_for: tuple[str, ...]) -> bytes:
    text = "\x1f".join((str(place), *issued_for))
    return blake2b(text.encode(), digest_size=8, person=b"bg-audit-place").digest()
