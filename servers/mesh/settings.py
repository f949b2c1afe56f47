"""What every server reads from its environment."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 -- pydantic reads the annotation at run time
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_ORGANIZATION_ID = "00000000-0000-4000-8000-000000000001"
"""The organisation of an embedded stack: calls of workloads that act for nobody belong to it."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class MeshSettings(BaseSettings):
    """Settings that all servers share; a service derives from this and adds its own.

    Each is read from an environment variable with the prefix `BEHAVIORGUARD_` (`BEHAVIORGUARD_PORT`).
    """

    model_config = SettingsConfigDict(env_prefix="BEHAVIORGUARD_", frozen=True, extra="ignore")

    service_name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")
    """This workload's name: the last segment of its SPIFFE URI, `spiffe://behaviorguard/<name>`."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    tls_ca: Path
    """PEM file of the authority that issues every workload's certificate."""

    tls_cert: Path
    """PEM file of this workload's certificate."""

    tls_key: Path
    """PEM file of this workload's private key."""

    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """Largest message that is received or sent, bytes."""

    max_concurrent_rpcs: int = Field(default=512, ge=1, le=100_000)
    """Calls in progress at once; more are refused as overload."""

    drain_seconds: float = Field(default=30.0, ge=0, le=600)
    """Time that calls in progress get to finish when the server is told to stop."""

    call_seconds: float = Field(default=10.0, gt=0, le=600)
    """Deadline of an outgoing call that sets none."""

    breaker_seconds: float = Field(default=60.0, gt=0, le=3600)
    """How long a workload that mostly fails is left alone before one call tries it again."""

    audit_target: str = ""
    """Where the audit trail is kept: the quantum service, "host:port". Audited calls then succeed only while it can be
    written. Empty writes their records to the log."""

    health_interval_seconds: float = Field(default=30.0, gt=0, le=600)
    """Time between two checks of the dependencies."""

    otlp_endpoint: str = ""
    """Collector for traces and metrics (`http://host:4317`); empty sends none."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Loopback port that Prometheus scrapes; 0 serves none."""

    log_level: LogLevel = "INFO"
    """Least severe level that is logged."""
