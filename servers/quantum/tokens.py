"""Tokens: issued with one request to the HSM, and checked completely."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.client.tokens import (
    ED_DSA,
    ML_DSA_65,
    TokenClaims,
    TokenKind,
    TokenProblem,
    TokenRejectedError,
    check_claims,
    read_claims,
    read_token,
)

from servers.crypto.algorithms import Algorithm
from servers.mesh.errors import MeshError
from servers.quantum import jws
from servers.quantum.jwks import kid_of
from servers.quantum.ports import Signed, SignItem
from servers.quantum.signatures import Check, SignatureVerifier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from behaviorguard.client.tokens import SignedToken

    from servers.quantum.jwks import TokenKeys
    from servers.quantum.platform_keys import PlatformKey

DEFAULT_LIFETIME_S: Final = 3600


class EndedSessions(Protocol):
    """Which sessions were ended before their time."""

    async def ended(self, organization_id: str, session_id: str) -> bool:
        """Whether the session was ended; never out of date.

        Raises:
            MeshError: DEPENDENCY_UNAVAILABLE, it cannot be found out.
        """


class Signer(Protocol):
    """Where the platform's keys sign: the part of `servers.quantum.ports.Hsm` that tokens need."""

    async def sign_many(self, items: Sequence[SignItem]) -> list[Signed | MeshError]:
        """Sign many; a result or its error for each, in order."""


@dataclass(frozen=True, slots=True, repr=False)
class TokenOrder:
    """What a token is to say."""

    user_id: str
    organization_id: str
    session_id: str
    audience: tuple[str, ...]
    roles: tuple[str, ...] = ()
    authentication_methods: tuple[str, ...] = ()
    device_id: str = ""
    lifetime_s: int = DEFAULT_LIFETIME_S
    """60 to 86,400."""
    hybrid: bool = True
    """Whether the hybrid token is wanted besides the classical one."""


@dataclass(frozen=True, slots=True)
class Issued:
    """Tokens of one issue: the same claims in both."""

    token_id: str
    expires_in_s: int
    classical: str = field(repr=False)
    hybrid: str = field(repr=False)
    """Empty unless it was wanted."""
    quantum_key: PlatformKey | None
    """The key of the ML-DSA signature, where there is one."""
    quantum_signature: bytes = field(repr=False)
    signed_at: datetime
    operation_id: str
    """The HSM's own number for the operation."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of a token found."""

    problem: TokenProblem | None
    """Why it is refused; None when it holds."""
    claims: TokenClaims | None = field(default=None, repr=False)
    """What it says; None unless its signatures hold."""
    quantum_secured: bool = False
    """Whether both signatures were there and held."""


class Tokens:
    """Issues and checks tokens."""

    def __init__(
        self,
        keys: TokenKeys,
        hsm: Signer,
        verifier: SignatureVerifier,
        sessions: EndedSessions,
        *,
        issuer: str,
        clock_skew_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """How tokens are issued.

        Args:
            keys: the platform's keys.
            hsm: where they sign.
            verifier: where signatures are checked.
            sessions: which were ended.
            issuer: `iss` of every token.
            clock_skew_s: how far an issuing process's clock may be ahead of this one's, seconds.
            clock: seconds since the Unix epoch.
        """
        self._keys = keys
        self._hsm = hsm
        self._verifier = verifier
        self._sessions = sessions
        self._issuer = issuer
        self._clock_skew_s = clock_skew_s
        self._clock = clock

    async def issue(self, order: TokenOrder) -> Issued:
        """Issue a session's tokens.

        Raises:
            MeshError: WRONG_STATE, the session was ended; and as `Hsm` says.
        """
        if await self._sessions.ended(order.organization_id, order.session_id):
            raise MeshError(ErrorReason.ERROR_REASON_WRONG_STATE, "the session was ended: begin a new one")
        classical_key = await self._keys.signing(Algorithm.ED25519)
        quantum_key = await self._keys.signing(Algorithm.ML_DSA_65) if order.hybrid else None
        claims = self._claims(order)
        payload = jws.claims_payload(claims)
        parts = [(jws.classical_header(kid_of(classical_key)), classical_key)]
        if quantum_key is not None:
            parts += [
                (jws.hybrid_header(ED_DSA, kid_of(classical_key)), classical_key),
                (jws.hybrid_header(ML_DSA_65, kid_of(quantum_key)), quantum_key),
            ]
        headers = [header for header, _ in parts]
        signed = await self._sign(parts, payload)
        signatures = [each.signature for each in signed]
        return Issued(
            token_id=claims.token_id,
            expires_in_s=order.lifetime_s,
            classical=jws.classical_token(payload, headers[0], signatures[0]),
            hybrid=jws.hybrid_token(payload, headers[1:], signatures[1:]) if quantum_key is not None else "",
            quantum_key=quantum_key,
            quantum_signature=signatures[2] if quantum_key is not None else b"",
            signed_at=datetime.fromtimestamp(claims.issued_at, UTC),
            operation_id=signed[0].operation_id,
        )

    async def check(self, token: str, audience: str, *, accept_classical: bool) -> Verdict:
        """Check a token: form, exact algorithms, keys, signatures, claims, times, revocation.

        Args:
            token: as it was handed over.
            audience: the service that it must be for.
            accept_classical: whether EdDSA alone is enough.

        Raises:
            MeshError: it could not be found out (OVERLOADED, DEPENDENCY_UNAVAILABLE); never because of the token.
        """
        try:
            signed = read_token(token)
            if signed.kind is TokenKind.CLASSICAL and not accept_classical:
                return Verdict(TokenProblem.MALFORMED)
            if not await self._signatures_hold(signed):
                return Verdict(TokenProblem.MALFORMED)
            claims = read_claims(signed.payload)
            check_claims(
                claims,
                issuer=self._issuer,
                audience=audience,
                now=self._clock(),
                clock_skew_s=self._clock_skew_s,
            )
        except TokenRejectedError as error:
            return Verdict(error.problem)
        if await self._sessions.ended(claims.organization_id, claims.session_id):
            return Verdict(TokenProblem.REVOKED)
        return Verdict(None, claims, quantum_secured=signed.kind is TokenKind.HYBRID)

    async def _sign(self, parts: Sequence[tuple[str, PlatformKey]], payload: str) -> list[Signed]:
        """The signatures of all parts, by one request to the HSM."""
        items = [
            SignItem(key.key_handle, key.organization_id, jws.signing_input(header, payload)) for header, key in parts
        ]
        return [_signature(result) for result in await self._hsm.sign_many(items)]

    async def _signatures_hold(self, signed: SignedToken) -> bool:
        checks = []
        for part in signed.signatures:
            key = await self._keys.find(part.key_id, part.algorithm)
            if key is None:
                return False
            checks.append(Check(key.algorithm, key.public_key, part.signing_input, part.signature))
        return await self._verifier.all_hold(checks)

    def _claims(self, order: TokenOrder) -> TokenClaims:
        now = int(self._clock())
        return TokenClaims(
            issuer=self._issuer,
            user_id=order.user_id,
            audience=order.audience,
            issued_at=now,
            not_before=now,
            expires_at=now + order.lifetime_s,
            token_id=str(uuid.uuid4()),
            session_id=order.session_id,
            organization_id=order.organization_id,
            roles=order.roles,
            authentication_methods=order.authentication_methods,
            device_id=order.device_id,
        )


def _signature(result: Signed | MeshError) -> Signed:
    if not isinstance(result, MeshError):
        return result
    if result.reason == ErrorReason.ERROR_REASON_NOT_FOUND:
        # Somebody revoked the platform's key, and this process is about to hear of it.
        raise MeshError(
            ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the signing key is being replaced", retry_after_s=0.5
        )
    raise result
