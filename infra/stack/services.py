"""The table of our services: what each runs, needs and listens on. A service that is not written yet is not in it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from infra import pki
from infra.stack.hsm import module_folders
from infra.stack.ports import LOOPBACK
from infra.stack.process import Command
from infra.stack.secrets import password

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.settings import StackSettings
    from infra.stack.addresses import Addresses

OPERATOR_TOKEN = "operator-token"  # noqa: S105 - the name of the file, not the token
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "SSL_CERT_FILE")
"""What a service inherits beside BEHAVIORGUARD_* and OTEL_*: nothing that it has no use for."""


@dataclass(frozen=True)
class Service:
    """One service of ours.

    `needs` names the parts that must be ready before it starts, `uses` further ones that it works with later: it stops
    before them too. `health` is how it is asked: by grpc.health.v1 over mTLS, or by HTTP on `health_path`. `role` is
    its database role, `stores` which database and Redis it gets, `audited` whether its audited calls go to the audit
    trail, `environment` what it is told beside the addresses.
    """

    name: str
    module: str
    port_setting: str
    needs: tuple[str, ...]
    health: Literal["grpc", "http"]
    health_path: str = "/healthz"
    uses: tuple[str, ...] = ()
    role: str | None = None
    stores: Literal["main", "quantum"] = "main"
    audited: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def port(self, settings: StackSettings) -> int:
        """Return the port that it listens on."""
        return int(getattr(settings, self.port_setting))


SERVICES = (
    Service("hsm", "servers.hsm", "hsm_port", needs=("pki",), health="grpc"),
    Service(
        "quantum",
        "servers.quantum",
        "quantum_port",
        needs=("pki", "postgres-quantum", "redis-quantum", "hsm"),
        health="grpc",
        role="bg_quantum",
        stores="quantum",
    ),
    Service(
        "threat",
        "servers.threat",
        "threat_port",
        needs=("pki", "postgres-main", "redis-main", "kafka"),
        health="grpc",
        uses=("quantum",),  # its audit records go there
        role="bg_threat",
        audited=True,
        environment={"BEHAVIORGUARD_TRIALS_ENABLED": "true"},  # an embedded stack is there to be tried
    ),
    Service("pipeline", "pipeline", "pipeline_port", needs=("pki", "kafka"), health="http", health_path="/health"),
    Service(
        "gateway",
        "servers.gateway",
        "gateway_port",
        needs=("pki", "redis-main", "threat", "quantum"),
        health="http",
        audited=True,
    ),
)
WORKLOADS = ("hsm", "quantum", "threat", "pipeline", "gateway", "operator", "monitoring")
"""Who gets a certificate: the services, the operator's command line, and the one that asks for health."""


def service_named(name: str) -> Service:
    """Return the service. Raises KeyError when there is none of that name."""
    return {service.name: service for service in SERVICES}[name]


def service_command(service: Service, settings: StackSettings, addresses: Addresses) -> Command:
    """Return what starts a service: its module, with its certificate, addresses and port in the environment."""
    password(settings.secrets, OPERATOR_TOKEN)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key in PASSED_ON or key.startswith(("BEHAVIORGUARD_", "OTEL_", "XDG_"))
    }
    # What the caller set stays, except for what only the stack can know.
    modules = ",".join(str(folder) for folder in module_folders(settings))
    environment = {**service.environment, "BEHAVIORGUARD_HSM_MODULES": modules, **environment}
    for secret in ("POSTGRES_DSN", "QUANTUM_DSN", "REDIS_URL", "QUANTUM_REDIS_URL"):
        environment.pop(f"BEHAVIORGUARD_{secret}", None)
    environment |= pki.identity(settings.pki, service.name).environment()
    environment |= {
        "BEHAVIORGUARD_SERVICE_NAME": service.name,
        "BEHAVIORGUARD_PORT": str(service.port(settings)),
        "BEHAVIORGUARD_KAFKA_BOOTSTRAP": addresses.kafka,
        "BEHAVIORGUARD_THREAT_TARGET": f"{LOOPBACK}:{settings.threat_port}",
        "BEHAVIORGUARD_QUANTUM_TARGET": f"{LOOPBACK}:{settings.quantum_port}",
        "BEHAVIORGUARD_QUANTUM_ADDRESS": f"{LOOPBACK}:{settings.quantum_port}",
        "BEHAVIORGUARD_HSM_ADDRESS": f"{LOOPBACK}:{settings.hsm_port}",
        "BEHAVIORGUARD_HSM_SHARES_AT_HAND": str(settings.hsm_unseal == "auto").lower(),
        "BEHAVIORGUARD_OPERATOR_TOKEN_FILE": str(settings.secrets / OPERATOR_TOKEN),
        "PYTHONUNBUFFERED": "1",
    }
    if service.role is not None:
        databases = addresses.postgres if service.stores == "main" else addresses.quantum
        environment["BEHAVIORGUARD_POSTGRES_DSN"] = databases[service.role]
    if f"redis-{service.stores}" in service.needs:
        environment["BEHAVIORGUARD_REDIS_URL"] = (
            addresses.redis if service.stores == "main" else addresses.quantum_redis
        )
    if service.audited:
        environment["BEHAVIORGUARD_AUDIT_TARGET"] = f"{LOOPBACK}:{settings.quantum_port}"
    return Command(service.name, [sys.executable, "-m", service.module], environment, grace_seconds=30)
