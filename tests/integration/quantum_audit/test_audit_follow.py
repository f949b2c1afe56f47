"""`behaviorguard audit list --follow` across connections and services."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from behaviorguard.client import AsyncBehaviorGuardClient, ServiceError, Tls
from behaviorguard.quantum.v1 import audit_service_pb2 as pb

from infra import pki
from infra.cli.audit import follow_stream
from tests.support.audit import entry
from tests.support.quantum import ORGANIZATION, StandInHsm, running_quantum

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.audit import Trails
    from tests.support.quantum import QuantumStores


async def test_a_follower_goes_on_when_the_service_was_away(
    stores: QuantumStores, hsm: StandInHsm, trails: Trails
) -> None:
    files = pki.issue(stores.pki, "operator")
    tls = Tls.from_files(files.ca, files.cert, files.key)
    begun = asyncio.Event()

    async def watch(request: pb.WatchAuditRecordsRequest) -> AsyncIterator[Any]:
        stream = client.audit.WatchAuditRecords(request)
        await stream.initial_metadata()
        begun.set()
        async for each in stream:
            yield each

    async with trails() as trail, AsyncExitStack() as first:
        service = await first.enter_async_context(running_quantum(stores, hsm))
        async with (
            AsyncBehaviorGuardClient(f"localhost:{service.port}", "quantum", tls) as client,
            aclosing(follow_stream(watch, pb.WatchAuditRecordsRequest())) as following,
        ):
            seen = asyncio.ensure_future(anext(following))
            await asyncio.wait_for(begun.wait(), 5)
            await trail.commit(entry(ORGANIZATION))
            before = (await asyncio.wait_for(seen, 5)).record.sequence
            await first.aclose()
            await trail.commit(entry(ORGANIZATION))
            async with running_quantum(stores, hsm, port=service.port):
                after = (await asyncio.wait_for(anext(following), 20)).record.sequence
    assert after == before + 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED])
async def test_only_what_passes_is_waited_for(code: grpc.StatusCode) -> None:
    asked: list[str] = []

    async def watch(request: Any) -> AsyncIterator[Any]:
        asked.append(request.resume_token)
        yield pb.WatchAuditRecordsResponse(resume_token=f"token {len(asked)}")
        raise ServiceError(code, "", "gone")

    request = pb.WatchAuditRecordsRequest()
    async with aclosing(follow_stream(watch, request)) as following:
        await anext(following)
        if code is grpc.StatusCode.UNAVAILABLE:
            assert (await anext(following)).resume_token == "token 2"
            assert asked == ["", "token 1"]
        else:
            with pytest.raises(ServiceError):
                await anext(following)
