"""What the quantum service reads from its environment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from servers.mesh.settings import MeshSettings


class QuantumSettings(MeshSettings):
    """Settings of the quantum service: `BEHAVIORGUARD_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="BEHAVIORGUARD_", frozen=True, extra="ignore")

    service_name: str = "quantum"
    """See `MeshSettings`."""
    port: int = Field(default=3005, ge=0, le=65535)
    """Port from the document."""
    max_message_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """See `MeshSettings`; 64 envelopes of 80 KiB must fit."""

    postgres_dsn: SecretStr
    """The quantum security database (port 5433), as a libpq connection string."""
    postgres_connections: int = Field(default=8, ge=2, le=200)
    """Most connections to the database at once, besides the audit trail's own."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6380/0")
    """The quantum Redis."""
    hsm_address: str = "127.0.0.1:8443"
    """Where the HSM listens, `host:port`."""
    crypto_provider: Literal["cryptography", "oqs"] = "cryptography"
    """Library of primitives."""

    keys_held: int = Field(default=4096, ge=16, le=1_000_000)
    """Keys held in memory at most."""
    keys_believed_seconds: float = Field(default=5.0, ge=0, le=60)
    """How long a key that was read is believed at most; changes are told at once by the database."""
    upkeep_seconds: float = Field(default=5.0, gt=0, le=3600)
    """Pause between two rounds of expiry, rotation by schedule and cleaning up."""
    given_up_seconds: float = Field(default=120.0, ge=1, le=86_400)
    """Age after which a key that was begun and not stored is destroyed in the HSM; more than any call may take."""
    platform_rotation_days: int = Field(default=90, ge=0, le=3650)
    """Days between rotations of the platform's own keys; 0 for none."""
    default_template_key: bool = True
    """Whether the default organisation gets a service key for templates when it has none."""

    token_issuer: str = Field(default="behaviorguard", min_length=1, max_length=255)
    """`iss` of every token; a token of another issuer is refused."""
    token_clock_skew_seconds: float = Field(default=60.0, ge=0, le=300)
    """How far the clock of the process that issued a token may be ahead; a token's end is never stretched."""
    verify_threads: int = Field(default=1, ge=1, le=64)
    """Threads that check signatures; one keeps up with all that the event loop can serve, about 4,000 tokens/s."""
    revocations_held: int = Field(default=200_000, ge=1000, le=10_000_000)
    """Ended sessions held in memory at most, about 150 B each; beyond it each check of a token asks the database."""

    audit_queue: int = Field(default=4096, ge=16, le=1_000_000)
    """Audit records that wait for the database at most; calls beyond that fail."""
    audit_seconds: float = Field(default=3.0, gt=0.05, le=60)
    """Time that a call waits for its audit record at most; then it fails."""
    checkpoint_records: int = Field(default=500, ge=1, le=4096)
    """So many new audit records of an organisation bring a signed checkpoint at once."""
    checkpoint_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """After this time any new audit record brings a checkpoint."""
    watch_readers: int = Field(default=200, ge=1, le=100_000)
    """Followers of the audit trail, and as many of security events, at once."""
    watch_lag: int = Field(default=10_000, ge=1, le=10_000_000)
    """Audit records that a follower may fall behind; a slower one is cut off and resumes."""
