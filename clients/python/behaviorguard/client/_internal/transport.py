"""What both kinds of client share: who we are, how a channel is set up, what a call carries."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
from behaviorguard.client._internal.services import CONTRACT
from google.protobuf.descriptor_pb2 import MethodOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

CORRELATION_KEY = "x-correlation-id"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # ten captures of 1.5 MiB, the largest request of the contract in practice

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """A workload's identity and the authority that it trusts, PEM."""

    ca: bytes
    """Certificates of the deployment's authority."""
    certificate: bytes
    """Our own certificate chain."""
    key: bytes
    """Its private key."""

    def __repr__(self) -> str:
        """Without the key."""
        return "Tls(...)"

    @classmethod
    def from_files(cls, ca: Path | str, certificate: Path | str, key: Path | str) -> Self:
        """Read the three files. Raises OSError when one cannot be read."""
        return cls(Path(ca).read_bytes(), Path(certificate).read_bytes(), Path(key).read_bytes())

    @classmethod
    def from_environment(cls) -> Self:
        """Read the files named by BEHAVIORGUARD_TLS_CA, BEHAVIORGUARD_TLS_CERT and BEHAVIORGUARD_TLS_KEY.

        Raises:
            ValueError: a variable is not set; the text names it.
            OSError: a file cannot be read.
        """
        names = ("BEHAVIORGUARD_TLS_CA", "BEHAVIORGUARD_TLS_CERT", "BEHAVIORGUARD_TLS_KEY")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise ValueError(f"set {', '.join(missing)} to the files with authority, certificate and key")
        return cls.from_files(*(os.environ[name] for name in names))

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC takes them."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def channel_options(workload: str) -> list[tuple[str, Any]]:
    """Options of a channel to a workload: its certificate has to name it."""
    return [
        ("grpc.ssl_target_name_override", workload),
        ("grpc.service_config", json.dumps(service_config())),
        ("grpc.enable_retries", 1),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 10_000),
    ]


def service_config() -> dict[str, Any]:
    """gRPC's retry policy, from the contract.

    Calls that it declares free of side effects or idempotent are repeated while the service is away; none are once
    about one call in ten fails.
    """
    names = [
        {"service": service.full_name, "method": method.name}
        for service in CONTRACT
        for method in service.methods
        if method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
    ]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {
        "methodConfig": [{"name": names, "retryPolicy": retry}],
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
    }


def with_correlation(metadata: Sequence[tuple[str, str | bytes]] | None) -> tuple[Metadata, str]:
    """The metadata of a call with its correlation id, which is made here unless the caller chose one."""
    given = tuple(metadata or ())
    for key, value in given:
        if key == CORRELATION_KEY:
            return given, str(value)
    made = str(uuid.uuid4())
    return (*given, (CORRELATION_KEY, made)), made
