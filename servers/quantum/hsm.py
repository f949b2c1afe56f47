"""The HSM as the quantum service calls it: one channel, calls that travel together, reasons as `MeshError`."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
from behaviorguard.hsm.v1 import hsm_service_pb2 as pb
from behaviorguard.hsm.v1.hsm_service_pb2_grpc import HsmServiceStub
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

from servers.crypto.channel import TOKEN_KEY, CallerChannel, ChannelOffer
from servers.crypto.errors import CryptoError
from servers.mesh.breaker import CircuitBreaker
from servers.mesh.channels import open_channel
from servers.mesh.errors import ErrorReason, MeshError
from servers.quantum.ports import Destroyed, GeneratedKey, HsmState, Opened, SealedItem, Signed, SignItem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from google.protobuf.message import Message

    from servers.crypto.provider import CryptoProvider
    from servers.mesh.settings import MeshSettings

_log = logging.getLogger(__name__)

HSM_SERVICE: Final = "behaviorguard.hsm.v1.HsmService"
"""Name it in the channel's contract, so that reads are retried."""
BATCH_ITEMS: Final = 64
"""Items of one RPC at most, as the contract says."""

_BATCH_BYTES: Final = 3 * 1024 * 1024
_ITEM_BYTES: Final = 512
_RENEW_SHARE: Final = 0.8
_RETRY_SECONDS: Final = 0.05
_RETRIES: Final = 2
_RETRY_AFTER_SECONDS: Final = 1.0
_STATES: Final = {
    pb.SEAL_STATE_UNINITIALIZED: "uninitialized",
    pb.SEAL_STATE_SEALED: "sealed",
    pb.SEAL_STATE_UNSEALED: "unsealed",
}
_TEXTS: Final = {
    ErrorReason.ERROR_REASON_NOT_FOUND: "the HSM has no such key of this organisation",
    ErrorReason.ERROR_REASON_ENVELOPE_INVALID: "the ciphertext does not open with this key and what it was bound to",
    ErrorReason.ERROR_REASON_REPLICAS_DAMAGED: "no replica of the key is whole in the HSM",
    ErrorReason.ERROR_REASON_UNSUPPORTED_ALGORITHM: "the key's algorithm does not do this",
}
_TRIAL_SECONDS: Final = 2.0
Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


def hsm_channel(settings: MeshSettings, address: str) -> aio.Channel:
    """A channel to the HSM.

    Its breaker tries again every 2 s: nothing works without the HSM, a restart takes about that long, and one trial
    costs nothing.
    """
    breaker = CircuitBreaker("hsm", retry_seconds=_TRIAL_SECONDS)
    return open_channel(settings, address, "hsm", contract=(HSM_SERVICE,), breaker=breaker)


class HsmClient:
    """Calls the HSM; implements `servers.quantum.ports.Hsm`. Belongs to one event loop; close it before its channel.

    Args:
        channel: to the HSM, from `hsm_channel`.
        provider: makes the shares of the HSM channel.
        caller: our workload name, which the HSM channel is bound to.
        batches: RPCs of each kind in flight at most; what comes meanwhile travels together in the next.
        waiting: items that wait at most; more are refused as OVERLOADED.
        seconds: deadline of an RPC that carries several callers' items.
    """

    def __init__(
        self,
        channel: aio.Channel,
        provider: CryptoProvider,
        *,
        caller: str = "quantum",
        batches: int = 4,
        waiting: int = 4096,
        seconds: float = 10.0,
    ) -> None:
        self._stub = HsmServiceStub(channel)
        self._provider = provider
        self._caller = caller
        self._seconds = seconds
        self._channel: CallerChannel | None = None
        self._renew_at = 0.0
        self._opening = asyncio.Lock()
        self._decrypts: _Batches[SealedItem, Opened] = _Batches(self._decrypt, _sealed_size, batches, waiting)
        self._signs: _Batches[SignItem, Signed] = _Batches(self._sign, _message_size, batches, waiting)

    async def close(self) -> None:
        """Give up what is in flight; whoever waits is told that the HSM is away."""
        await self._decrypts.close()
        await self._signs.close()

    async def generate(self, key_id: str, version: int, algorithm: str, organization_id: str) -> GeneratedKey:
        """See `Hsm`."""
        request = pb.GenerateKeyRequest(
            key_id=key_id, version=version, algorithm=algorithm, organization_id=organization_id
        )
        answer: pb.GenerateKeyResponse = await self._call("GenerateKey", self._stub.GenerateKey, request)
        return GeneratedKey(
            answer.public_key,
            answer.key_handle,
            answer.entropy,
            answer.operation_id,
            answer.generation_time.ToDatetime(UTC),
        )

    async def decrypt(self, item: SealedItem) -> Opened:
        """See `Hsm`."""
        return await self._decrypts.submit(item)

    async def decrypt_many(self, items: Sequence[SealedItem]) -> list[Opened | MeshError]:
        """See `Hsm`."""
        return await self._decrypts.submit_all(items)

    async def sign(self, key_handle: str, organization_id: str, message: bytes, context: bytes = b"") -> Signed:
        """See `Hsm`."""
        return await self._signs.submit(SignItem(key_handle, organization_id, message, context))

    async def sign_many(self, items: Sequence[SignItem]) -> list[Signed | MeshError]:
        """See `Hsm`."""
        return await self._signs.submit_all(items)

    async def destroy(self, key_id: str, organization_id: str) -> Destroyed:
        """See `Hsm`."""
        request = pb.DestroyKeyRequest(key_id=key_id, organization_id=organization_id)
        answer: pb.DestroyKeyResponse = await self._call("DestroyKey", self._stub.DestroyKey, request)
        return Destroyed(answer.versions_destroyed, answer.operation_id)

    async def status(self) -> HsmState:
        """See `Hsm`."""
        try:
            answer: pb.GetStatusResponse = await self._stub.GetStatus(pb.GetStatusRequest(), timeout=self._seconds)
        except aio.AioRpcError as error:
            raise mesh_error(error) from error
        sources = [
            f"{source.name}:{'healthy' if source.health == pb.ENTROPY_HEALTH_HEALTHY else 'failed'}"
            for source in answer.entropy_sources
        ]
        return HsmState(
            backend="pkcs11" if answer.backend == pb.BACKEND_PKCS11 else "software",
            backend_notice=answer.backend_notice,
            state=_STATES.get(answer.state, "sealed"),
            entropy=",".join(sources),
            entropy_healthy=all(source.health == pb.ENTROPY_HEALTH_HEALTHY for source in answer.entropy_sources),
            modules_available=sum(module.available for module in answer.modules),
            repaired_replicas=sum(module.repaired_replicas for module in answer.modules),
            key_count=answer.key_count,
            total_operations=answer.total_operations,
            error_rate=answer.error_rate,
            active_connections=answer.active_connections,
        )

    async def _decrypt(self, items: Sequence[SealedItem]) -> list[Opened | MeshError]:
        request = pb.DecryptRequest(
            items=[
                pb.DecryptItem(
                    key_handle=item.key_handle,
                    organization_id=item.organization_id,
                    kem_ciphertext=item.kem_ciphertext,
                    info=item.info,
                    nonce=item.nonce,
                    ciphertext=item.ciphertext,
                    associated_data=item.associated_data,
                )
                for item in items
            ]
        )
        answer: pb.DecryptResponse = await self._call("Decrypt", self._stub.Decrypt, request)
        return [
            Opened(result.plaintext, answer.operation_id)
            if result.WhichOneof("outcome") == "plaintext"
            else _item_error(result.reason)
            for result in answer.results
        ]

    async def _sign(self, items: Sequence[SignItem]) -> list[Signed | MeshError]:
        request = pb.SignRequest(
            items=[
                pb.SignItem(
                    key_handle=item.key_handle,
                    organization_id=item.organization_id,
                    message=item.message,
                    context=item.context,
                )
                for item in items
            ]
        )
        answer: pb.SignResponse = await self._call("Sign", self._stub.Sign, request)
        return [
            Signed(result.signature, answer.operation_id)
            if result.WhichOneof("outcome") == "signature"
            else _item_error(result.reason)
            for result in answer.results
        ]

    async def _call(self, method: str, call: Callable[..., Awaitable[Answer]], request: Message) -> Answer:
        """One RPC with its token. All of ours can be repeated: a key's version is made once, a signature twice does
        no harm.
        """
        body = request.SerializeToString(deterministic=True)
        name = f"/{HSM_SERVICE}/{method}"
        renewed = False
        for attempt in range(_RETRIES + 1):
            channel = await self._open()
            token = channel.token(name, body)
            try:
                return await call(request, metadata=((TOKEN_KEY, token),), timeout=self._seconds)
            except aio.AioRpcError as error:
                refusal = mesh_error(error)
                if refusal.reason == ErrorReason.ERROR_REASON_HSM_TOKEN_INVALID and not renewed:
                    renewed = True
                    self._forget(channel)
                    continue
                if error.code() is not grpc.StatusCode.UNAVAILABLE or _was_answered(error) or attempt == _RETRIES:
                    raise refusal from error
            await asyncio.sleep(_RETRY_SECONDS * 2**attempt)
        raise _away()

    async def _open(self) -> CallerChannel:
        """The HSM channel; a new one when there is none, or the old one nears its end."""
        if self._channel is not None and time.monotonic() < self._renew_at:
            return self._channel
        async with self._opening:
            if self._channel is not None and time.monotonic() < self._renew_at:
                return self._channel
            offer = ChannelOffer(self._provider)
            try:
                answer: pb.OpenChannelResponse = await self._stub.OpenChannel(
                    pb.OpenChannelRequest(key_share=offer.key_share), timeout=self._seconds
                )
                self._channel = offer.accept(self._caller, answer.channel_id, answer.key_share)
            except aio.AioRpcError as error:
                raise mesh_error(error) from error
            except CryptoError:
                raise _away() from None
            life = answer.expires_at.ToDatetime(UTC).timestamp() - time.time()
            self._renew_at = time.monotonic() + max(1.0, life * _RENEW_SHARE)
            return self._channel

    def _forget(self, channel: CallerChannel) -> None:
        if self._channel is channel:
            self._channel = None


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    """One caller's item."""

    item: Item
    size: int
    done: asyncio.Future[Result] = field(repr=False)


class _Batches(Generic[Item, Result]):
    """Puts concurrent callers' items into one RPC: the first goes at once, what comes while the RPCs in flight are at
    their limit goes together in the next.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Coroutine[Any, Any, list[Result | MeshError]]],
        size: Callable[[Item], int],
        in_flight: int,
        waiting: int,
    ) -> None:
        self._send = send
        self._size = size
        self._in_flight = in_flight
        self._most_waiting = waiting
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """The item's result, or its error."""
        return await self._enqueue(item)

    async def submit_all(self, items: Sequence[Item]) -> list[Result | MeshError]:
        """Result or error of each item."""
        results = await asyncio.gather(*(self._enqueue_or_fail(item) for item in items), return_exceptions=True)
        found: list[Result | MeshError] = []
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MeshError):
                raise result
            found.append(result)
        return found

    async def close(self) -> None:
        """Take no more, and end what is in flight."""
        self._closed = True
        for task in tuple(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        while self._waiting:
            _fail(self._waiting.popleft(), _away())

    def _enqueue_or_fail(self, item: Item) -> asyncio.Future[Result]:
        try:
            return self._enqueue(item)
        except MeshError as error:
            failed: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    def _enqueue(self, item: Item) -> asyncio.Future[Result]:
        if self._closed:
            raise _away()
        if len(self._waiting) >= self._most_waiting:
            raise MeshError(
                ErrorReason.ERROR_REASON_OVERLOADED,
                "too many calls wait for the HSM",
                retry_after_s=_RETRY_AFTER_SECONDS,
            )
        waiting = _Waiting(item, self._size(item), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if not self._scheduled:
            self._scheduled = True
            # Whoever else is ready in this step of the loop comes along.
            asyncio.get_running_loop().call_soon(self._flush)
        return waiting.done

    def _flush(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._sending) < self._in_flight:
            batch = self._take()
            if not batch:
                continue
            # In a context of its own: one caller's deadline and correlation id are not the others'.
            work = self._run(batch)
            task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not self._closed:
            self._flush()

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        room = _BATCH_BYTES
        while self._waiting and len(batch) < BATCH_ITEMS:
            first = self._waiting[0]
            if first.done.done():  # whoever asked has given up
                self._waiting.popleft()
                continue
            if batch and first.size > room:
                break
            room -= first.size
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        try:
            results = await self._send([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise _away()  # noqa: TRY301 -- as any other failure of the HSM
        except MeshError as error:
            results = [error] * len(batch)
        except asyncio.CancelledError:
            results = [_away()] * len(batch)
        except Exception:
            _log.exception("a call of the HSM failed")
            results = [MeshError(ErrorReason.ERROR_REASON_INTERNAL, "the HSM could not be called")] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, MeshError):
                _fail(waiting, result)
            elif not waiting.done.done():
                waiting.done.set_result(result)


def mesh_error(error: aio.AioRpcError) -> MeshError:
    """What the HSM refused or failed with; DEPENDENCY_UNAVAILABLE or DEADLINE when it did not answer."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError is a call here
    for packed in () if status is None else status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            if info.reason in ErrorReason.keys():  # noqa: SIM118 -- an enum wrapper, not a dict
                return MeshError(
                    ErrorReason.Value(info.reason), error.details() or "the HSM refuses", retry_after_s=_retry(status)
                )
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return MeshError(ErrorReason.ERROR_REASON_DEADLINE, "the HSM did not answer in time")
    return _away()


def _retry(status: Any) -> float | None:
    for packed in status.details:
        if packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info = error_details_pb2.RetryInfo()
            packed.Unpack(info)
            return info.retry_delay.ToTimedelta().total_seconds()
    return None


def _was_answered(error: aio.AioRpcError) -> bool:
    """Whether the HSM itself said that it is unavailable, rather than the way to it."""
    return rpc_status.from_call(error) is not None  # type: ignore[arg-type]  # an AioRpcError is a call here


def _away() -> MeshError:
    return MeshError(
        ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the HSM is away", retry_after_s=_RETRY_AFTER_SECONDS
    )


def _item_error(reason: str) -> MeshError:
    known = reason in ErrorReason.keys()  # noqa: SIM118 -- an enum wrapper, not a dict
    value = ErrorReason.Value(reason) if known else ErrorReason.ERROR_REASON_INTERNAL
    return MeshError(value, _TEXTS.get(value, "the HSM could not do it"))


def _fail(waiting: _Waiting[Any, Any], error: MeshError) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
        waiting.done.exception()  # whoever waits gets it; with nobody left to wait there is nobody to tell


def _sealed_size(item: SealedItem) -> int:
    return _ITEM_BYTES + len(item.kem_ciphertext) + len(item.info) + len(item.ciphertext) + len(item.associated_data)


def _message_size(item: SignItem) -> int:
    return _ITEM_BYTES + len(item.message)
