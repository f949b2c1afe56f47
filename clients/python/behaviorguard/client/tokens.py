"""Checks tokens without a server: needs the issuer's public keys, and `cryptography` (the extra `tokens`).

    keys = VerificationKeys.from_jwks(Path("jwks.json").read_bytes())
    ended = read_revocations(Path("ended.json").read_bytes())
    verifier = TokenVerifier(keys, audience="mobile", revoked_sessions=ended)
    try:
        token = verifier.verify(text)
    except TokenRejectedError as error:
        print(error.problem)

The keys are what `GET /.well-known/jwks.json` answers, fetched over a connection that you trust; so is the list of
ended sessions (`GET /api/quantum/token/revocations`). A verifier without that list accepts the tokens of an ended
session until they expire. The form of tokens is written down in `docs/tokens.md`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from behaviorguard.client._internal.token_format import (
    CLASSICAL_TYPE,
    ED_DSA,
    HYBRID_TYPE,
    MAX_LIFETIME_S,
    MAX_TOKEN_CHARACTERS,
    ML_DSA_65,
    SignedToken,
    TokenClaims,
    TokenKind,
    TokenProblem,
    TokenRejectedError,
    TokenSignature,
    check_claims,
    decode,
    encode,
    read_claims,
    read_token,
    reject,
)

__all__ = [
    "CLASSICAL_TYPE",
    "DEFAULT_ISSUER",
    "ED_DSA",
    "HYBRID_TYPE",
    "MAX_LIFETIME_S",
    "MAX_TOKEN_CHARACTERS",
    "ML_DSA_65",
    "SignedToken",
    "TokenClaims",
    "TokenKind",
    "TokenProblem",
    "TokenRejectedError",
    "TokenSignature",
    "TokenVerifier",
    "VerificationKeys",
    "VerifiedToken",
    "check_claims",
    "encode",
    "read_claims",
    "read_revocations",
    "read_token",
]

DEFAULT_ISSUER: Final = "behaviorguard"
DEFAULT_CLOCK_SKEW_S: Final = 60.0

_KEY_TYPES: Final = {ED_DSA: ("OKP", "x", 32), ML_DSA_65: ("AKP", "pub", 1952)}


class PublicKey(Protocol):
    """A public key of `cryptography`, Ed25519 or ML-DSA-65."""

    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Raise `cryptography.exceptions.InvalidSignature` when the signature does not hold."""


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token that may be accepted."""

    claims: TokenClaims
    """What it says."""
    quantum_secured: bool
    """True when it carried both signatures; False for a classical token."""


class VerificationKeys:
    """The issuer's public keys by `kid` and algorithm."""

    def __init__(self, keys: Mapping[tuple[str, str], PublicKey]) -> None:
        """`keys`: by (`kid`, algorithm)."""
        self._keys = dict(keys)

    @classmethod
    def from_jwks(cls, document: str | bytes | Mapping[str, Any]) -> VerificationKeys:
        """Read a JSON Web Key Set (RFC 7517). Keys of kinds that are not used here are passed over.

        Raises:
            ValueError: it is no key set, a `kid` appears twice, or a key of a used kind is damaged.
            ImportError: `cryptography` is not installed.
        """
        found: dict[tuple[str, str], PublicKey] = {}
        for entry in _entries(_document(document), "keys"):
            algorithm = entry.get("alg")
            if algorithm not in _KEY_TYPES or entry.get("kty") != _KEY_TYPES[algorithm][0]:
                continue
            key_id = entry.get("kid")
            if not isinstance(key_id, str) or not key_id or any(key_id == known for known, _ in found):
                raise ValueError("the key set has a key without a kid of its own")
            found[key_id, algorithm] = _public_key(entry, algorithm)
        return cls(found)

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, signature: TokenSignature) -> None:
        """Check one signature.

        Raises:
            TokenRejectedError: MALFORMED, the key is not known under this algorithm, or the signature does not hold.
        """
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra: only who verifies needs it

        key = self._keys.get((signature.key_id, signature.algorithm))
        if key is None:
            reject("the token's key is not known")
        try:
            key.verify(signature.signature, signature.signing_input)
        except InvalidSignature:
            reject("a signature does not hold")


class TokenVerifier:
    """Decides whether tokens may be accepted; holds no connection and may be shared by threads."""

    def __init__(
        self,
        keys: VerificationKeys,
        audience: str,
        *,
        issuer: str = DEFAULT_ISSUER,
        accept_classical: bool = False,
        revoked_sessions: Collection[str] = frozenset(),
        clock_skew_s: float = DEFAULT_CLOCK_SKEW_S,
    ) -> None:
        """What to demand.

        Args:
            keys: the issuer's keys.
            audience: the service that tokens must be for.
            issuer: who must have issued them.
            accept_classical: True to accept tokens with EdDSA alone as well.
            revoked_sessions: UUIDs of sessions that were ended, in lower case.
            clock_skew_s: how far the issuer's clock may be ahead, seconds; 0 to 300.

        Raises:
            ValueError: `audience` is empty or the skew is out of its range.
        """
        if not audience or not 0 <= clock_skew_s <= 300:
            raise ValueError("name an audience, and a clock skew of 0 to 300 s")
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._accept_classical = accept_classical
        self._revoked = frozenset(revoked_sessions)
        self._clock_skew_s = clock_skew_s

    def verify(self, token: str, *, now: float | None = None) -> VerifiedToken:
        """Check a token completely.

        Args:
            token: the token's text, without white space around it.
            now: seconds since the Unix epoch; None: this machine's clock.

        Raises:
            TokenRejectedError: it must not be accepted.
        """
        signed = read_token(token)
        if signed.kind is TokenKind.CLASSICAL and not self._accept_classical:
            reject("a hybrid token is required")
        for signature in signed.signatures:
            self._keys.check(signature)
        claims = read_claims(signed.payload)
        check_claims(
            claims,
            issuer=self._issuer,
            audience=self._audience,
            now=time.time() if now is None else now,
            clock_skew_s=self._clock_skew_s,
        )
        if claims.session_id in self._revoked:
            raise TokenRejectedError(TokenProblem.REVOKED, "the token's session was ended")
        return VerifiedToken(claims, quantum_secured=signed.kind is TokenKind.HYBRID)


def read_revocations(*pages: str | bytes | Mapping[str, Any]) -> frozenset[str]:
    """The ended sessions' UUIDs from answers of `ListRevocations`.

    Args:
        pages: all pages of the list, in order; their JSON or what it says.

    Raises:
        ValueError: one is no such answer, or the last page says that there are more.
    """
    found: list[object] = []
    more: object = ""
    for page in pages:
        document = _document(page)
        found += [entry.get("sessionId", entry.get("session_id")) for entry in _entries(document, "revocations")]
        more = document.get("nextPageToken", document.get("next_page_token", ""))
    if more:
        raise ValueError("the list goes on: give all its pages")
    sessions = [session.lower() if isinstance(session, str) else "" for session in found]
    if not all(sessions):
        raise ValueError("the list has an entry without a session")
    return frozenset(sessions)


def _document(document: str | bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    """A JSON object, an empty one for JSON that is none; nothing of it is told in errors."""
    try:
        parsed = document if isinstance(document, Mapping) else json.loads(document)
    except (ValueError, RecursionError):
        raise ValueError("the document is not JSON") from None
    return parsed if isinstance(parsed, Mapping) else {}


def _entries(document: Mapping[str, Any], member: str) -> list[Mapping[str, Any]]:
    """The objects in a list member; one that is missing is no empty list."""
    entries = document.get(member)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"the document has no list {member!r}")
    return entries


def _public_key(entry: Mapping[str, Any], algorithm: str) -> PublicKey:
    _, member, size = _KEY_TYPES[algorithm]
    value = entry.get(member)
    if entry.get("use", "sig") != "sig" or (algorithm == ED_DSA and entry.get("crv") != "Ed25519"):
        raise ValueError("the key set has a key for another use or curve")
    try:
        raw = decode(value) if isinstance(value, str) else b""
    except TokenRejectedError:
        raw = b""
    if len(raw) != size:
        raise ValueError("the key set has a damaged key")
    try:
        from cryptography.hazmat.primitives.asymmetric import (  # noqa: PLC0415 - see above
            ed25519,
            mldsa,
        )
    except ImportError as error:
        raise ImportError('tokens are checked with cryptography: pip install "behaviorguard-client[tokens]"') from error
    if algorithm == ED_DSA:
        return ed25519.Ed25519PublicKey.from_public_bytes(raw)
    return mldsa.MLDSA65PublicKey.from_public_bytes(raw)
