"""Where the stack keeps its data, which ports it uses, and which parts lie elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.stack.errors import StackError

_REPOSITORY = Path(__file__).resolve().parent.parent


def _default_data() -> Path:
    """The checkout's `.data`; for an installed package, the user's data folder."""
    if (_REPOSITORY / "pyproject.toml").exists():
        return _REPOSITORY / ".data"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "behaviorguard"


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "behaviorguard"


def _port(default: int) -> int:
    """A TCP port, the document's by default."""
    port: int = Field(default=default, ge=1, le=65535)
    return port


class StackSettings(BaseSettings):
    """Settings of `behaviorguard up`, each from an environment variable: `BEHAVIORGUARD_<NAME>`.

    An address that is given (`postgres_dsn`, ...) means that the part lies elsewhere: the embedded one is not started.
    """

    model_config = SettingsConfigDict(env_prefix="BEHAVIORGUARD_", frozen=True, extra="ignore")

    data: Path = Field(default_factory=_default_data)
    """Everything that the stack writes: databases, certificates, passwords, logs."""
    cache: Path = Field(default_factory=_default_cache)
    """What can be fetched again: Apache Kafka's libraries. Shared by all checkouts of a user."""
    start_seconds: float = Field(default=90.0, gt=0, le=3600)
    """Time that one part gets to start."""

    broker: Literal["auto", "apache", "embedded"] = "auto"
    """`auto`: Apache Kafka where Java and Maven are there, else the in-memory broker; the start says which."""

    hsm_unseal: Literal["auto", "manual"] = "auto"
    """`auto`: the start makes the embedded HSM's master key and unseals it, with a share that lies beside it. `manual`:
    it starts sealed, and whoever holds its shares unseals it."""

    postgres_dsn: SecretStr | None = None
    """Main database elsewhere: an address whose user may create roles, or whose user the services may share."""
    quantum_dsn: SecretStr | None = None
    """Quantum security database elsewhere."""
    redis_url: SecretStr | None = None
    """Main Redis elsewhere."""
    quantum_redis_url: SecretStr | None = None
    """Quantum Redis elsewhere."""
    kafka_bootstrap: str | None = None
    """Broker elsewhere: `host:port`, several separated by commas."""

    postgres_port: int = _port(5432)
    quantum_postgres_port: int = _port(5433)
    redis_port: int = _port(6379)
    quantum_redis_port: int = _port(6380)
    kafka_port: int = _port(9092)
    kafka_controller_port: int = _port(9093)
    """Apache Kafka's own; not in the document, where Zookeeper had 2181."""
    hsm_port: int = _port(8443)
    quantum_port: int = _port(3005)
    threat_port: int = _port(3002)
    pipeline_port: int = _port(8889)
    gateway_port: int = _port(3000)

    @field_validator("data", "cache")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def pki(self) -> Path:
        """Folder of the development authority and the services' certificates."""
        return self.data / "pki"

    @property
    def secrets(self) -> Path:
        """Folder of the generated passwords and the operator's token."""
        return self.data / "secrets"

    @property
    def run(self) -> Path:
        """Folder of the supervisor's lock and state."""
        return self.data / "run"

    @property
    def logs(self) -> Path:
        """Folder of the logs, one a process."""
        return self.data / "logs"


def load_settings() -> StackSettings:
    """Read the settings. Raises StackError that names the variable when one cannot be used."""
    try:
        return StackSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"BEHAVIORGUARD_{first['loc'][0]}".upper()
        raise StackError(f"{name} cannot be used: {first['msg']}", f"correct it, or unset it: unset {name}") from None
