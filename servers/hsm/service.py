"""The gRPC face of the HSM: one short method for each RPC."""
# ruff: noqa: N802 -- RPC names come from the contract

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from behaviorguard.hsm.v1 import hsm_service_pb2 as pb
from behaviorguard.hsm.v1.hsm_service_pb2_grpc import HsmServiceServicer

from servers.crypto.channel import TOKEN_KEY
from servers.hsm import messages
from servers.hsm.channels import ReplayError
from servers.hsm.errors import telling
from servers.mesh.context import call_context
from servers.mesh.errors import ErrorReason, MeshError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from concurrent.futures import Executor

    from google.protobuf.message import Message
    from grpc import aio

    from servers.hsm.ceremony import Ceremony
    from servers.hsm.channels import Channels
    from servers.hsm.engine import Engine
    from servers.hsm.entropy import EntropyPool
    from servers.hsm.journal import Journal, Value
    from servers.hsm.keystore import KeyStore
    from servers.hsm.modules import Modules
    from servers.hsm.rates import OperationRates
    from servers.hsm.settings import HsmSettings
    from servers.hsm.vaults import Vault

T = TypeVar("T")
_SMALL: Final = 65_536
"""Requests up to this are hashed where they are; larger ones in a thread."""
_PAGE: Final = 100
_SPOOL: Final = 8 * 1024 * 1024
_HANDLE: Final = re.compile(r"[0-9a-f-]{36}:[1-9][0-9]{0,6}|")


@dataclass(frozen=True, slots=True)
class HsmParts:
    """What the service is put together from."""

    settings: HsmSettings
    vault: Vault
    modules: Modules
    journal: Journal
    entropy: EntropyPool
    store: KeyStore
    engine: Engine
    ceremony: Ceremony
    channels: Channels
    rates: OperationRates
    writers: Executor
    """Threads that wait for disks."""
    workers: Executor
    """Threads that decrypt and sign."""
    ceremonies: Executor
    """Threads of ceremonies: sealing must not wait for keys that are being made."""


class HsmService(HsmServiceServicer):
    """See the contract for what each RPC does."""

    def __init__(self, parts: HsmParts) -> None:
        self._parts = parts
        boot = os.urandom(4).hex()
        self._operations = (f"{boot}-{number:08d}" for number in itertools.count(1))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """See the contract."""
        del request, context
        return messages.status(self._parts)

    async def OpenChannel(self, request: pb.OpenChannelRequest, context: Any) -> pb.OpenChannelResponse:
        """See the contract."""
        del context
        with telling():
            channel_id, share, seconds = self._parts.channels.open(call_context().caller, request.key_share)
        answer = pb.OpenChannelResponse(channel_id=channel_id, key_share=share)
        answer.expires_at.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
        return answer

    async def GenerateKey(
        self, request: pb.GenerateKeyRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.GenerateKeyResponse:
        """See the contract."""
        await self._prove(request, context)
        order, said = messages.order(request), self._said()
        note_key(request.key_id, request.organization_id)
        made = await self._counted(1, partial(self._parts.engine.generate, order, said), self._parts.writers)
        return messages.made(request.key_id, made, str(said["operation_id"]))

    async def Decrypt(self, request: pb.DecryptRequest, context: aio.ServicerContext[Any, Any]) -> pb.DecryptResponse:
        """See the contract."""
        await self._prove(request, context)
        operation = str(self._said()["operation_id"])

        def work() -> tuple[pb.DecryptResponse, int]:
            return messages.decrypted(self._parts.engine.decrypt(messages.boxes(request)), operation)

        return await self._batch(len(request.items), work)

    async def Sign(self, request: pb.SignRequest, context: aio.ServicerContext[Any, Any]) -> pb.SignResponse:
        """See the contract."""
        await self._prove(request, context)
        operation = str(self._said()["operation_id"])

        def work() -> tuple[pb.SignResponse, int]:
            return messages.signed(self._parts.engine.sign(messages.papers(request)), operation)

        return await self._batch(len(request.items), work)

    async def DestroyKey(
        self, request: pb.DestroyKeyRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.DestroyKeyResponse:
        """See the contract."""
        await self._prove(request, context)
        said = self._said()
        note_key(request.key_id, request.organization_id)
        destroy = partial(self._parts.engine.destroy, request.key_id.lower(), request.organization_id.lower(), said)
        versions = await self._counted(1, destroy, self._parts.writers)
        return pb.DestroyKeyResponse(versions_destroyed=versions, operation_id=str(said["operation_id"]))

    async def ListKeys(
        self, request: pb.ListKeysRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.ListKeysResponse:
        """See the contract."""
        await self._prove(request, context)
        if not _HANDLE.fullmatch(request.page_token):
            raise MeshError(ErrorReason.ERROR_REASON_INVALID_TOKEN, "the page token is not one of ours")
        size = request.page_size or _PAGE
        listed = partial(self._parts.engine.listed, request.page_token, size, validate=request.validate)
        return messages.listed(await self._do(listed, self._parts.writers), size)

    async def Initialize(
        self, request: pb.InitializeRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.InitializeResponse:
        """See the contract."""
        await self._prove(request, context)
        ceremony = self._parts.ceremony
        made = await self._ceremony(partial(ceremony.initialize, request.shares, request.threshold, self._said()))
        return pb.InitializeResponse(shares=made.shares, master_key_fingerprint=made.fingerprint)

    async def Unseal(self, request: pb.UnsealRequest, context: aio.ServicerContext[Any, Any]) -> pb.UnsealResponse:
        """See the contract."""
        await self._prove(request, context)
        progress = await self._ceremony(partial(self._parts.ceremony.unseal, request.share, self._said()))
        return pb.UnsealResponse(
            state=messages.STATES[progress.state], shares_given=progress.given, shares_needed=progress.needed
        )

    async def Seal(self, request: pb.SealRequest, context: aio.ServicerContext[Any, Any]) -> pb.SealResponse:
        """See the contract."""
        await self._prove(request, context)
        await self._ceremony(partial(self._parts.ceremony.seal, self._said()))
        return pb.SealResponse(state=messages.STATES[self._parts.ceremony.state])

    async def ExportBackup(
        self, request: pb.ExportBackupRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ExportBackupResponse]:
        """See the contract."""
        await self._prove(request, context)
        pieces = await self._ceremony(partial(self._parts.ceremony.export, self._said()))
        while (piece := await self._ceremony(partial(next, pieces, None))) is not None:
            yield pb.ExportBackupResponse(chunk=piece)

    async def RestoreBackup(
        self, request_iterator: AsyncIterator[pb.RestoreBackupRequest], context: aio.ServicerContext[Any, Any]
    ) -> pb.RestoreBackupResponse:
        """See the contract."""
        await self._prove(None, context)
        # It is of no use without the shares, and may be larger than memory should hold twice.
        with tempfile.SpooledTemporaryFile(_SPOOL) as spool:
            async for request in request_iterator:
                if spool.tell() + len(request.chunk) > self._parts.settings.backup_bytes:
                    raise MeshError(
                        ErrorReason.ERROR_REASON_TOO_LARGE, "the backup is larger than BEHAVIORGUARD_BACKUP_BYTES"
                    )
                spool.write(request.chunk)
            spool.seek(0)
            pieces: Iterator[bytes] = iter(partial(spool.read, _SMALL), b"")
            restored = await self._ceremony(partial(self._parts.ceremony.restore, pieces, self._said()))
        return pb.RestoreBackupResponse(keys_restored=restored.keys, rejected_key_handles=restored.rejected)

    async def _prove(self, request: Message | None, context: aio.ServicerContext[Any, Any]) -> None:
        """Check the call's HSM token; without a request, that of a stream of requests."""
        call = call_context()
        token = ""
        for key, value in context.invocation_metadata() or ():
            if key == TOKEN_KEY and isinstance(value, str):
                token = value
        body = b"" if request is None else request.SerializeToString(deterministic=True)
        digest = (
            hashlib.sha256(body).digest()
            if len(body) <= _SMALL
            else (await self._do(partial(hashlib.sha256, body), self._parts.workers)).digest()
        )
        try:
            self._parts.channels.check(call.caller, token, call.method, digest)
        except ReplayError:
            record: dict[str, Value] = {"method": call.method, **self._said()}
            await self._do(partial(self._parts.journal.append, "token-replay", record), self._parts.writers)
            raise

    async def _batch(self, items: int, work: Callable[[], tuple[T, int]]) -> T:
        try:
            answer, failed = await self._do(work, self._parts.workers)
        except MeshError:
            self._parts.rates.count(items, items)
            raise
        self._parts.rates.count(items, failed)
        if failed:
            call_context().audit.result = "partial"
        return answer

    async def _counted(self, items: int, work: Callable[[], T], executor: Executor) -> T:
        try:
            done = await self._do(work, executor)
        except MeshError:
            self._parts.rates.count(items, items)
            raise
        self._parts.rates.count(items, 0)
        return done

    async def _ceremony(self, work: Callable[[], T]) -> T:
        return await self._do(work, self._parts.ceremonies)

    async def _do(self, work: Callable[[], T], executor: Executor) -> T:
        """Work that blocks, in a thread. It goes on when the caller gives up: half a key would help nobody."""
        with telling():
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(executor, work))

    def _said(self) -> dict[str, Value]:
        """What the journal says of the call, with a number of its own for the operation."""
        call, operation = call_context(), next(self._operations)
        call.audit.hsm_operation_id = operation
        return {"caller": call.caller, "correlation_id": call.correlation_id, "operation_id": operation}


def note_key(key_id: str, organization_id: str) -> None:
    """Say for the call's audit record which key it is about."""
    notes = call_context().audit
    notes.key_id, notes.organization_id = key_id, organization_id
