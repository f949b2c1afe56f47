"""`behaviorguard.quantum.v1.KeyService`: messages in, domain calls, messages out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from behaviorguard.quantum.v1 import key_service_pb2 as pb
from behaviorguard.quantum.v1.key_service_pb2_grpc import KeyServiceServicer

from servers.crypto.algorithms import canonical, require_level
from servers.crypto.errors import SecurityLevelError, UnsupportedAlgorithmError
from servers.mesh.context import CallContext, call_context
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.key_changes import KeyChanges
from servers.quantum.key_messages import KEY_TYPES, PURPOSES, STATUSES, fill, key_message, moment_of, version_message
from servers.quantum.key_ring import database, no_such_key
from servers.quantum.key_rows import OwnedKey
from servers.quantum.key_store import KeyFilter, PageStart
from servers.quantum.keys import DEFAULT_LIFETIME_DAYS, KeyRuleError, KeyStatus, NewKey, require_purpose
from servers.quantum.page_tokens import InvalidPageTokenError, page_start, page_token

if TYPE_CHECKING:
    from grpc import aio

    from servers.quantum.key_keeper import KeyKeeper
    from servers.quantum.key_store import KeyStore
    from servers.quantum.keys import Key
    from servers.quantum.templates import Templates
    from servers.quantum.violations import Violations

    Context = aio.ServicerContext[Any, Any]

_DEFAULT_PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class KeyParts:
    """What the service is made of."""

    keeper: KeyKeeper
    store: KeyStore
    violations: Violations
    templates: Templates


class KeyService(KeyServiceServicer):
    """One short method per RPC; who may call what stands in the contract."""

    def __init__(self, parts: KeyParts) -> None:
        self._keeper = parts.keeper
        self._store = parts.store
        self._violations = parts.violations
        self._templates = parts.templates

    async def GenerateKey(  # noqa: N802 - gRPC's names are the contract's
        self, request: pb.GenerateKeyRequest, context: Context
    ) -> pb.GenerateKeyResponse:
        """Makes a key."""
        del context
        call = call_context()
        call.audit.data = {"algorithm": request.algorithm}
        _own_organization(call, request.organization_id)
        made = await self._keeper.generate(_order(request, call.organization_id))
        response = pb.GenerateKeyResponse(
            key_id=made.key_id,
            public_key=made.made.public_key,
            algorithm=made.order.algorithm.value,
            security_level=made.order.algorithm.security_level,
            key_handle=made.made.key_handle,
            quantum_secured=True,
            companion_key_id=made.companion_key_id,
            version=1,
        )
        fill(response.expires_at, made.expires_at)
        return response

    async def GetKey(  # noqa: N802
        self, request: pb.GetKeyRequest, context: Context
    ) -> pb.GetKeyResponse:
        """One key with its versions."""
        del context
        key = await self._key(request.key_id)
        return pb.GetKeyResponse(
            key=key_message(key, datetime.now(UTC)),
            versions=[version_message(key, version) for version in key.versions],
        )

    async def ListKeys(  # noqa: N802
        self, request: pb.ListKeysRequest, context: Context
    ) -> pb.ListKeysResponse:
        """A page of keys, newest first."""
        del context
        call = call_context()
        if request.organization_id:
            _own_organization(call, request.organization_id)
        wanted = KeyFilter(call.organization_id.lower(), KEY_TYPES.get(request.key_type), STATUSES.get(request.status))
        issued_for = (wanted.organization_id, wanted.key_type or "", wanted.status or "")
        start = _page(request.page_token, issued_for) if request.page_token else None
        size = request.page_size or _DEFAULT_PAGE
        with database():
            keys = await self._store.list_keys(wanted, start, size + 1)
        page, now = keys[:size], datetime.now(UTC)
        call.audit.data = {"keys": len(page)}
        return pb.ListKeysResponse(
            keys=[key_message(key, now) for key in page],
            next_page_token=page_token(PageStart.after(page[-1]), *issued_for) if len(keys) > size else "",
        )

    async def RotateKey(  # noqa: N802
        self, request: pb.RotateKeyRequest, context: Context
    ) -> pb.RotateKeyResponse:
        """Gives a key a new version."""
        del context
        key = await self._key(request.key_id)
        after = await self._keeper.rotate(key, min_decrypt_version=request.min_decrypt_version)
        return pb.RotateKeyResponse(key=key_message(after, datetime.now(UTC)))

    async def UpdateKey(  # noqa: N802
        self, request: pb.UpdateKeyRequest, context: Context
    ) -> pb.UpdateKeyResponse:
        """Changes a key's limits."""
        del context
        key = await self._key(request.key_id)
        if key.status is KeyStatus.REVOKED:
            raise MeshError(ErrorReason.ERROR_REASON_KEY_REVOKED, "the key was revoked")
        now = datetime.now(UTC)
        changes = _changes(request, now)
        after = await self._keeper.change(OwnedKey(key.organization_id, key.key_id), changes)
        return pb.UpdateKeyResponse(key=key_message(after, now))

    async def RevokeKey(  # noqa: N802
        self, request: pb.RevokeKeyRequest, context: Context
    ) -> pb.RevokeKeyResponse:
        """Ends a key and all below it."""
        del context
        key = await self._key(request.key_id)
        after, others = await self._keeper.revoke(key, request.reason)
        return pb.RevokeKeyResponse(key=key_message(after, datetime.now(UTC)), revoked_key_ids=others)

    async def RewrapEnvelopes(  # noqa: N802
        self, request: pb.RewrapEnvelopesRequest, context: Context
    ) -> pb.RewrapEnvelopesResponse:
        """Moves envelopes to a key's newest version."""
        del context
        call = call_context()
        call.audit.key_id = request.key_id.lower()
        results = await self._templates.rewrap(call.organization_id.lower(), request.key_id, request.envelopes)
        failed = sum(isinstance(result, MeshError) for result in results)
        call.audit.data = {"items": len(results), "refused": failed}
        if failed:
            call.audit.result = "partial"
        answer = pb.RewrapEnvelopesResponse()
        for result in results:
            if isinstance(result, MeshError):
                answer.results.add(reason=result.reason_name)
            else:
                answer.results.add(envelope=result)
        return answer

    async def _key(self, key_id: str) -> Key:
        """The key as the database has it now."""
        call = call_context()
        call.audit.key_id = key_id.lower()
        owned = OwnedKey(call.organization_id.lower(), key_id.lower())
        with database():
            key = await self._store.get(owned.organization_id, owned.key_id)
        if key is None:
            self._violations.suspect(owned.organization_id, owned.key_id)
            raise no_such_key()
        return key


def _own_organization(call: CallContext, organization_id: str) -> None:
    if organization_id.lower() != call.organization_id.lower():
        raise MeshError(ErrorReason.ERROR_REASON_SCOPE_NOT_ALLOWED, "the request names another organisation")


def _order(request: pb.GenerateKeyRequest, organization_id: str) -> NewKey:
    try:
        algorithm = canonical(request.algorithm)
        purpose = PURPOSES[request.purpose]
        require_purpose(algorithm, purpose)
        require_level(algorithm, request.security_level)
    except SecurityLevelError as error:
        raise MeshError(ErrorReason.ERROR_REASON_SECURITY_LEVEL_NOT_MET, str(error)) from None
    except (UnsupportedAlgorithmError, KeyRuleError) as error:
        raise MeshError(ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM, str(error)) from None
    return NewKey(
        organization_id=organization_id.lower(),
        key_type=KEY_TYPES[request.key_type],
        algorithm=algorithm,
        purpose=purpose,
        service_id=request.service_id,
        device_id=request.device_id,
        parent_key_id=request.parent_key_id,
        lifetime_days=request.lifetime_days or DEFAULT_LIFETIME_DAYS,
        rotation_days=request.rotation_days,
        use_limit=request.use_limit,
        metadata=dict(request.metadata),
    )


def _changes(request: pb.UpdateKeyRequest, now: datetime) -> KeyChanges:
    expires_at = moment_of(request.expires_at) if request.HasField("expires_at") else None
    if expires_at is not None and expires_at <= now:
        raise MeshError(
            ErrorReason.ERROR_REASON_INVALID_FIELD, "expires_at must be in the future; revoke ends a key now"
        )
    return KeyChanges(
        min_decrypt_version=request.min_decrypt_version if request.HasField("min_decrypt_version") else None,
        expires_at=expires_at,
        rotation_days=request.rotation_days if request.HasField("rotation_days") else None,
        use_limit=request.use_limit if request.HasField("use_limit") else None,
        metadata=dict(request.metadata) if request.metadata else None,
    )


def _page(token: str, issued_for: tuple[str, ...]) -> PageStart:
    try:
        return page_start(token, *issued_for)
    except InvalidPageTokenError as error:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_TOKEN, str(error)) from None
