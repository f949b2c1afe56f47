"""Signatures: checked off the event loop, many at a time; and detached ones, over messages of callers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from behaviorguard.api.v1.errors_pb2 import ErrorReason

from servers.crypto.algorithms import Kind
from servers.crypto.errors import CryptoError
from servers.mesh.errors import MeshError
from servers.quantum.key_ring import no_such_key
from servers.quantum.keys import KeyStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.crypto.algorithms import Algorithm
    from servers.crypto.provider import CryptoProvider, VerifyingKey
    from servers.quantum.key_ring import KeyRing
    from servers.quantum.keys import Key
    from servers.quantum.ports import Hsm
    from servers.quantum.use_limits import UseLimits

MESSAGE_CONTEXT: Final = b"bg-message/v1:"
"""Stands before the caller's context in every detached signature. Tokens are signed under the empty context (RFC 9964)
and checkpoints under one of their own, so that whatever a caller has signed is neither, whichever key was used.
"""
MAX_CONTEXT_BYTES: Final = 255 - len(MESSAGE_CONTEXT)

_RETRY_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    """A signature to be checked."""

    algorithm: Algorithm
    public_key: bytes
    """As the standard encodes it."""
    message: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    context: bytes = b""
    """FIPS 204's context string; empty for Ed25519."""


@dataclass(slots=True)
class _Job:
    """Signatures that hold together or not at all, and who waits for the answer."""

    parts: list[tuple[VerifyingKey, Check]]
    answer: asyncio.Future[bool]


class SignatureVerifier:
    """Checks signatures in a small thread pool; what arrives while the threads are busy goes together afterwards.

    A hop to a thread costs about as much as a signature's check, so under load many share one. Checking releases the
    interpreter's lock. Parsed keys are kept, the last used ones.
    """

    def __init__(
        self, provider: CryptoProvider, *, threads: int = 1, batch: int = 8, waiting: int = 2048, keys: int = 256
    ) -> None:
        """How much at once.

        Args:
            provider: the primitives.
            threads: threads that check.
            batch: most jobs that share a hop to a thread.
            waiting: jobs that may wait; more are refused as overload.
            keys: parsed keys that are kept.
        """
        self._provider = provider
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="signatures")
        self._idle = threads
        self._batch = batch
        self._most_waiting = waiting
        self._most_keys = keys
        self._waiting: deque[_Job] = deque()
        self._keys: OrderedDict[tuple[Algorithm, bytes], VerifyingKey] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._waiting)

    async def all_hold(self, checks: Sequence[Check]) -> bool:
        """Whether every one of the signatures holds; False also where a key is no key.

        Raises:
            MeshError: OVERLOADED.
        """
        try:
            parts = [(self._parsed(check), check) for check in checks]
        except CryptoError:
            return False
        if len(self._waiting) >= self._most_waiting:
            raise MeshError(
                ErrorReason.ERROR_REASON_OVERLOADED,
                "too many signatures are waiting to be checked",
                retry_after_s=_RETRY_SECONDS,
            )
        job = _Job(parts, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._dispatch()
        return await job.answer

    def close(self) -> None:
        """Answer nobody any more; whoever still waits is cancelled."""
        while self._waiting:
            self._waiting.popleft().answer.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _parsed(self, check: Check) -> VerifyingKey:
        name = (check.algorithm, check.public_key)
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = self._provider.verifying_key(*name)
            if len(self._keys) > self._most_keys:
                self._keys.popitem(last=False)
        else:
            self._keys.move_to_end(name)
        return key

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            # Whoever gave up meanwhile costs nothing any more.
            jobs = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            jobs = [job for job in jobs if not job.answer.done()]
            if not jobs:
                continue
            self._idle -= 1
            work = asyncio.get_running_loop().run_in_executor(self._pool, _check_all, [job.parts for job in jobs])
            work.add_done_callback(partial(self._finish, jobs))

    def _finish(self, jobs: list[_Job], done: asyncio.Future[list[bool]]) -> None:
        self._idle += 1
        for place, job in enumerate(jobs):
            if job.answer.done():
                continue
            if done.cancelled():
                job.answer.cancel()
            elif (error := done.exception()) is not None:
                job.answer.set_exception(error)
            else:
                job.answer.set_result(done.result()[place])
        self._dispatch()


@dataclass(frozen=True, slots=True)
class Detached:
    """A signature apart from its message."""

    algorithm: Algorithm
    key_id: str
    key_version: int
    signature: bytes = field(repr=False)
    signed_at: datetime
    operation_id: str
    """The HSM's own number for the operation."""


class DetachedSignatures:
    """Signs and checks messages with an organisation's keys, never with the platform's."""

    def __init__(self, keys: KeyRing, limits: UseLimits, hsm: Hsm, verifier: SignatureVerifier) -> None:
        self._keys = keys
        self._limits = limits
        self._hsm = hsm
        self._verifier = verifier

    async def sign(self, organization_id: str, key_id: str, message: bytes, context: bytes) -> Detached:
        """Sign a message of a caller.

        Args:
            organization_id: UUID of the organisation that the call may act for.
            key_id: UUID of the key, lower case.
            message: at most 1 MiB.
            context: the caller's context, at most `MAX_CONTEXT_BYTES`.

        Raises:
            MeshError: NOT_FOUND, also for the platform's own keys; UNSUPPORTED_ALGORITHM, KEY_REVOKED, KEY_EXPIRED,
                KEY_USES_EXHAUSTED; and as `Hsm` says.
        """
        key = (await self._keys.signing_key(organization_id, key_id, datetime.now(UTC))).key
        await self._limits.take(key)
        signed = await self._hsm.sign(key.newest.key_handle, organization_id, message, message_context(context))
        return Detached(
            key.algorithm, key.key_id, key.newest.number, signed.signature, datetime.now(UTC), signed.operation_id
        )

    async def holds(
        self, organization_id: str, key_id: str, version: int, message: bytes, signature: bytes, context: bytes
    ) -> bool:
        """Whether a signature is the key's over message and context; False for a revoked key.

        Args:
            organization_id: UUID of the organisation that the call may act for.
            key_id: UUID of the key, lower case.
            version: which version of the key; 0: the newest.
            message: the message, at most 1 MiB.
            signature: any bytes.
            context: as it was given when signing.

        Raises:
            MeshError: NOT_FOUND (key or version), UNSUPPORTED_ALGORITHM, OVERLOADED.
        """
        key = (await self._keys.get(organization_id, key_id)).key
        _require_signing(key)
        used = key.version(version) if version else key.newest
        if used is None:
            raise MeshError(ErrorReason.ERROR_REASON_NOT_FOUND, "the key has no such version")
        check = Check(key.algorithm, used.public_key, message, signature, message_context(context))
        return await self._verifier.all_hold([check]) and key.status is not KeyStatus.REVOKED


def message_context(context: bytes) -> bytes:
    """FIPS 204's context string for a caller's context.

    Raises:
        ValueError: it is longer than `MAX_CONTEXT_BYTES`.
    """
    if len(context) > MAX_CONTEXT_BYTES:
        raise ValueError(f"a context has at most {MAX_CONTEXT_BYTES} bytes")
    return MESSAGE_CONTEXT + context


def _require_signing(key: Key) -> None:
    if key.platform:
        # Also where an administrator of the platform's organisation asks: its keys sign tokens and checkpoints alone.
        raise no_such_key()
    if key.algorithm.kind is not Kind.SIGNATURE:
        raise MeshError(ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM, f"{key.algorithm} does not sign")


def _check_all(jobs: list[list[tuple[VerifyingKey, Check]]]) -> list[bool]:
    return [all(key.verify(check.message, check.signature, check.context) for key, check in parts) for parts in jobs]
