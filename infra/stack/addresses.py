"""Where the stores and the broker are, by the settings alone: the same answer whether or not they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.postgres.roles import ROLES
from infra.stack.ports import LOOPBACK
from infra.stack.secrets import password

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.settings import StackSettings

DATABASE = "behaviorguard"
"""Name of both databases, and of their owner."""


@dataclass(frozen=True)
class Addresses:
    """Where the stores and the broker are. The databases' addresses are by role, passwords included."""

    postgres: Mapping[str, str]
    quantum: Mapping[str, str]
    redis: str
    quantum_redis: str
    kafka: str


def addresses(settings: StackSettings) -> Addresses:
    """Return the addresses: the external one where the settings name it, else the embedded server's.

    An external database is used as whoever its address names, by every service: its rights are its operator's affair.
    """

    def databases(kind: str, external: str | None, port: int) -> dict[str, str]:
        roles = ROLES[kind]
        if external is not None:
            return dict.fromkeys(roles, external)
        return {
            role: f"postgresql://{role}:{password(settings.secrets, role)}@{LOOPBACK}:{port}/{DATABASE}"
            for role in roles
        }

    def cache(name: str, external: str | None, port: int) -> str:
        return external or f"redis://:{password(settings.secrets, name)}@{LOOPBACK}:{port}/0"

    secret = {
        name: value.get_secret_value() if value is not None else None
        for name, value in (
            ("postgres", settings.postgres_dsn),
            ("quantum", settings.quantum_dsn),
            ("redis", settings.redis_url),
            ("quantum_redis", settings.quantum_redis_url),
        )
    }
    return Addresses(
        postgres=databases("main", secret["postgres"], settings.postgres_port),
        quantum=databases("quantum", secret["quantum"], settings.quantum_postgres_port),
        redis=cache("redis-main", secret["redis"], settings.redis_port),
        quantum_redis=cache("redis-quantum", secret["quantum_redis"], settings.quantum_redis_port),
        kafka=settings.kafka_bootstrap or f"{LOOPBACK}:{settings.kafka_port}",
    )
