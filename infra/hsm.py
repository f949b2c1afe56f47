"""The HSM as its operator calls it: ceremonies, backup, restore; and how the embedded stack opens its own."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc
from behaviorguard.hsm.v1 import hsm_service_pb2 as pb
from behaviorguard.hsm.v1.hsm_service_pb2_grpc import HsmServiceStub
from grpc import aio

from servers.crypto.channel import TOKEN_KEY, CallerChannel, ChannelOffer
from servers.crypto.provider import provider_named
from servers.mesh.errors import MeshError
from servers.quantum.hsm import HSM_SERVICE, mesh_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from google.protobuf.message import Message

    from infra.pki import Identity

OPERATOR: Final = "operator"
PIECE: Final = 64 * 1024
"""Bytes of a backup in one message at most."""
EMBEDDED_SHARES: Final = "hsm-share"
"""File in the stack's secrets with the only share of the embedded HSM."""

_SECONDS: Final = 30.0
_CEREMONY_SECONDS: Final = 600.0
_RETRY_SECONDS: Final = 0.1


class HsmOperator:
    """Calls the HSM as the workload `operator`. Every method raises `MeshError`."""

    def __init__(self, channel: aio.Channel, caller: str = OPERATOR) -> None:
        self._stub = HsmServiceStub(channel)
        self._caller = caller
        self._provider = provider_named("cryptography")
        self._tokens: CallerChannel | None = None

    async def status(self) -> pb.GetStatusResponse:
        """How the HSM is."""
        try:
            answer: pb.GetStatusResponse = await self._stub.GetStatus(pb.GetStatusRequest(), timeout=_SECONDS)
        except aio.AioRpcError as error:
            raise mesh_error(error) from error
        return answer

    async def call(self, method: str, request: Message) -> Any:
        """An RPC with one request and one answer."""
        token = await self._token(method, request.SerializeToString(deterministic=True))
        try:
            return await getattr(self._stub, method)(request, metadata=token, timeout=_CEREMONY_SECONDS)
        except aio.AioRpcError as error:
            raise mesh_error(error) from error

    async def initialize(self, shares: int, threshold: int) -> pb.InitializeResponse:
        """Make the master key; the answer holds its shares, this once."""
        request = pb.InitializeRequest(shares=shares, threshold=threshold)
        answer: pb.InitializeResponse = await self.call("Initialize", request)
        return answer

    async def unseal(self, share: str) -> pb.UnsealResponse:
        """Give one share."""
        answer: pb.UnsealResponse = await self.call("Unseal", pb.UnsealRequest(share=" ".join(share.lower().split())))
        return answer

    async def seal(self) -> None:
        """Forget the master key."""
        await self.call("Seal", pb.SealRequest())

    async def keys(self, *, validate: bool) -> AsyncIterator[pb.StoredKey]:
        """All keys, by handle."""
        page_token = ""
        while True:
            request = pb.ListKeysRequest(validate=validate, page_token=page_token)
            page: pb.ListKeysResponse = await self.call("ListKeys", request)
            for key in page.keys:
                yield key
            page_token = page.next_page_token
            if not page_token:
                return

    async def backup(self) -> AsyncIterator[bytes]:
        """The pieces of a backup."""
        request = pb.ExportBackupRequest()
        token = await self._token("ExportBackup", request.SerializeToString(deterministic=True))
        try:
            async for piece in self._stub.ExportBackup(request, metadata=token, timeout=_CEREMONY_SECONDS):
                yield piece.chunk
        except aio.AioRpcError as error:
            raise mesh_error(error) from error

    async def restore(self, content: Iterable[bytes]) -> pb.RestoreBackupResponse:
        """Give a backup back, in pieces of at most `PIECE` bytes."""
        token = await self._token("RestoreBackup", b"")
        requests = (pb.RestoreBackupRequest(chunk=piece) for piece in content)
        try:
            answer: pb.RestoreBackupResponse = await self._stub.RestoreBackup(
                requests, metadata=token, timeout=_CEREMONY_SECONDS
            )
        except aio.AioRpcError as error:
            raise mesh_error(error) from error
        return answer

    async def _token(self, method: str, body: bytes) -> tuple[tuple[str, str], ...]:
        if self._tokens is None:
            offer = ChannelOffer(self._provider)
            try:
                answer = await self._stub.OpenChannel(
                    pb.OpenChannelRequest(key_share=offer.key_share), timeout=_SECONDS
                )
            except aio.AioRpcError as error:
                raise mesh_error(error) from error
            self._tokens = offer.accept(self._caller, answer.channel_id, answer.key_share)
        return ((TOKEN_KEY, self._tokens.token(f"/{HSM_SERVICE}/{method}", body)),)


@asynccontextmanager
async def hsm_operator(target: str, identity: Identity, caller: str = OPERATOR) -> AsyncIterator[HsmOperator]:
    """A connection to the HSM.

    Args:
        target: "host:port".
        identity: the caller's certificate.
        caller: the workload that the certificate names.
    """
    credentials = grpc.ssl_channel_credentials(
        identity.ca.read_bytes(), identity.key.read_bytes(), identity.cert.read_bytes()
    )
    options = [
        ("grpc.ssl_target_name_override", "hsm"),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with aio.secure_channel(target, credentials, options) as channel:
        yield HsmOperator(channel, caller)


async def ensure_unsealed(operator: HsmOperator, share_file: Path, *, within_seconds: float) -> None:
    """Open an embedded HSM: make its master key where there is none, and unseal it with the only share, which lies in
    a file beside it. That protects the modules' folders where they are copied alone, and nothing else.

    Raises:
        MeshError: the HSM does not answer in time, or the share is not its own.
        FileNotFoundError: it has a master key, and the file with its share is gone.
        FileExistsError: it has no master key, and there is a file with a share; nothing was done.
    """
    end = asyncio.get_running_loop().time() + within_seconds
    while True:
        try:
            state = (await operator.status()).state
            break
        except MeshError:
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(_RETRY_SECONDS)
    if state == pb.SEAL_STATE_UNINITIALIZED:
        if await asyncio.to_thread(share_file.exists):
            raise FileExistsError(share_file)
        made = await operator.initialize(1, 1)
        write_secret(share_file, made.shares[0])
        state = pb.SEAL_STATE_SEALED
    if state == pb.SEAL_STATE_SEALED:
        await operator.unseal(await asyncio.to_thread(share_file.read_text))


def write_secret(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, in one step, durably.

    Raises:
        FileExistsError: there is one already.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.link(new, path)  # fails where there is one: a share is never overwritten
    new.unlink()
