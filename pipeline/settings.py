"""What the pipeline reads from its environment."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class PipelineSettings(BaseSettings):
    """Settings of one pipeline process, each from a variable with the prefix `BEHAVIORGUARD_`
    (`BEHAVIORGUARD_KAFKA_BOOTSTRAP`).

    Port, topics, group and batch size are the document's. The window is 15 ms instead of its 100 ms, because the median
    of a 100 ms window exceeds the document's own 50 ms.
    """

    model_config = SettingsConfigDict(env_prefix="BEHAVIORGUARD_", frozen=True, extra="ignore")

    kafka_bootstrap: str = Field(default="127.0.0.1:9092", min_length=1)
    """The broker: `host:port`, several separated by commas."""

    kafka_options: dict[str, str] = Field(default_factory=dict)
    """More librdkafka settings for both directions, as JSON: `{"security.protocol": "SSL", "ssl.ca.location":
    "/etc/ca.pem"}`."""

    pipeline_group: str = Field(default="morpheus-threat-detection", min_length=1)
    """Consumer group: pipelines with the same one share the partitions."""

    pipeline_node: str = Field(default_factory=socket.gethostname, min_length=1, max_length=255)
    """Name of this process, sent as header `processing-node`."""

    events_topic: str = "threat-events"
    alerts_topic: str = "threat-alerts"
    dead_letters_topic: str = "threat-dead-letters"

    pipeline_batch_events: int = Field(default=1024, ge=1, le=1024)
    """Most events in a batch; the models accept 1,024."""

    pipeline_window_seconds: float = Field(default=0.015, ge=0, le=1)
    """Longest wait for a batch to fill, counted from its first event."""

    pipeline_max_message_bytes: int = Field(default=65_536, ge=1_024, le=1_048_576)
    """Longest message that is read: a well-formed event has under 5,000 bytes."""

    pipeline_users: int = Field(default=100_000, ge=2_048)
    """Users whose windows are kept; beyond that those unseen for longest start anew."""

    pipeline_rebuild_events: int = Field(default=25_000, ge=0)
    """Most events of a partition that are read again to rebuild its users' windows when the partition is assigned."""

    pipeline_rebuild_seconds: int = Field(default=86_400, ge=0)
    """Oldest events that are read again for that."""

    pipeline_delivery_seconds: float = Field(default=60.0, gt=0, le=600)
    """Longest wait for the broker to take an alert; then the batch is read again."""

    pipeline_drain_seconds: float = Field(default=20.0, gt=0, le=600)
    """Longest wait for what is in progress when partitions are taken away or the process is told to stop."""

    pipeline_failures: int = Field(default=10, ge=1)
    """Failures in a row, without an event scored between them, after which the process gives up."""

    pipeline_port: int = Field(default=8889, ge=0, le=65_535)
    """Loopback port of `/health` and `/metrics`; 0 takes a free one."""

    models: Path = Path(__file__).parent / "models"
    """The model repository."""

    model_threads: int = Field(default=1, ge=1, le=64)
    """Threads that one model run may use."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""

    @model_validator(mode="after")
    def _users_exceed_batch(self) -> PipelineSettings:
        if self.pipeline_users < 2 * self.pipeline_batch_events:
            raise ValueError("BEHAVIORGUARD_PIPELINE_USERS must be at least twice BEHAVIORGUARD_PIPELINE_BATCH_EVENTS")
        return self
