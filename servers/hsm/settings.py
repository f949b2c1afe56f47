"""What the HSM reads from its environment."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- pydantic reads the annotation at run time
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from servers.mesh.settings import MeshSettings

MODULES = 3


class HsmSettings(MeshSettings):
    """Settings of the HSM: `BEHAVIORGUARD_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="BEHAVIORGUARD_", frozen=True, extra="ignore")

    service_name: str = "hsm"
    """See `MeshSettings`."""
    port: int = Field(default=8443, ge=0, le=65535)
    """Port from the document."""
    max_message_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """See `MeshSettings`; 64 ciphertexts of 80 KiB must fit."""

    hsm_modules: Annotated[tuple[Path, ...], NoDecode]
    """Three folders that keep replicas, with commas between: put them on different disks."""
    hsm_backend: Literal["software", "pkcs11"] = "software"
    """Where the master key is."""
    hsm_pkcs11_library: Path | None = None
    """Shared library of the PKCS#11 module."""
    hsm_pkcs11_token: str = "behaviorguard"  # noqa: S105 -- a label, not a secret
    """Label of the module's token, which its own tool has initialised."""
    hsm_pin_file: Path | None = None
    """File with the token's user PIN; needed to initialise and to restore, never to unseal."""
    hsm_shares_at_hand: bool = False
    """Whether the shares lie on this machine, as in the embedded stack; status then says so."""
    crypto_provider: Literal["cryptography", "oqs"] = "cryptography"
    """Library of primitives."""

    entropy_qrng: Path | None = None
    """Device or pipe of a quantum random number generator, mixed with the operating system's randomness."""
    entropy_file: Path | None = None
    """File of random bytes, mixed in likewise; read once through."""
    entropy_bits: float = Field(default=6.0, gt=0.05, le=8)
    """Bits of entropy that a byte of the device or file is credited with: its maker's claim, not above."""

    keys_at_most: int = Field(default=250_000, ge=1, le=5_000_000)
    """Key versions that the HSM holds; each costs about 1 KiB of memory and 1.5 KiB on every module."""
    keys_in_use: int = Field(default=4096, ge=1, le=1_000_000)
    """Private keys that stay in memory after use while the HSM is unsealed."""
    write_threads: int = Field(default=8, ge=1, le=64)
    """Keys made at once: making one waits mostly for the disks."""
    work_threads: int = Field(default=2, ge=1, le=64)
    """Batches decrypted and signed at once."""
    channels_per_caller: int = Field(default=32, ge=1, le=10_000)
    """Open channels of one caller; one more ends its oldest."""
    channel_seconds: float = Field(default=900.0, ge=1, le=86_400)
    """Life of a channel."""
    shares_seconds: float = Field(default=600.0, gt=0, le=86_400)
    """How long shares that were given are kept while others are missing."""
    upkeep_seconds: float = Field(default=5.0, gt=0, le=3600)
    """Pause between two rounds of repairs, and of testing failed entropy sources again."""
    scrub_keys: int = Field(default=64, ge=0, le=10_000)
    """Keys whose replicas are read and repaired in each round."""
    backup_bytes: int = Field(default=512 * 1024 * 1024, ge=1024)
    """Largest backup that is taken back."""
    quantum_address: str = ""
    """Quantum service, `host:port`: gets the journal's ceremonies for the audit trail. Empty: it gets none."""
    hsm_harden: bool = True
    """Whether the process forbids core dumps and debuggers, and asks to keep its memory out of the swap."""

    @field_validator("hsm_modules", mode="before")
    @classmethod
    def _split(cls, value: str | tuple[Path, ...]) -> tuple[str | Path, ...]:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len({folder.absolute() for folder in self.hsm_modules}) != MODULES:
            raise ValueError("BEHAVIORGUARD_HSM_MODULES must name three different folders")
        if self.hsm_backend == "pkcs11" and self.hsm_pkcs11_library is None:
            raise ValueError("BEHAVIORGUARD_HSM_PKCS11_LIBRARY must name the module's library")
        return self
