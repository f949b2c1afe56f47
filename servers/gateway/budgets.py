"""Request budgets in Redis, shared by all gateways: `ratelimit:{userId}:{endpoint}`, `ratelimit:global:{endpoint}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from behaviorguard.api.v1 import policy_pb2
from redis.exceptions import RedisError

from servers.gateway.sessions import store_is_away
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from servers.gateway.contract import Operation

WINDOW_SECONDS: Final = 60
# Calls a minute, as policy.proto says beside each class.
_BUDGETS: Final = {
    policy_pb2.RATE_CLASS_UNSPECIFIED: 600,
    policy_pb2.RATE_CLASS_READ: 600,
    policy_pb2.RATE_CLASS_STREAM: 6000,
    policy_pb2.RATE_CLASS_WRITE: 120,
    policy_pb2.RATE_CLASS_CRITICAL: 30,
    policy_pb2.RATE_CLASS_SERVICE: 600_000,
}
_OPEN_WHEN_UNCOUNTED: Final = (
    policy_pb2.RATE_CLASS_UNSPECIFIED,
    policy_pb2.RATE_CLASS_READ,
    policy_pb2.RATE_CLASS_STREAM,
)


class Budgets:
    """Counts calls in windows of a minute.

    While Redis is away, reads and events pass uncounted (each service has its own limiter behind this one); writes and
    critical calls are refused.
    """

    def __init__(self, redis: Redis, global_factor: int) -> None:
        self._redis = redis
        self._global_factor = global_factor

    async def spend(self, subject: str, operation: Operation, calls: int = 1) -> None:
        """Counts calls against a subject's budget and everybody's.

        Args:
            subject: a person's id, or what stands for somebody who is not signed in.
            operation: what is called.
            calls: how many calls.

        Raises:
            MeshError: RATE_LIMITED with the time to wait; DEPENDENCY_UNAVAILABLE when a write cannot be counted.
        """
        own, everybody = f"ratelimit:{subject}:{operation.path}", f"ratelimit:global:{operation.path}"
        budget = _BUDGETS[operation.policy.rate_class]
        try:
            mine, total = await self._count(own, everybody, calls)
            over = own if mine > budget else everybody if total > budget * self._global_factor else None
            if over is None:
                return
            seconds = await self._seconds_left(over)
        except RedisError as error:
            if operation.policy.rate_class in _OPEN_WHEN_UNCOUNTED:
                return
            raise store_is_away() from error
        who = "you" if over == own else "everybody together"
        raise MeshError(
            ErrorReason.ERROR_REASON_RATE_LIMITED,
            f"Too many requests: this allows {who} {budget if over == own else budget * self._global_factor} a minute.",
            retry_after_s=seconds,
        )

    async def _count(self, own: str, everybody: str, calls: int) -> tuple[int, int]:
        """Counts; the first count of a window gives it its end."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.incrby(own, calls)
            pipe.incrby(everybody, calls)
            mine, total = await pipe.execute()
        for key, count in ((own, mine), (everybody, total)):
            if count == calls:
                await self._redis.expire(key, WINDOW_SECONDS, nx=True)
        return mine, total

    async def _seconds_left(self, key: str) -> int:
        """When a window ends, at least 1 s. One whose opener died before it gave it an end gets one here."""
        await self._redis.expire(key, WINDOW_SECONDS, nx=True)
        return max(1, int(await self._redis.ttl(key)))
