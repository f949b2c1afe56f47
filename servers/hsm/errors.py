"""What callers are told of what goes wrong inside."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from servers.crypto.errors import ContextError, CryptoError, OpenError
from servers.hsm.ceremony import WrongStateError
from servers.hsm.entropy import EntropyFailedError
from servers.hsm.keystore import KeysFullError, ReplicasDamagedError, UnknownKeyError, VersionError
from servers.hsm.modules import QuorumError
from servers.hsm.sealed import DamagedError
from servers.hsm.shares import ShareError
from servers.hsm.vaults import SealedError, VaultError
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import Iterator

_RETRY_SECONDS = 1.0
_REASONS: dict[type[Exception], tuple[ErrorReason.ValueType, float | None]] = {
    EntropyFailedError: (ErrorReason.ERROR_REASON_ENTROPY_FAILED, _RETRY_SECONDS),
    UnknownKeyError: (ErrorReason.ERROR_REASON_NOT_FOUND, None),
    KeysFullError: (ErrorReason.ERROR_REASON_OVERLOADED, None),
    ReplicasDamagedError: (ErrorReason.ERROR_REASON_REPLICAS_DAMAGED, None),
    WrongStateError: (ErrorReason.ERROR_REASON_WRONG_STATE, None),
    VersionError: (ErrorReason.ERROR_REASON_WRONG_STATE, None),
    QuorumError: (ErrorReason.ERROR_REASON_AUDIT_UNAVAILABLE, _RETRY_SECONDS),
    DamagedError: (ErrorReason.ERROR_REASON_REPLICAS_DAMAGED, None),
    ShareError: (ErrorReason.ERROR_REASON_SHARE_INVALID, None),
    SealedError: (ErrorReason.ERROR_REASON_HSM_SEALED, None),
    VaultError: (ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, _RETRY_SECONDS),
    OpenError: (ErrorReason.ERROR_REASON_ENVELOPE_INVALID, None),
    ContextError: (ErrorReason.ERROR_REASON_INVALID_FIELD, None),
    CryptoError: (ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM, None),
}


def told(error: Exception) -> MeshError | None:
    """What a caller may know of a domain's error; None when it is not one."""
    if isinstance(error, MeshError):
        return error
    for kind, (reason, retry_after_s) in _REASONS.items():
        if isinstance(error, kind):
            return MeshError(reason, str(error), retry_after_s=retry_after_s)
    return None


@contextmanager
def telling() -> Iterator[None]:
    """Inside, the domain's errors become `MeshError`."""
    try:
        yield
    except Exception as error:
        refusal = told(error)
        if refusal is None:
            raise
        raise refusal from error
