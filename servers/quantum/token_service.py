"""`behaviorguard.quantum.v1.TokenService`: messages in, domain calls, messages out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.client.tokens import TokenProblem
from behaviorguard.quantum.v1 import token_service_pb2 as pb
from behaviorguard.quantum.v1.token_service_pb2_grpc import TokenServiceServicer

from servers.mesh.context import call_context
from servers.mesh.errors import MeshError
from servers.quantum import revocation_store
from servers.quantum.audit_calls import call_entry
from servers.quantum.jwks import MAX_AGE_SECONDS, json_web_key
from servers.quantum.key_messages import fill, moment_of
from servers.quantum.key_ring import database
from servers.quantum.key_store import PageStart
from servers.quantum.page_tokens import InvalidPageTokenError, page_start, page_token
from servers.quantum.revocations import HOLDS
from servers.quantum.tokens import DEFAULT_LIFETIME_S, TokenOrder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from behaviorguard.client.tokens import TokenClaims
    from grpc import aio

    from servers.mesh.context import CallContext
    from servers.quantum.audit_trail import AuditTrail
    from servers.quantum.jwks import TokenKeys
    from servers.quantum.revocation_store import RevocationStore, RevokedSession
    from servers.quantum.revocations import Revocations
    from servers.quantum.signatures import Detached, DetachedSignatures
    from servers.quantum.tokens import Issued, Tokens, Verdict

    Context = aio.ServicerContext[Any, Any]

_DEFAULT_PAGE: Final = 500
_REASONS: Final[Mapping[TokenProblem, ErrorReason.ValueType]] = {
    TokenProblem.MALFORMED: ErrorReason.ERROR_REASON_TOKEN_MALFORMED,
    TokenProblem.EXPIRED: ErrorReason.ERROR_REASON_TOKEN_EXPIRED,
    TokenProblem.REVOKED: ErrorReason.ERROR_REASON_TOKEN_REVOKED,
}


@dataclass(frozen=True, slots=True)
class TokenParts:
    """What the service is made of."""

    tokens: Tokens
    keys: TokenKeys
    signatures: DetachedSignatures
    revocations: Revocations
    revocation_store: RevocationStore
    trail: AuditTrail


class TokenService(TokenServiceServicer):
    """One short method per RPC; who may call what stands in the contract."""

    def __init__(self, parts: TokenParts) -> None:
        self._tokens = parts.tokens
        self._keys = parts.keys
        self._signatures = parts.signatures
        self._revocations = parts.revocations
        self._store = parts.revocation_store
        self._trail = parts.trail

    async def GenerateToken(  # noqa: N802 - gRPC's names are the contract's
        self, request: pb.GenerateTokenRequest, context: Context
    ) -> pb.GenerateTokenResponse:
        """Issues a session's tokens."""
        del context
        order = _order(request)
        audit = call_context().audit
        audit.user_id, audit.organization_id = order.user_id, order.organization_id
        audit.data = {"hybrid": order.hybrid, "lifetime_s": order.lifetime_s, "session_id": order.session_id}
        issued = await self._tokens.issue(order)
        audit.hsm_operation_id = issued.operation_id
        audit.data["token_id"] = issued.token_id
        if issued.quantum_key is not None:
            audit.key_id = issued.quantum_key.key_id
            audit.data["key_version"] = issued.quantum_key.version
        return _issued(issued)

    async def VerifyToken(  # noqa: N802
        self, request: pb.VerifyTokenRequest, context: Context
    ) -> pb.VerifyTokenResponse:
        """Checks a token."""
        del context
        verdict = await self._tokens.check(request.token, request.audience, accept_classical=request.accept_classical)
        response = _verdict(verdict)
        audit = call_context().audit
        audit.data = {"valid": response.valid, "quantum_secured": response.quantum_secured}
        if verdict.claims is None:
            audit.result, audit.data["reason"] = "failure", response.reason
        else:
            audit.user_id, audit.organization_id = verdict.claims.user_id, verdict.claims.organization_id
            audit.data["token_id"] = verdict.claims.token_id
        return response

    async def RevokeTokens(  # noqa: N802
        self, request: pb.RevokeTokensRequest, context: Context
    ) -> pb.RevokeTokensResponse:
        """Ends all tokens of a session; durable with its audit record, and in force here, before it is answered."""
        del context
        call = call_context()
        organization_id = (request.organization_id or call.organization_id).lower()
        session_id = request.session_id.lower()
        call.audit.organization_id = organization_id
        call.audit.data = {"session_id": session_id, "reason": request.reason}

        async def change(connection: Any) -> RevokedSession:
            return await revocation_store.revoke(connection, organization_id, session_id, HOLDS)

        revoked = await self._trail.commit(call_entry(call), change)
        self._revocations.learn(revoked)
        response = pb.RevokeTokensResponse()
        fill(response.revoked_at, revoked.revoked_at)
        return response

    async def GetVerificationKeys(  # noqa: N802
        self, request: pb.GetVerificationKeysRequest, context: Context
    ) -> pb.GetVerificationKeysResponse:
        """The keys that tokens are checked with."""
        del request, context
        keys = [json_web_key(key) for key in await self._keys.published()]
        return pb.GetVerificationKeysResponse(keys=keys, max_age_seconds=MAX_AGE_SECONDS)

    async def ListRevocations(  # noqa: N802
        self, request: pb.ListRevocationsRequest, context: Context
    ) -> pb.ListRevocationsResponse:
        """A page of ended sessions, newest first."""
        del context
        organization_id = call_context().organization_id.lower()
        since = moment_of(request.since) if request.HasField("since") else None
        issued_for = ("revocations", organization_id, str(since))
        before = _place(request.page_token, issued_for) if request.page_token else None
        size = request.page_size or _DEFAULT_PAGE
        with database():
            found = await self._store.page(organization_id, since, before, size + 1)
        page = found[:size]
        response = pb.ListRevocationsResponse()
        for each in page:
            entry = response.revocations.add(session_id=each.session_id)
            fill(entry.revoked_at, each.revoked_at)
            fill(entry.expires_at, each.expires_at)
        if len(found) > size:
            last = PageStart(page[-1].revoked_at_us, page[-1].session_id)
            response.next_page_token = page_token(last, *issued_for)
        return response

    async def SignMessage(  # noqa: N802
        self, request: pb.SignMessageRequest, context: Context
    ) -> pb.SignMessageResponse:
        """Signs a message with a key of the organisation."""
        del context
        call = _noted(request.key_id, len(request.message))
        signed = await self._signatures.sign(
            call.organization_id.lower(), call.audit.key_id, request.message, request.context
        )
        call.audit.hsm_operation_id = signed.operation_id
        call.audit.data |= {"algorithm": signed.algorithm.value, "key_version": signed.key_version}
        return pb.SignMessageResponse(quantum_signature=_detached(signed))

    async def VerifySignature(  # noqa: N802
        self, request: pb.VerifySignatureRequest, context: Context
    ) -> pb.VerifySignatureResponse:
        """Checks a detached signature."""
        del context
        call = _noted(request.key_id, len(request.message))
        valid = await self._signatures.holds(
            call.organization_id.lower(),
            call.audit.key_id,
            request.key_version,
            request.message,
            request.signature,
            request.context,
        )
        call.audit.data |= {"valid": valid, "key_version": request.key_version}
        return pb.VerifySignatureResponse(valid=valid)


def _order(request: pb.GenerateTokenRequest) -> TokenOrder:
    claims = request.claims
    return TokenOrder(
        user_id=request.user_id.lower(),
        organization_id=claims.organization_id.lower(),
        session_id=claims.session_id.lower(),
        audience=tuple(claims.audience),
        roles=tuple(claims.roles),
        authentication_methods=tuple(claims.authentication_methods),
        device_id=claims.device_id,
        lifetime_s=request.lifetime_seconds or DEFAULT_LIFETIME_S,
        hybrid=request.hybrid_mode,
    )


def _issued(issued: Issued) -> pb.GenerateTokenResponse:
    response = pb.GenerateTokenResponse(
        hybrid_token=issued.hybrid,
        classical_token=issued.classical,
        expires_in=issued.expires_in_s,
        token_id=issued.token_id,
    )
    if issued.quantum_key is not None:
        key = issued.quantum_key
        response.quantum_signature.algorithm = key.algorithm.value
        response.quantum_signature.key_id = key.key_id
        response.quantum_signature.key_version = key.version
        response.quantum_signature.signature = issued.quantum_signature
        fill(response.quantum_signature.signed_at, issued.signed_at)
    return response


def _verdict(verdict: Verdict) -> pb.VerifyTokenResponse:
    if verdict.problem is not None or verdict.claims is None:
        reason = _REASONS[verdict.problem or TokenProblem.MALFORMED]
        return pb.VerifyTokenResponse(valid=False, reason=ErrorReason.Name(reason))
    claims = verdict.claims
    response = pb.VerifyTokenResponse(
        valid=True, user_id=claims.user_id, claims=_claims(claims), quantum_secured=verdict.quantum_secured
    )
    response.expires_at.FromSeconds(claims.expires_at)
    return response


def _claims(claims: TokenClaims) -> pb.UserClaims:
    return pb.UserClaims(
        organization_id=claims.organization_id,
        session_id=claims.session_id,
        audience=claims.audience,
        roles=claims.roles,
        authentication_methods=claims.authentication_methods,
        device_id=claims.device_id,
    )


def _detached(signed: Detached) -> pb.QuantumSignature:
    message = pb.QuantumSignature(
        algorithm=signed.algorithm.value,
        key_id=signed.key_id,
        key_version=signed.key_version,
        signature=signed.signature,
    )
    fill(message.signed_at, signed.signed_at)
    return message


def _noted(key_id: str, message_bytes: int) -> CallContext:
    """The call, with notes of what it is about to do."""
    call = call_context()
    call.audit.key_id = key_id.lower()
    call.audit.data = {"message_bytes": message_bytes}
    return call


def _place(token: str, issued_for: tuple[str, ...]) -> tuple[Any, str]:
    try:
        start = page_start(token, *issued_for)
    except InvalidPageTokenError as error:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_TOKEN, str(error)) from None
    return start.created_at, start.key_id
