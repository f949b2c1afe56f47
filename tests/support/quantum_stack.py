"""How tests of a running stack reach its quantum services: by REST as the operator, by stub as any workload, in its
stores."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import psycopg
import redis
from grpc import aio
from psycopg.rows import dict_row

from infra import pki
from infra.stack.addresses import addresses
from infra.stack.ports import LOOPBACK
from infra.stack.services import OPERATOR_TOKEN, service_named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from infra.settings import StackSettings
    from tests.support.stack import Installation

WAIT_SECONDS = 30.0


def eventually(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """What `condition` returns once that is true; fails when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
    return found


@dataclass
class QuantumStack:
    """A running stack."""

    installation: Installation

    @property
    def settings(self) -> StackSettings:
        """The stack's settings."""
        return self.installation.settings()

    @contextmanager
    def operator(self) -> Iterator[httpx.Client]:
        """The gateway, as the holder of the operator's token."""
        token = (self.settings.secrets / OPERATOR_TOKEN).read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://{LOOPBACK}:{self.settings.gateway_port}"
        with httpx.Client(base_url=url, headers=headers, timeout=20) as client:
            yield client

    @asynccontextmanager
    async def channel(self, caller: str, service: str = "quantum") -> AsyncIterator[aio.Channel]:
        """A channel to a service, with the certificate of the workload `caller`."""
        files = pki.issue(self.settings.pki, caller)
        credentials = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes()
        )
        target = f"{LOOPBACK}:{service_named(service).port(self.settings)}"
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        async with aio.secure_channel(target, credentials, options) as channel:
            yield channel

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Rows of the quantum database, as the quantum service sees it."""
        with psycopg.connect(addresses(self.settings).quantum["bg_quantum"], row_factory=dict_row) as connection:
            return connection.execute(query.encode(), values).fetchall()  # text of a test, not input

    @contextmanager
    def cache(self) -> Iterator[redis.Redis]:
        """The quantum Redis."""
        with redis.Redis.from_url(addresses(self.settings).quantum_redis, decode_responses=True) as client:
            yield client

    def audit_of(self, correlation_id: str) -> list[dict[str, Any]]:
        """The audit records of a call, once there is one."""
        query = "SELECT * FROM quantum_audit.quantum_operations_log WHERE correlation_id = %s"
        found: list[dict[str, Any]] = eventually(lambda: self.rows(query, correlation_id))
        return found

    def pid(self, part: str) -> int:
        """Process id of a part."""
        found: int = self.installation.status()["parts"][part]["pid"]
        return found
