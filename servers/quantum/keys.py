"""What a key is, the rules of the hierarchy, and what a key may do when. No store, no transport, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from servers.crypto.algorithms import Algorithm, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

DEFAULT_LIFETIME_DAYS: Final = 365


class KeyType(StrEnum):
    """Place in the hierarchy; the value is the database's label."""

    MASTER = "master"
    SERVICE = "service"
    DEVICE = "device"

    def stands_above(self, other: KeyType) -> bool:
        """True for a master key over service and device keys, and for a service key over device keys."""
        order = (KeyType.MASTER, KeyType.SERVICE, KeyType.DEVICE)
        return order.index(self) < order.index(other)


class KeyPurpose(StrEnum):
    """What a key is for; the value is the database's label."""

    ENCRYPTION = "encryption"
    SIGNING = "signing"
    BOTH = "both"
    """Asked for only: what is stored is a key and a companion of one purpose each."""


class KeyStatus(StrEnum):
    """Whether a key may be used; the value is the database's label."""

    ACTIVE = "active"
    ROTATED = "rotated"
    REVOKED = "revoked"
    EXPIRED = "expired"


class KeyRuleError(ValueError):
    """An order for a key that cannot be; the text says what would fit."""


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version of a key."""

    number: int
    """From 1."""
    public_key: bytes = field(repr=False)
    key_handle: str
    """The HSM's name for it."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its versions, as the database knows it."""

    key_id: str
    organization_id: str
    key_type: KeyType
    algorithm: Algorithm
    purpose: KeyPurpose
    """ENCRYPTION or SIGNING."""
    status: KeyStatus
    """As stored: ask `status_at`."""
    versions: tuple[KeyVersion, ...] = field(repr=False)
    """Newest first; at least one."""
    min_decrypt_version: int
    parent_key_id: str
    """Empty for a master key."""
    service_id: str
    device_id: str
    created_at: datetime
    expires_at: datetime
    rotated_at: datetime | None
    revoked_at: datetime | None
    next_rotation_at: datetime | None
    rotation_days: int
    """0 without a schedule."""
    lifetime_days: int
    """What a rotation gives the key again."""
    use_limit: int
    """Uses of each version; 0 without a limit."""
    uses: int
    """Uses of the newest version that were taken; counted only while there is a limit."""
    companion_key_id: str
    """The key that was made with it for the other purpose; empty without one."""
    platform: bool
    """The platform's own: signs tokens or checkpoints, and nothing that a caller hands in."""
    metadata: Mapping[str, str]

    @property
    def newest(self) -> KeyVersion:
        """What everything new is encrypted or signed with."""
        return self.versions[0]

    @property
    def security_level(self) -> str:
        """What the algorithm gives."""
        return self.algorithm.security_level

    @property
    def uses_left(self) -> int | None:
        """None without a limit."""
        return max(0, self.use_limit - self.uses) if self.use_limit else None

    def version(self, number: int) -> KeyVersion | None:
        """The version of that number, or None."""
        return next((version for version in self.versions if version.number == number), None)

    def status_at(self, now: datetime) -> KeyStatus:
        """Whether it may be used now: an active key past its end has expired, noticed or not."""
        if self.status is KeyStatus.EXPIRED or (self.status is KeyStatus.ACTIVE and self.expires_at <= now):
            return KeyStatus.EXPIRED
        return self.status


@dataclass(frozen=True, slots=True)
class NewKey:
    """An order for a key."""

    organization_id: str
    key_type: KeyType
    algorithm: Algorithm
    purpose: KeyPurpose
    service_id: str = ""
    device_id: str = ""
    parent_key_id: str = ""
    """Empty takes the organisation's newest active master key."""
    lifetime_days: int = DEFAULT_LIFETIME_DAYS
    rotation_days: int = 0
    use_limit: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    platform: bool = False

    def companion(self) -> NewKey:
        """The order for the key that does what this one's algorithm cannot, at the same level."""
        algorithm = _COMPANIONS[self.algorithm]
        return replace(self, algorithm=algorithm, purpose=purpose_of(algorithm))


_COMPANIONS: Final[Mapping[Algorithm, Algorithm]] = {
    Algorithm.ML_KEM_768: Algorithm.ML_DSA_65,
    Algorithm.X_WING: Algorithm.ML_DSA_65,
    Algorithm.ML_KEM_1024: Algorithm.ML_DSA_87,
    Algorithm.ML_DSA_65: Algorithm.ML_KEM_768,
    Algorithm.ML_DSA_87: Algorithm.ML_KEM_1024,
}


def purpose_of(algorithm: Algorithm) -> KeyPurpose:
    """What an algorithm can be used for."""
    return KeyPurpose.ENCRYPTION if algorithm.kind is Kind.KEM else KeyPurpose.SIGNING


def require_purpose(algorithm: Algorithm, purpose: KeyPurpose) -> None:
    """Refuse a purpose that the algorithm cannot serve.

    Raises:
        KeyRuleError: a KEM for signing, or a signature algorithm for encryption.
    """
    if purpose not in (KeyPurpose.BOTH, purpose_of(algorithm)):
        verb = "encrypts and does not sign" if algorithm.kind is Kind.KEM else "signs and does not encrypt"
        raise KeyRuleError(f"{algorithm} {verb}")


def ends_at(start: datetime, lifetime_days: int) -> datetime:
    """When a version that begins at `start` stops encrypting and signing."""
    return start + timedelta(days=lifetime_days)


def next_rotation(last: datetime, rotation_days: int) -> datetime | None:
    """When a key is due again; None without a schedule."""
    return last + timedelta(days=rotation_days) if rotation_days else None
