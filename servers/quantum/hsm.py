"""The HSM as the quantum service calls it: one channel, calls that travel together, reasons as `MeshError`."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, TypeVar

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
from servers.quantum.hsm_batches import Batches, hsm_away
from servers.quantum.ports import Destroyed, GeneratedKey, HsmState, Opened, SealedItem, Signed, SignItem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from google.protobuf.message import Message

    from servers.crypto.provider import CryptoProvider
    from servers.mesh.settings import MeshSettings

HSM_SERVICE: Final = "behaviorguard.hsm.v1.HsmService"
"""Name it in the channel's contract, so that reads are retried."""
_ITEM_BYTES: Final = 512
_RENEW_SHARE: Final = 0.8
_RETRY_SECONDS: Final = 0.05
_RETRIES: Final = 2
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
        self._decrypts: Batches[SealedItem, Opened] = Batches(self._decrypt, _sealed_size, batches, waiting)
        self._signs: Batches[SignItem, Signed] = Batches(self._sign, _message_size, batches, waiting)

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
        raise hsm_away()

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
                raise hsm_away() from None
            life = answer.expires_at.ToDatetime(UTC).timestamp() - time.time()
            self._renew_at = time.monotonic() + max(1.0, life * _RENEW_SHARE)
            return self._channel

    def _forget(self, channel: CallerChannel) -> None:
        if self._channel is channel:
            self._channel = None


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
    return hsm_away()


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


def _item_error(reason: str) -> MeshError:
    known = reason in ErrorReason.keys()  # noqa: SIM118 -- an enum wrapper, not a dict
    value = ErrorReason.Value(reason) if known else ErrorReason.ERROR_REASON_INTERNAL
    return MeshError(value, _TEXTS.get(value, "the HSM could not do it"))


def _sealed_size(item: SealedItem) -> int:
    return _ITEM_BYTES + len(item.kem_ciphertext) + len(item.info) + len(item.ciphertext) + len(item.associated_data)


def _message_size(item: SignItem) -> int:
    return _ITEM_BYTES + len(item.message)
