"""What the gateway reads from its environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from servers.mesh.settings import DEFAULT_ORGANIZATION_ID, MeshSettings

_REPOSITORY: Final = Path(__file__).resolve().parents[2]

# A list in the environment is written with commas: BEHAVIORGUARD_ALLOWED_HOSTS=guard.example,localhost
Names = Annotated[tuple[str, ...], NoDecode]


@dataclass(frozen=True, slots=True)
class UpstreamWorkload:
    """A workload that the gateway calls."""

    name: str
    """Its name, as its certificate says it."""
    target: str
    """Where it listens, "host:port"."""
    services: tuple[str, ...]
    """Full names of the contract's services that it offers to people."""


class GatewaySettings(MeshSettings):
    """Settings of the gateway, from `BEHAVIORGUARD_<NAME>`, beside those that all servers share."""

    service_name: str = "gateway"
    port: int = Field(default=3000, ge=0, le=65535)

    max_message_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """See `MeshSettings`; 64 envelopes of 80 KiB must fit."""

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """The main Redis: sessions and request budgets. May hold a password, hence secret."""

    threat_target: str = "127.0.0.1:3002"
    """Where the threat service listens, "host:port"; empty leaves its routes out."""

    quantum_target: str = "127.0.0.1:3005"
    """Where the quantum service listens, "host:port"; empty leaves its routes out."""

    organization_id: str = DEFAULT_ORGANIZATION_ID
    """Organisation that trial sessions and the operator belong to, until sign-in says it."""

    operator_token_file: Path | None = None
    """File that holds the operator's bearer token and nothing else: at least 32 characters.

    `behaviorguard up` writes a random one into the data folder, mode 0600. Only its SHA-256 is kept in memory. Unset:
    nobody is an operator.
    """

    allowed_hosts: Names = ("localhost", "127.0.0.1", "[::1]")
    """Host names, without port, under which browsers may address the gateway; others are refused, so that a name that a
    stranger points at this address gets nowhere."""

    allowed_origins: Names = ()
    """Further origins ("https://guard.example") whose pages may send cookies here; the gateway's own always may."""

    trusted_proxies: Names = ()
    """Addresses or networks ("10.0.0.0/8") whose X-Forwarded-For and X-Forwarded-Proto are believed."""

    secure_cookies: bool = False
    """Mark cookies Secure even where the connection does not look like TLS (a proxy in front that says nothing)."""

    http_tls_cert: Path | None = None
    """PEM certificate chain to serve HTTPS directly; unset serves plain HTTP for Envoy or a local browser."""

    http_tls_key: Path | None = None
    """PEM private key for `http_tls_cert`."""

    web_root: Path = _REPOSITORY / "clients" / "web" / "dist"
    """Folder of the built web pages, served at /."""

    descriptors_file: Path = _REPOSITORY / "generated" / "descriptors.binpb"
    """The contract as a `FileDescriptorSet`: what routes are derived from."""

    openapi_file: Path = _REPOSITORY / "generated" / "openapi.json"
    """The OpenAPI document served at /openapi.json."""

    max_body_bytes: int = Field(default=256 * 1024, ge=1024, le=32 * 1024 * 1024)
    """Largest request body, bytes; analysts and administrators may send what the contract allows."""

    max_large_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=32 * 1024 * 1024)
    """Largest request body of analysts and administrators, bytes, where the contract allows as much (envelopes to be
    moved, messages to be signed)."""

    max_large_bodies: int = Field(default=8, ge=1, le=1000)
    """Bodies over `max_body_bytes` in memory at once; more are refused with 503 and Retry-After."""

    body_seconds: float = Field(default=10.0, gt=0, le=300)
    """Time a client gets to send a request's head, its body, or a socket's first frame."""

    max_frame_bytes: int = Field(default=64 * 1024, ge=1024, le=4 * 1024 * 1024)
    """Largest WebSocket message from a client, bytes."""

    max_requests: int = Field(default=512, ge=1, le=100_000)
    """HTTP requests in progress at once; more are refused with 503 and Retry-After."""

    max_sockets: int = Field(default=2000, ge=1, le=100_000)
    """Open WebSockets at once."""

    sockets_per_session: int = Field(default=8, ge=1, le=1000)
    """Open WebSockets of one session, operator or anonymous address at once."""

    socket_idle_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """A socket whose client should send and does not is closed after this."""

    socket_ping_seconds: float = Field(default=20.0, gt=0, le=600)
    """Pings are sent this often; a client that does not answer within the same time is gone."""

    session_check_seconds: float = Field(default=30.0, gt=0, le=600)
    """How often an open socket checks that its session still exists."""

    global_budget_factor: int = Field(default=100, ge=1, le=1_000_000)
    """All people together may use this many times one person's request budget."""

    @field_validator("allowed_hosts", "allowed_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def upstreams(self) -> tuple[UpstreamWorkload, ...]:
        """The workloads behind the gateway that run."""
        known = (
            UpstreamWorkload("threat", self.threat_target, ("behaviorguard.threat.v1.ThreatService",)),
            UpstreamWorkload(
                "quantum",
                self.quantum_target,
                (
                    "behaviorguard.quantum.v1.KeyService",
                    "behaviorguard.quantum.v1.TemplateService",
                    "behaviorguard.quantum.v1.TokenService",
                    "behaviorguard.quantum.v1.AuditService",
                ),
            ),
        )
        return tuple(upstream for upstream in known if upstream.target)
