"""Writes tokens in the form that `behaviorguard.client.tokens` reads and `docs/tokens.md` writes down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from behaviorguard.client.tokens import CLASSICAL_TYPE, ED_DSA, HYBRID_TYPE, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behaviorguard.client.tokens import TokenClaims

_SEPARATORS: Final = (",", ":")


def claims_payload(claims: TokenClaims) -> str:
    """The claims as they stand in a token: BASE64URL of their JSON."""
    said = {
        "iss": claims.issuer,
        "sub": claims.user_id,
        "aud": list(claims.audience),
        "iat": claims.issued_at,
        "nbf": claims.not_before,
        "exp": claims.expires_at,
        "jti": claims.token_id,
        "sid": claims.session_id,
        "org": claims.organization_id,
        "roles": list(claims.roles),
        "amr": list(claims.authentication_methods),
        "dev": claims.device_id,
    }
    return encode(json.dumps(said, separators=_SEPARATORS).encode())


def hybrid_header(algorithm: str, key_id: str) -> str:
    """BASE64URL of the protected header of one signature of a hybrid token.

    Args:
        algorithm: "EdDSA" or "ML-DSA-65".
        key_id: `kid`, "<UUID of the key>.<version>".
    """
    return _header(algorithm, key_id, HYBRID_TYPE)


def classical_header(key_id: str) -> str:
    """BASE64URL of the protected header of a classical token."""
    return _header(ED_DSA, key_id, CLASSICAL_TYPE)


def signing_input(header: str, payload: str) -> bytes:
    """What is signed (RFC 7515 section 5.2)."""
    return f"{header}.{payload}".encode("ascii")


def hybrid_token(payload: str, headers: Sequence[str], signatures: Sequence[bytes]) -> str:
    """The hybrid token: JWS General JSON (RFC 7515 section 7.2.1) without white space.

    Args:
        payload: of `claims_payload`.
        headers: of `hybrid_header`, EdDSA's and ML-DSA-65's.
        signatures: theirs, in the same order.
    """
    signed = [
        {"protected": header, "signature": encode(signature)}
        for header, signature in zip(headers, signatures, strict=True)
    ]
    return json.dumps({"payload": payload, "signatures": signed}, separators=_SEPARATORS)


def classical_token(payload: str, header: str, signature: bytes) -> str:
    """The classical token: JWS Compact (RFC 7515 section 7.1)."""
    return f"{header}.{payload}.{encode(signature)}"


def _header(algorithm: str, key_id: str, kind: str) -> str:
    # Three members in this order and no more: readers compare, they do not interpret.
    return encode(json.dumps({"alg": algorithm, "kid": key_id, "typ": kind}, separators=_SEPARATORS).encode())
