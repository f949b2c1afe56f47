"""The one form that a token may have, as `docs/tokens.md` writes it down; no cryptography here.

A token's outside is read by fixed patterns and not by a JSON parser: members, their order and the absence of anything
else are part of the form, so that there is exactly one text for one token. What a token says (its claims) is parsed
only after its signatures hold.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NoReturn

ED_DSA: Final = "EdDSA"
"""RFC 8037 with Ed25519."""
ML_DSA_65: Final = "ML-DSA-65"
"""RFC 9964."""
HYBRID_TYPE: Final = "bg-hybrid+jws"
CLASSICAL_TYPE: Final = "bg-classical+jwt"
"""`typ` of the protected headers (RFC 8725 section 3.11): a signature made for one kind never counts for the other."""

MAX_TOKEN_CHARACTERS: Final = 16_384
MAX_LIFETIME_S: Final = 86_400
MAX_AUDIENCES: Final = 8

_SIGNATURE_BYTES: Final = {ED_DSA: 64, ML_DSA_65: 3309}
_SIGNED: Final = r'\{"protected":"([A-Za-z0-9_-]{1,400})","signature":"([A-Za-z0-9_-]{1,5000})"\}'
_HYBRID: Final = re.compile(rf'\{{"payload":"([A-Za-z0-9_-]+)","signatures":\[{_SIGNED},{_SIGNED}\]\}}', re.ASCII)
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]{1,400})\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{1,5000})", re.ASCII)
_UUID_TEXT: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID: Final = re.compile(_UUID_TEXT, re.ASCII)
_HEADER: Final = re.compile(
    rf'\{{"alg":"([A-Za-z0-9-]{{1,32}})","kid":"({_UUID_TEXT}\.[1-9][0-9]{{0,6}})","typ":"([a-z+-]{{1,32}})"\}}',
    re.ASCII,
)
_CLAIMS: Final = frozenset(
    ("iss", "sub", "aud", "iat", "nbf", "exp", "jti", "sid", "org", "roles", "amr", "dev")  # docs/tokens.md
)
_MAX_TIME: Final = 2**40


class TokenProblem(StrEnum):
    """Why a token is refused: short names of `behaviorguard.api.v1.ErrorReason`."""

    MALFORMED = "token_malformed"
    """Form, algorithms, key, signature, issuer or audience."""
    EXPIRED = "token_expired"
    """Past its end, or not valid yet."""
    REVOKED = "token_revoked"
    """Its session was ended."""


class TokenRejectedError(Exception):
    """A token that must not be accepted. The text never holds anything of the token."""

    def __init__(self, problem: TokenProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        """Why, for programs."""


class TokenKind(StrEnum):
    """The two kinds of token."""

    HYBRID = "hybrid"
    """JWS General JSON (RFC 7515 section 7.2.1) with EdDSA and ML-DSA-65 over the same payload, both required."""
    CLASSICAL = "classical"
    """JWS Compact with EdDSA alone."""


@dataclass(frozen=True, slots=True)
class TokenSignature:
    """One signature of a token, not checked yet."""

    algorithm: str
    """`ED_DSA` or `ML_DSA_65`."""
    key_id: str
    """`kid`: "<UUID of the key>.<version>"."""
    signature: bytes
    """64 B or 3,309 B."""
    signing_input: bytes
    """What is signed: ASCII(BASE64URL(protected header) "." BASE64URL(payload)), RFC 7515 section 5.2."""


@dataclass(frozen=True, slots=True, repr=False)
class SignedToken:
    """A token whose form is right; nothing that it says counts before every signature was checked."""

    kind: TokenKind
    signatures: tuple[TokenSignature, ...]
    """EdDSA, then for a hybrid token ML-DSA-65."""
    payload: bytes
    """The claims' JSON."""


@dataclass(frozen=True, slots=True, repr=False)
class TokenClaims:
    """What a token says."""

    issuer: str
    user_id: str
    """`sub`: UUID of the person."""
    audience: tuple[str, ...]
    """1 to 8 services that may accept it."""
    issued_at: int
    not_before: int
    expires_at: int
    """Seconds since the Unix epoch; the token holds from `not_before` until just before `expires_at`."""
    token_id: str
    """`jti`: UUID, the same in the hybrid and the classical token of one issue."""
    session_id: str
    """`sid`: UUID of the session; revocation goes by it."""
    organization_id: str
    """`org`: UUID of the organisation."""
    roles: tuple[str, ...]
    """Of "member", "analyst", "admin"."""
    authentication_methods: tuple[str, ...]
    """`amr`, RFC 8176."""
    device_id: str
    """`dev`: id of the device that the token is for; empty: of none."""


def read_token(token: str) -> SignedToken:
    """Read a token's form.

    Args:
        token: as it was handed over, without white space around it.

    Raises:
        TokenRejectedError: MALFORMED, it is not exactly of the form of a hybrid or classical token.
    """
    if len(token) > MAX_TOKEN_CHARACTERS:
        reject("the token is too long")
    if hybrid := _HYBRID.fullmatch(token):
        payload, *parts = hybrid.groups()
        signatures = (
            _signature(parts[0], payload, parts[1], ED_DSA, HYBRID_TYPE),
            _signature(parts[2], payload, parts[3], ML_DSA_65, HYBRID_TYPE),
        )
        return SignedToken(TokenKind.HYBRID, signatures, decode(payload))
    if compact := _COMPACT.fullmatch(token):
        header, payload, signature = compact.groups()
        signed = _signature(header, payload, signature, ED_DSA, CLASSICAL_TYPE)
        return SignedToken(TokenKind.CLASSICAL, (signed,), decode(payload))
    return reject("this is not a token of the known form")


def read_claims(payload: bytes) -> TokenClaims:
    """Read what a token says; call it only when the signatures hold.

    Raises:
        TokenRejectedError: MALFORMED, members are missing, unknown, repeated or of the wrong kind.
    """
    try:
        said = json.loads(payload.decode(), object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number)
    except (ValueError, RecursionError):
        reject("the token's claims are not plain JSON")
    if not isinstance(said, dict) or said.keys() != _CLAIMS:
        reject("the token's claims are not the known ones")
    claims = TokenClaims(
        issuer=_text(said["iss"], 1, 255),
        user_id=_uuid(said["sub"]),
        audience=_texts(said["aud"], 1, MAX_AUDIENCES, 100),
        issued_at=_time(said["iat"]),
        not_before=_time(said["nbf"]),
        expires_at=_time(said["exp"]),
        token_id=_uuid(said["jti"]),
        session_id=_uuid(said["sid"]),
        organization_id=_uuid(said["org"]),
        roles=_texts(said["roles"], 0, 3, 16),
        authentication_methods=_texts(said["amr"], 0, 8, 16),
        device_id=_text(said["dev"], 0, 255),
    )
    if not claims.issued_at <= claims.not_before < claims.expires_at <= claims.issued_at + MAX_LIFETIME_S:
        reject("the token's times do not fit together")
    return claims


def check_claims(claims: TokenClaims, *, issuer: str, audience: str, now: float, clock_skew_s: float) -> None:
    """Check what needs no keys: issuer, audience and times.

    Args:
        claims: of a token whose signatures hold.
        issuer: who must have issued it.
        audience: for whom it must be.
        now: seconds since the Unix epoch.
        clock_skew_s: how far the issuer's clock may be ahead, seconds. The end of a token is never stretched.

    Raises:
        TokenRejectedError: MALFORMED (issuer, audience) or EXPIRED.
    """
    if claims.issuer != issuer:
        reject("the token is another issuer's")
    if audience not in claims.audience:
        reject("the token is for another audience")
    if now >= claims.expires_at:
        raise TokenRejectedError(TokenProblem.EXPIRED, "the token has ended")
    if max(claims.issued_at, claims.not_before) > now + clock_skew_s:
        raise TokenRejectedError(TokenProblem.EXPIRED, "the token is not valid yet")


def decode(text: str) -> bytes:
    """Decode base64url without padding (RFC 7515 section 2), its one canonical spelling.

    Raises:
        TokenRejectedError: MALFORMED.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        reject("a part of the token is not base64url")
    # Bits after the last byte must be zero: otherwise several texts would mean the same token.
    if encode(raw) != text:
        reject("a part of the token is not base64url")
    return raw


def encode(raw: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def reject(message: str) -> NoReturn:
    """Refuse as MALFORMED."""
    raise TokenRejectedError(TokenProblem.MALFORMED, message) from None


def _signature(header: str, payload: str, signature: str, algorithm: str, kind: str) -> TokenSignature:
    try:
        found = _HEADER.fullmatch(decode(header).decode("ascii"))
    except UnicodeDecodeError:
        found = None
    if found is None:
        reject("a protected header is not of the known form")
    said_algorithm, key_id, said_kind = found.groups()
    if (said_algorithm, said_kind) != (algorithm, kind):
        reject("the token's algorithms or type are not the required ones")
    raw = decode(signature)
    if len(raw) != _SIGNATURE_BYTES[algorithm]:
        reject("a signature has the wrong size")
    return TokenSignature(algorithm, key_id, raw, f"{header}.{payload}".encode("ascii"))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is repeated")
    return found


def _no_number(_: str) -> NoReturn:
    raise ValueError("only whole numbers")


def _text(value: object, least: int, most: int) -> str:
    if not isinstance(value, str) or not least <= len(value) <= most:
        reject("a claim is not a text of the right length")
    return value


def _texts(value: object, least: int, most: int, longest: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        reject("a claim is not a list of the right length")
    texts = tuple(_text(item, 1, longest) for item in value)
    if len(set(texts)) != len(texts):
        reject("a claim repeats an entry")
    return texts


def _uuid(value: object) -> str:
    text = _text(value, 36, 36)
    if not _UUID.fullmatch(text):
        reject("a claim is not a UUID in lower case")
    return text


def _time(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MAX_TIME:
        reject("a claim is not a time")
    return value
