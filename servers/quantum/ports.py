"""What the quantum service's rules need from outside, as Protocols: the HSM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from servers.mesh.errors import MeshError


@dataclass(frozen=True, slots=True)
class GeneratedKey:
    """A key version that the HSM made; two of its modules at least have it durably."""

    public_key: bytes
    """Public half, encoded as the standard says."""
    key_handle: str
    """The HSM's name for this version: opaque, at most 255 characters."""
    entropy: str
    """Names of the sources with the state of their health tests ("os:healthy"); never entropy."""
    operation_id: str
    """The HSM's own number for the operation."""
    generated_at: datetime
    """When it was made, with time zone."""


@dataclass(frozen=True, slots=True)
class SealedItem:
    """One ciphertext for the HSM to open: KEM -> HKDF-SHA256 -> AES-256-GCM, as `servers.crypto.sealing` makes it."""

    key_handle: str
    """The HSM's name for the key's version, 1 to 255 characters."""
    organization_id: str
    """UUID of the organisation that the key must belong to."""
    kem_ciphertext: bytes
    """1,088 B (ML-KEM-768), 1,568 B (ML-KEM-1024) or 1,120 B (X-Wing)."""
    info: bytes
    """Info string of HKDF-SHA256, 1 to 1,024 B."""
    nonce: bytes
    """Nonce of AES-256-GCM, 12 B."""
    ciphertext: bytes = field(repr=False)
    """Ciphertext with tag, 16 B to 80 KiB."""
    associated_data: bytes = field(repr=False)
    """At most 4 KiB."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What was inside one ciphertext."""

    plaintext: bytes = field(repr=False)
    """The plaintext."""
    operation_id: str
    """The HSM's own number for the operation; calls that shared an RPC share it."""


@dataclass(frozen=True, slots=True)
class SignItem:
    """One message for the HSM to sign."""

    key_handle: str
    """The HSM's name for the key's version, 1 to 255 characters."""
    organization_id: str
    """UUID of the organisation that the key must belong to."""
    message: bytes = field(repr=False)
    """At most 1 MiB."""
    context: bytes = b""
    """Context string of FIPS 204, at most 255 B; empty for Ed25519."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature by the HSM."""

    signature: bytes
    """3,309 B (ML-DSA-65), 4,627 B (ML-DSA-87) or 64 B (Ed25519)."""
    operation_id: str
    """The HSM's own number for the operation; calls that shared an RPC share it."""


@dataclass(frozen=True, slots=True)
class Destroyed:
    """A key that is gone from all modules."""

    versions: int
    """Versions destroyed; 0 when it was gone already."""
    operation_id: str
    """The HSM's own number for the operation."""


@dataclass(frozen=True, slots=True)
class HsmState:
    """How the HSM is."""

    backend: str
    """"software" or "pkcs11"."""
    backend_notice: str
    """One honest sentence about where keys live."""
    state: str
    """"uninitialized", "sealed" or "unsealed"."""
    entropy: str
    """Names of the sources with the state of their health tests."""
    entropy_healthy: bool
    """False while a source fails: no key is made."""
    modules_available: int
    """Modules that answer, of three."""
    repaired_replicas: int
    """Replicas found damaged, missing or rolled back since the HSM started, and repaired."""
    key_count: int
    """Key versions inside."""
    total_operations: int
    """Operations since the HSM started."""
    error_rate: float
    """Share of operations over the last 60 s that failed, 0 to 1."""
    active_connections: int
    """Open channels."""


class Hsm(Protocol):
    """The HSM's operations, with one caller's organisation and key handles in every call.

    Every method raises `MeshError`: HSM_SEALED, ENTROPY_FAILED, REPLICAS_DAMAGED, NOT_FOUND (no such handle in that
    organisation), UNSUPPORTED_ALGORITHM (the key is of the other kind), ENVELOPE_INVALID (decrypt: whatever is wrong),
    AUDIT_UNAVAILABLE, OVERLOADED, DEPENDENCY_UNAVAILABLE, CIRCUIT_OPEN, DEADLINE.
    """

    async def generate(self, key_id: str, version: int, algorithm: str, organization_id: str) -> GeneratedKey:
        """Make a key (version 1) or its next version.

        Args:
            key_id: UUID that the key has or gets.
            version: 1, or one more than the newest; WRONG_STATE otherwise. Asking again for the newest answers with the
                same key, so that a call whose answer was lost can be repeated.
            algorithm: the standard's name, such as "ML-KEM-768".
            organization_id: UUID of the organisation; bound to the key for good.
        """

    async def decrypt(self, item: SealedItem) -> Opened:
        """Open one ciphertext; concurrent calls travel together."""

    async def decrypt_many(self, items: Sequence[SealedItem]) -> list[Opened | MeshError]:
        """Open many; a result or its error for each, in order."""

    async def sign(self, key_handle: str, organization_id: str, message: bytes, context: bytes = b"") -> Signed:
        """Sign one message; concurrent calls travel together."""

    async def sign_many(self, items: Sequence[SignItem]) -> list[Signed | MeshError]:
        """Sign many; a result or its error for each, in order."""

    async def destroy(self, key_id: str, organization_id: str) -> Destroyed:
        """Destroy all versions of a key on all modules; one that is gone already is no error."""

    async def status(self) -> HsmState:
        """How the HSM is; answered also while it is sealed."""
