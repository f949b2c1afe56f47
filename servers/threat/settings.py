"""What the threat service reads from its environment."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from servers.mesh.settings import DEFAULT_ORGANIZATION_ID, MeshSettings


class ThreatSettings(MeshSettings):
    """Settings of the threat service: `BEHAVIORGUARD_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="BEHAVIORGUARD_", frozen=True, extra="ignore")

    service_name: str = "threat"
    """See `MeshSettings`."""
    port: int = Field(default=3002, ge=0, le=65535)
    """Port from the document."""

    postgres_dsn: SecretStr
    """The main database (port 5432), as a libpq connection string."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """The main Redis."""
    kafka_bootstrap: str = "127.0.0.1:9092"
    """Brokers, `host:port` with commas between."""

    events_topic: str = "threat-events"
    """Accepted events, for the pipeline."""
    alerts_topic: str = "threat-alerts"
    """Scored events, from the pipeline."""
    dead_letters_topic: str = "threat-dead-letters"
    """What could not be used."""
    alerts_group: str = "bg-threat-ai-consumer"
    """Consumer group of the alerts."""

    postgres_connections: int = Field(default=8, ge=2, le=200)
    """Most connections to the database at once."""
    produce_queue: int = Field(default=20_000, ge=16, le=1_000_000)
    """Events that wait for the broker at most; more are refused as overload."""
    produce_seconds: float = Field(default=5.0, gt=0.1, le=60)
    """Time that the broker has to acknowledge an event."""
    linger_ms: float = Field(default=2.0, ge=0, le=100)
    """How long an event waits for company on its way to the broker."""
    stream_window: int = Field(default=64, ge=1, le=4096)
    """Events of one stream that may wait for the broker at once."""
    recent_events: int = Field(default=100_000, ge=16, le=10_000_000)
    """Event ids that are remembered, so that an event sent twice counts once."""
    evidence_events: int = Field(default=20_000, ge=16, le=1_000_000)
    """Events on their way through the pipeline whose context is remembered for learning."""
    people_cached: int = Field(default=10_000, ge=8, le=1_000_000)
    """People whose state is held in memory."""
    members_seconds: float = Field(default=30.0, ge=0, le=3600)
    """How long the answer to "does this user exist" is believed."""
    save_seconds: float = Field(default=1.0, gt=0, le=60)
    """Time between two writings of changed profiles."""
    alerts_session_seconds: float = Field(default=6.0, ge=0.5, le=300)
    """After this much silence the group takes a dead instance's partitions; the embedded broker lets a newcomer in
    after half of it.
    """
    alert_batch: int = Field(default=48, ge=1, le=10_000)
    """Alerts that are stored in one transaction at most: learning from them takes the event loop about 0.1 ms each, and
    nobody else may wait for more than 5 ms."""
    alert_window_ms: float = Field(default=3.0, ge=0, le=1000)
    """How long a batch of alerts waits for more."""
    watch_queue: int = Field(default=1024, ge=1, le=100_000)
    """Alerts that wait for one reader at most; a slower reader is cut and resumes."""
    watch_readers: int = Field(default=1000, ge=1, le=100_000)
    """Readers of alerts at once."""

    anonymizer_networks: Annotated[tuple[str, ...], NoDecode] = ()
    """Networks of VPN and proxy exits, CIDR with commas between: places behind them say nothing."""

    trials_enabled: bool = False
    """Whether `StartTrial` may create throwaway people."""
    trial_minutes: float = Field(default=60.0, gt=0, le=1440)
    """Life of a trial."""
    trials_at_once: int = Field(default=500, ge=1, le=100_000)
    """Trials that may live at the same time."""
    trial_organization_id: str = DEFAULT_ORGANIZATION_ID
    """Organisation that throwaway people belong to."""

    @field_validator("anonymizer_networks", mode="before")
    @classmethod
    def _networks(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        networks = tuple(part.strip() for part in parts if part.strip())
        for network in networks:
            ip_network(network)
        return networks
