"""Redis (port 6380): the document's quantum structures, a view of what PostgreSQL and the HSM know.

    quantum:key:{keyId}              hash, 1 hour: a key's public half, algorithm, level, end, organisation, type
    quantum:ops:kem:count            operations with ML-KEM and X-Wing; each count lives 5 minutes
    quantum:ops:sig:count            operations with ML-DSA; likewise
    quantum:ops:latency              list, newest first, 1,000 entries: {"operation": ..., "latency_ms": ...}
    hsm:connection:{connectionId}    "active", 30 minutes
    hsm:stats                        hash: active_connections, total_operations, error_rate

Nothing waits for Redis and nothing here is ever read back to answer or to authorise: what cannot be written is dropped,
and what somebody else writes there changes no answer.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from servers.crypto.algorithms import Kind

if TYPE_CHECKING:
    from servers.crypto.algorithms import Algorithm
    from servers.quantum.keys import Key
    from servers.quantum.ports import HsmState

_log = logging.getLogger(__name__)

KEY_PREFIX: Final = "quantum:key:"
COUNTS: Final = {Kind.KEM: "quantum:ops:kem:count", Kind.SIGNATURE: "quantum:ops:sig:count"}
LATENCY: Final = "quantum:ops:latency"
CONNECTION_PREFIX: Final = "hsm:connection:"
STATS: Final = "hsm:stats"
KEY_SECONDS: Final = 3600
COUNT_SECONDS: Final = 300
CONNECTION_SECONDS: Final = 1800
LATENCIES_KEPT: Final = 1000

_MOST_KEYS_WAITING: Final = 10_000
_CHUNK: Final = 100
_EVERY_SECONDS: Final = 0.1
_TIMEOUT: Final = 1.0
_PAUSE: Final = 0.5
_ERRORS: Final = (RedisError, OSError, TimeoutError)


class KeyCache:
    """Keeps the view; everything but `probe`, `run` and `close` returns at once."""

    def __init__(self, url: str) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, health_check_interval=0, max_connections=4
        )
        self._keys: OrderedDict[str, Key | None] = OrderedDict()
        self._counts: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self._latencies: deque[bytes] = deque(maxlen=LATENCIES_KEPT)
        self._hsm: tuple[str, HsmState] | None = None
        self._ready = asyncio.Event()
        self._away = False

    @property
    def waiting(self) -> int:
        """Keys that wait to be written."""
        return len(self._keys)

    def put(self, key: Key) -> None:
        """A key that may be used; replaces what is there."""
        self._change(key.key_id, key)

    def remove(self, key_id: str) -> None:
        """A key that was revoked."""
        self._change(key_id, None)

    def count(self, operation: str, algorithm: Algorithm, seconds: float, times: int = 1) -> None:
        """Operations that were done ("keygen", "encrypt", ...), and how long they took together."""
        self._counts[algorithm.kind] += times
        self._latencies.append(
            orjson.dumps({"operation": operation, "latency_ms": round(seconds * 1000 / max(1, times), 3)})
        )
        self._ready.set()

    def hsm_seen(self, connection_id: str, state: HsmState) -> None:
        """How the HSM is, over the connection of this name."""
        self._hsm = (connection_id, state)
        self._ready.set()

    async def probe(self) -> dict[str, str | float]:
        """Ask Redis something cheap; returns its memory."""
        info = await self._redis.info("memory")
        return {"memory_usage": str(info["used_memory_human"])}

    async def run(self) -> None:
        """Write what waits, for as long as the service runs."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            try:
                await self._write()
                self._away = False
            except _ERRORS as error:
                if not self._away:
                    _log.warning("Redis is away: keys are not cached there", extra={"cause": type(error).__name__})
                self._away = True
                self._ready.set()
                await asyncio.sleep(_PAUSE)
            # Operations come by the thousand: they are counted together.
            await asyncio.sleep(_EVERY_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        with suppress(*_ERRORS):
            await self._redis.aclose()

    def _change(self, key_id: str, key: Key | None) -> None:
        self._keys[key_id] = key
        self._keys.move_to_end(key_id)
        while len(self._keys) > _MOST_KEYS_WAITING:
            self._keys.popitem(last=False)
        self._ready.set()

    async def _write(self) -> None:
        """Write a piece; what was counted and could not be written is lost, keys are tried again."""
        counts, self._counts = self._counts, dict.fromkeys(Kind, 0)
        latencies, self._latencies = list(self._latencies), deque(maxlen=LATENCIES_KEPT)
        hsm, self._hsm = self._hsm, None
        batch = list(self._keys.items())[:_CHUNK]
        async with self._redis.pipeline(transaction=False) as pipe:
            _add_counts(pipe, counts)
            if latencies:
                pipe.lpush(LATENCY, *latencies)
                pipe.ltrim(LATENCY, 0, LATENCIES_KEPT - 1)
            if hsm is not None:
                _add_hsm(pipe, *hsm)
            for key_id, key in batch:
                _add_key(pipe, key_id, key)
            # What somebody else left under a name of ours, of another type, keeps nothing else from being written.
            await pipe.execute(raise_on_error=False)
        for key_id, key in batch:
            if key_id in self._keys and self._keys[key_id] is key:
                del self._keys[key_id]
        if self._keys:
            self._ready.set()


def _add_counts(pipe: Any, counts: dict[Kind, int]) -> None:
    for kind, times in counts.items():
        if times:
            pipe.incrby(COUNTS[kind], times)
            # From the first of them on: the count starts anew every 5 minutes.
            pipe.expire(COUNTS[kind], COUNT_SECONDS, nx=True)


def _add_hsm(pipe: Any, connection_id: str, state: HsmState) -> None:
    pipe.set(CONNECTION_PREFIX + connection_id, "active", ex=CONNECTION_SECONDS)
    pipe.hset(
        STATS,
        mapping={
            "active_connections": str(state.active_connections),
            "total_operations": str(state.total_operations),
            "error_rate": f"{state.error_rate:.3f}",
        },
    )


def _add_key(pipe: Any, key_id: str, key: Key | None) -> None:
    name = KEY_PREFIX + key_id
    pipe.delete(name)
    if key is None:
        return
    pipe.hset(
        name,
        mapping={
            "keyId": key.key_id,
            "publicKey": base64.b64encode(key.newest.public_key).decode(),
            "algorithm": key.algorithm.value,
            "securityLevel": key.security_level,
            "expiresAt": str(int(key.expires_at.timestamp() * 1000)),
            "organizationId": key.organization_id,
            "keyType": key.key_type.value,
        },
    )
    pipe.expire(name, KEY_SECONDS)
