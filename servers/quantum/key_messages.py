"""Keys as the contract's messages, and the contract's enums as the domain's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from behaviorguard.quantum.v1 import key_pb2 as pb

from servers.quantum.keys import KeyPurpose, KeyStatus, KeyType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.timestamp_pb2 import Timestamp

    from servers.quantum.keys import Key, KeyVersion

KEY_TYPES: Final[Mapping[pb.KeyType.ValueType, KeyType]] = {
    pb.KEY_TYPE_MASTER: KeyType.MASTER,
    pb.KEY_TYPE_SERVICE: KeyType.SERVICE,
    pb.KEY_TYPE_DEVICE: KeyType.DEVICE,
}
PURPOSES: Final[Mapping[pb.KeyPurpose.ValueType, KeyPurpose]] = {
    pb.KEY_PURPOSE_ENCRYPTION: KeyPurpose.ENCRYPTION,
    pb.KEY_PURPOSE_SIGNING: KeyPurpose.SIGNING,
    pb.KEY_PURPOSE_BOTH: KeyPurpose.BOTH,
}
STATUSES: Final[Mapping[pb.KeyStatus.ValueType, KeyStatus]] = {
    pb.KEY_STATUS_ACTIVE: KeyStatus.ACTIVE,
    pb.KEY_STATUS_ROTATED: KeyStatus.ROTATED,
    pb.KEY_STATUS_REVOKED: KeyStatus.REVOKED,
    pb.KEY_STATUS_EXPIRED: KeyStatus.EXPIRED,
}
_TYPE_NUMBERS: Final = {value: number for number, value in KEY_TYPES.items()}
_PURPOSE_NUMBERS: Final = {value: number for number, value in PURPOSES.items()}
_STATUS_NUMBERS: Final = {value: number for number, value in STATUSES.items()}


def key_message(key: Key, now: datetime) -> pb.Key:
    """A key as it is now."""
    message = pb.Key(
        key_id=key.key_id,
        organization_id=key.organization_id,
        key_type=_TYPE_NUMBERS[key.key_type],
        algorithm=key.algorithm.value,
        purpose=_PURPOSE_NUMBERS[key.purpose],
        security_level=key.security_level,
        public_key=key.newest.public_key,
        key_handle=key.newest.key_handle,
        version=key.newest.number,
        min_decrypt_version=key.min_decrypt_version,
        parent_key_id=key.parent_key_id,
        service_id=key.service_id,
        device_id=key.device_id,
        status=_STATUS_NUMBERS[key.status_at(now)],
        rotation_days=key.rotation_days,
        uses_left=None if key.uses_left is None else min(key.uses_left, 2**32 - 1),
        metadata=key.metadata,
    )
    fill(message.created_at, key.created_at)
    fill(message.expires_at, key.expires_at)
    fill(message.rotated_at, key.rotated_at)
    fill(message.revoked_at, key.revoked_at)
    fill(message.next_rotation_at, key.next_rotation_at)
    return message


def version_message(key: Key, version: KeyVersion) -> pb.KeyVersion:
    """One of a key's versions."""
    message = pb.KeyVersion(
        version=version.number,
        public_key=version.public_key,
        key_handle=version.key_handle,
        decrypts=key.status is not KeyStatus.REVOKED and version.number >= key.min_decrypt_version,
    )
    fill(message.created_at, version.created_at)
    return message


def fill(field: Timestamp, moment: datetime | None) -> None:
    """Set a field, or leave it unset."""
    if moment is not None:
        field.FromDatetime(moment)


def moment_of(field: Timestamp) -> datetime:
    """The time that a field says."""
    return field.ToDatetime(UTC)
