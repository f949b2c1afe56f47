"""Between the contract's messages and the domain's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from behaviorguard.hsm.v1 import hsm_service_pb2 as pb

from servers.crypto.algorithms import Algorithm
from servers.crypto.sealing import Sealed
from servers.hsm.ceremony import State
from servers.hsm.engine import Box, KeyOrder, Paper
from servers.hsm.errors import told
from servers.mesh.errors import ErrorReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from servers.hsm.engine import ListedKey, MadeKey
    from servers.hsm.service import HsmParts

STATES: Final[Mapping[State, pb.SealState.ValueType]] = {
    State.UNINITIALIZED: pb.SEAL_STATE_UNINITIALIZED,
    State.SEALED: pb.SEAL_STATE_SEALED,
    State.UNSEALED: pb.SEAL_STATE_UNSEALED,
}
_AT_HAND: Final = " Its shares lie on this machine: whoever reads them and the modules has the keys."
_BACKENDS: Final = {"software": pb.BACKEND_SOFTWARE, "pkcs11": pb.BACKEND_PKCS11}


def status(parts: HsmParts) -> pb.GetStatusResponse:
    """How the HSM is, without waiting for anything."""
    progress = parts.ceremony.progress
    answer = pb.GetStatusResponse(
        backend=_BACKENDS[parts.vault.backend],
        backend_notice=parts.vault.notice + (_AT_HAND if parts.settings.hsm_shares_at_hand else ""),
        state=STATES[progress.state],
        shares_given=progress.given,
        shares_needed=progress.needed,
        key_count=len(parts.store.index),
        total_operations=parts.rates.total,
        error_rate=parts.rates.error_rate,
        active_connections=len(parts.channels),
    )
    for source in parts.entropy.states():
        answer.entropy_sources.add(
            name=source.name,
            health=pb.ENTROPY_HEALTH_HEALTHY if source.healthy else pb.ENTROPY_HEALTH_FAILED,
            samples_tested=source.samples_tested,
            min_entropy_per_sample=source.min_entropy,
        )
    for module in parts.modules.all:
        answer.modules.add(name=module.name, available=module.available, repaired_replicas=module.repaired)
    return answer


def order(request: pb.GenerateKeyRequest) -> KeyOrder:
    """What key to make."""
    return KeyOrder(
        request.key_id.lower(),
        request.version,
        Algorithm(request.algorithm),
        request.organization_id.lower(),
        tuple(request.entropy_sources),
    )


def made(key_id: str, key: MadeKey, operation_id: str) -> pb.GenerateKeyResponse:
    """The key that was made."""
    answer = pb.GenerateKeyResponse(
        key_id=key_id,
        public_key=key.public_key,
        key_handle=key.handle,
        entropy=key.entropy,
        operation_id=operation_id,
    )
    answer.generation_time.FromDatetime(key.made_at)
    return answer


def boxes(request: pb.DecryptRequest) -> list[Box]:
    """What to open."""
    return [
        Box(
            item.key_handle,
            item.organization_id.lower(),
            Sealed(item.kem_ciphertext, item.nonce, item.ciphertext),
            item.info,
            item.associated_data,
        )
        for item in request.items
    ]


def decrypted(results: Sequence[bytes | Exception], operation_id: str) -> tuple[pb.DecryptResponse, int]:
    """What became of the ciphertexts, and how many failed."""
    answer = pb.DecryptResponse(operation_id=operation_id)
    for result in results:
        if isinstance(result, bytes):
            answer.results.add(plaintext=result)
        else:
            answer.results.add(reason=reason_of(result))
    return answer, _failed(results)


def papers(request: pb.SignRequest) -> list[Paper]:
    """What to sign."""
    return [Paper(item.key_handle, item.organization_id.lower(), item.message, item.context) for item in request.items]


def signed(results: Sequence[bytes | Exception], operation_id: str) -> tuple[pb.SignResponse, int]:
    """What became of the messages, and how many failed."""
    answer = pb.SignResponse(operation_id=operation_id)
    for result in results:
        if isinstance(result, bytes):
            answer.results.add(signature=result)
        else:
            answer.results.add(reason=reason_of(result))
    return answer, _failed(results)


def listed(keys: Sequence[ListedKey], size: int) -> pb.ListKeysResponse:
    """A page of keys; the next one begins after its last handle."""
    answer = pb.ListKeysResponse(next_page_token=keys[-1].stored.handle if len(keys) == size else "")
    for key in keys:
        answer.keys.add(
            key_id=key.stored.key_id,
            version=key.stored.version,
            key_handle=key.stored.handle,
            algorithm=key.stored.algorithm,
            organization_id=key.stored.organization_id,
            replicas=key.replicas,
            valid=key.valid,
        )
    return answer


def reason_of(error: Exception) -> str:
    """Name of the reason that an item of a batch failed with."""
    refusal = told(error)
    return ErrorReason.Name(ErrorReason.ERROR_REASON_INTERNAL) if refusal is None else refusal.reason_name


def _failed(results: Sequence[bytes | Exception]) -> int:
    return sum(isinstance(result, Exception) for result in results)
