"""Streams over WebSocket: the document's alert form, backpressure, cancellation, limits, and every close code."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from servers.mesh.errors import ErrorReason, MeshError
from tests.integration.gateway.gateway_stage import OPERATOR_TOKEN, alert, event, open_stage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.gateway.gateway_stage import Stage

INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE, UNAUTHENTICATED = 4003, 4007, 4008, 4014, 4016
DEADLINE_EXCEEDED = 4004


def open_socket(stage: Stage, path: str = "/ws", **headers: str) -> connect:
    """A socket from the gateway's own page, with the session's cookie where there is one."""
    sent = {"Origin": stage.origin}
    if "auth_token" in stage.client.cookies:
        sent |= stage.cookie()
    return connect(stage.socket_origin + path, additional_headers={**sent, **headers}, user_agent_header="a browser")


async def close_of(socket: ClientConnection) -> tuple[int, str]:
    """Reads until the socket is closed; returns how."""
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionClosed) as closed:
            await _drain(socket)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def _drain(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def test_alerts_come_in_the_documents_form(stage: Stage) -> None:
    user_id = (await stage.sign_in())["userId"]
    async with open_socket(stage) as socket:
        await socket.send(json.dumps({"minimumLevel": "threat", "resumeToken": "41"}))
        await stage.threat.alerts.put(alert(42, user_id))
        message = json.loads(await socket.recv())
    assert message["type"] == "threat_alert"
    assert message["resumeToken"] == "42"
    document = {"userId", "threatLevel", "threatScore", "timestamp", "recommendations", "correlationId"}
    assert document <= set(message["data"])
    assert message["data"]["threatLevel"] == "critical"
    assert message["data"]["threatScore"] == 0.93
    assert message["data"]["reasons"][0]["text"] == "Keys are held longer."
    request, call = stage.threat.requests[-1], stage.threat.calls[-1]
    assert list(request.user_ids) == [user_id]
    assert request.resume_token == "41"
    assert call.end_user is not None
    assert call.end_user.user_id == user_id


async def test_the_operator_sees_everybody(stage: Stage) -> None:
    async with open_socket(stage, Authorization=f"Bearer {OPERATOR_TOKEN}") as socket:
        await socket.send("{}")
        await stage.threat.alerts.put(alert(1))
        assert json.loads(await socket.recv())["resumeToken"] == "1"
    assert list(stage.threat.requests[-1].user_ids) == []


async def test_the_call_ends_with_its_socket(stage: Stage) -> None:
    await stage.sign_in()
    async with open_socket(stage) as socket:
        await socket.send("{}")
        await asyncio.wait_for(stage.threat.watching.wait(), 10)
    await asyncio.wait_for(stage.threat.unwatched.wait(), 10)
    assert stage.threat.watchers == 0


async def test_a_reader_that_stalls_holds_the_service_back(stage: Stage) -> None:
    await stage.sign_in()
    stage.threat.endless = True
    async with open_socket(stage) as socket:
        await socket.send("{}")
        await socket.recv()
        before = -1
        while stage.threat.sent != before:  # until buffers on the way are full
            before = stage.threat.sent
            await asyncio.sleep(0.3)
        assert before < 200_000
        for _ in range(before // 2):
            await socket.recv()
        stage.threat.endless = False


async def test_events_are_answered_in_order(stage: Stage) -> None:
    trial = await stage.sign_in()
    ids = [str(uuid.uuid4()) for _ in range(50)]
    async with open_socket(stage, "/api/threat/stream") as socket:
        for each in ids:
            body = event()
            body["eventData"]["eventId"] = each
            await socket.send(json.dumps({"event": body}))
        answers = [json.loads(await socket.recv()) for _ in ids]
    assert [answer["accepted"]["eventId"] for answer in answers] == ids
    assert answers[0]["accepted"]["preliminaryRisk"] == 0.5
    request = stage.threat.requests[-1]
    assert request.event.user_id == trial["userId"]
    assert request.event.event_data.session_id == trial["sessionId"]
    assert request.event.event_data.contextual_data.user_agent == "a browser"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", INVALID_ARGUMENT),
        ("[]", INVALID_ARGUMENT),
        (b"{}", INVALID_ARGUMENT),
        ('{"unheard":1}', INVALID_ARGUMENT),
        ('{"minimumLevel":"nose"}', INVALID_ARGUMENT),
        ('{"resumeToken":"a","resumeToken":"b"}', INVALID_ARGUMENT),
        ('{"sessionId":"not a uuid"}', INVALID_ARGUMENT),
        (json.dumps({"userIds": [str(uuid.UUID(int=5))]}), PERMISSION_DENIED),
    ],
)
async def test_a_bad_first_frame_closes_the_socket_with_the_reason(stage: Stage, frame: Any, code: int) -> None:
    await stage.sign_in()
    async with open_socket(stage) as socket:
        await socket.send(frame)
        closed, reason = await close_of(socket)
    assert closed == code
    assert reason


async def test_a_second_request_is_refused(stage: Stage) -> None:
    await stage.sign_in()
    async with open_socket(stage) as socket:
        await socket.send("{}")
        await socket.send("{}")
        assert (await close_of(socket))[0] == INVALID_ARGUMENT


async def test_a_socket_needs_a_session(stage: Stage) -> None:
    async with open_socket(stage) as socket:
        assert (await close_of(socket))[0] == UNAUTHENTICATED


async def test_a_page_of_another_site_gets_no_socket(stage: Stage) -> None:
    await stage.sign_in()
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{stage.server.port}"):
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(stage, Origin=origin):
                pass
        assert refused.value.response.status_code == 403


async def test_there_is_no_socket_where_the_contract_has_none(stage: Stage) -> None:
    for path in ("/nothing", "/api/threat/events"):
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(stage, path):
                pass
        assert refused.value.response.status_code in (404, 405)


async def test_a_services_refusal_becomes_the_close_code(stage: Stage) -> None:
    await stage.sign_in()
    async with open_socket(stage) as socket:
        await socket.send("{}")
        await stage.threat.alerts.put(alert(1))  # a stream that has brought nothing yet would be opened again
        await stage.threat.alerts.put(
            MeshError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "the database is away")
        )
        assert await close_of(socket) == (UNAVAILABLE, "dependency_unavailable: the database is away")


async def test_a_frame_over_the_limit_closes_the_socket(stage: Stage) -> None:
    await stage.sign_in()
    async with open_socket(stage) as socket:
        await socket.send('{"resumeToken":"' + "a" * 70_000 + '"}')
        assert (await close_of(socket))[0] == 1009


async def test_sockets_of_one_session_are_counted(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, sockets_per_session=1) as stage:
        await stage.sign_in()
        async with open_socket(stage) as first:
            await first.send("{}")
            await asyncio.wait_for(stage.threat.watching.wait(), 10)
            async with open_socket(stage) as second:
                assert (await close_of(second))[0] == RESOURCE_EXHAUSTED
        await asyncio.wait_for(stage.threat.unwatched.wait(), 10)
        async with open_socket(stage) as third:
            await third.send("{}")
            await stage.threat.alerts.put(alert(1))
            assert await third.recv()


async def test_a_silent_client_is_let_go(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, body_seconds=0.2, socket_idle_seconds=0.2) as stage:
        await stage.sign_in()
        for path in ("/ws", "/api/threat/stream"):
            async with open_socket(stage, path) as socket:
                assert (await close_of(socket))[0] == DEADLINE_EXCEEDED


async def test_a_socket_ends_with_its_session(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, session_check_seconds=0.1) as stage:
        await stage.sign_in()
        async with open_socket(stage) as socket:
            await socket.send("{}")
            await asyncio.wait_for(stage.threat.watching.wait(), 10)
            assert (await stage.client.delete("/api/session")).status_code == 200
            assert (await close_of(socket))[0] == UNAUTHENTICATED


async def test_a_stopping_gateway_says_so(stage: Stage) -> None:
    await stage.sign_in()
    async with open_socket(stage) as socket:
        await socket.send("{}")
        await asyncio.wait_for(stage.threat.watching.wait(), 10)
        stage.server.stop()
        assert (await close_of(socket))[0] == 1012
    await asyncio.wait_for(stage.threat.unwatched.wait(), 10)


async def test_thousands_of_broken_frames_never_break_the_gateway(stage: Stage) -> None:
    await stage.sign_in()
    whole = json.dumps({"event": event()})
    for cut in range(0, len(whole), 5):
        async with open_socket(stage, "/api/threat/stream") as socket:
            await socket.send(whole[:cut] + "\u0000" + whole[cut + 1 :])
            code, _ = await close_of(socket)
            assert code == INVALID_ARGUMENT
