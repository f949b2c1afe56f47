"""What surrounds every answer: sessions, budgets, other sites' pages, headers, pages, health, overload."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from servers.gateway.settings import GatewaySettings
from tests.integration.gateway.gateway_stage import OPERATOR_TOKEN, event, open_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.gateway.gateway_stage import Stage

ANALYZE = "/api/threat/analyze-realtime"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def test_a_session_is_stored_in_the_documents_form_under_a_digest(stage: Stage, redis: Redis) -> None:
    started = await stage.client.post("/api/threat/trials", json={})
    cookie = started.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie  # plain HTTP, for a browser on the same machine
    handle = stage.client.cookies["auth_token"]
    key = "session:" + hashlib.sha256(handle.encode()).hexdigest()
    stored = json.loads(str(await redis.get(key)))
    document = {"userId", "deviceId", "loginTime", "lastActivity", "quantumSecured", "hybridToken", "riskScore"}
    assert document | {"biometricVerified"} <= set(stored)
    assert stored["userId"] == started.json()["userId"]
    assert 0 < await redis.ttl(key) <= 3600
    keys = [str(found) async for found in redis.scan_iter()]
    assert not [found for found in keys if handle in found]


async def test_a_session_is_read_and_ended(stage: Stage) -> None:
    trial = await stage.sign_in()
    session = (await stage.client.get("/api/session")).json()
    assert (session["userId"], session["sessionId"]) == (trial["userId"], trial["sessionId"])
    ended = await stage.client.delete("/api/session")
    assert "Max-Age=0" in ended.headers["set-cookie"]
    assert (await stage.client.get("/api/session")).status_code == 401


async def test_a_used_session_lives_on_and_an_expired_one_does_not(stage: Stage, redis: Redis) -> None:
    await stage.sign_in()
    key = "session:" + hashlib.sha256(stage.client.cookies["auth_token"].encode()).hexdigest()
    stored = json.loads(str(await redis.get(key)))
    old = {**stored, "lastActivity": "2026-11-22T12:00:00+00:00"}
    await redis.set(key, json.dumps(old), ex=10)
    assert (await stage.client.get("/api/session")).status_code == 200
    assert await redis.ttl(key) > 1000
    assert json.loads(str(await redis.get(key)))["lastActivity"] > old["lastActivity"]
    await redis.set(key, json.dumps({**stored, "expiresAt": "2026-01-01T00:00:00+00:00"}))
    assert (await stage.client.get("/api/session")).status_code == 401
    await redis.set(key, "no session at all")
    assert (await stage.client.get("/api/session")).status_code == 401


async def test_budgets_are_kept_in_the_documents_keys(stage: Stage, redis: Redis) -> None:
    trial = await stage.sign_in()
    await stage.client.post(ANALYZE, json=event())
    assert await redis.get(f"ratelimit:{trial['userId']}:{ANALYZE}") == "1"
    assert await redis.get(f"ratelimit:global:{ANALYZE}") == "1"
    assert 0 < await redis.ttl(f"ratelimit:{trial['userId']}:{ANALYZE}") <= 60


async def test_a_spent_budget_says_when_to_come_back(stage: Stage) -> None:
    answers = [await stage.client.post("/api/threat/trials", json={}) for _ in range(31)]
    assert [answer.status_code for answer in answers] == [200] * 30 + [429]
    assert answers[-1].json()["errorCode"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


async def test_everybody_together_has_a_budget(stage: Stage, redis: Redis) -> None:
    await stage.sign_in()
    await redis.set(f"ratelimit:global:{ANALYZE}", 6000 * stage.settings.global_budget_factor, ex=60)
    assert (await stage.client.post(ANALYZE, json=event())).status_code == 429


async def test_without_redis_nobody_is_believed_to_be_signed_in(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path) as reachable:
        await reachable.sign_in()
        cookies = reachable.client.cookies
    async with open_stage(pki, redis_url, tmp_path, redis_url="redis://127.0.0.1:1/0") as stage:
        stage.client.cookies = cookies
        for answer in (
            await stage.client.post(ANALYZE, json=event()),
            await stage.client.post("/api/threat/trials", json={}),
        ):
            assert answer.status_code == 503
            assert answer.json()["errorCode"] == "dependency_unavailable"
            assert "retry-after" in answer.headers
        operator = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
        assert (await stage.client.get("/api/threat/events", headers=operator)).status_code == 200  # a read
        assert (await stage.client.get("/healthz/ready")).status_code == 503
        assert (await stage.client.get("/healthz/live")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://friend.example"}, 200),
    ],
)
async def test_pages_of_other_sites_may_not_write(
    pki: Path, redis_url: str, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with open_stage(pki, redis_url, tmp_path, allowed_origins=("http://friend.example",)) as stage:
        answer = await stage.client.post("/api/threat/trials", json={}, headers=headers)
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers


async def test_a_strangers_host_name_gets_nothing(stage: Stage) -> None:
    for host in ("evil.example", "evil.example:3000", "", "127.0.0.1.evil.example"):
        answer = await stage.client.get("/openapi.json", headers={"Host": host})
        assert answer.status_code in (400, 404)
    ready = await stage.client.get("/healthz/live", headers={"Host": "10.1.2.3:3000"})
    assert ready.status_code == 200


@pytest.fixture
def web_root(tmp_path: Path) -> Path:
    """Pages as a build leaves them."""
    root = tmp_path / "dist"
    (root / "assets").mkdir(parents=True)
    (root / "index.html").write_text("<!doctype html><title>t</title>")
    (root / "assets" / "index-DeadBeef.js").write_text("1")
    (root / ".secret").write_text("s")
    (tmp_path / "outside.txt").write_text("o")
    return root


async def test_pages_are_served_with_strict_headers(pki: Path, redis_url: str, tmp_path: Path, web_root: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, web_root=web_root) as stage:
        page = await stage.client.get("/")
        assert page.status_code == 200
        assert page.headers["cache-control"] == "no-cache"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        script = await stage.client.get("/assets/index-DeadBeef.js")
        assert "immutable" in script.headers["cache-control"]
        assert script.headers["content-type"].startswith("text/javascript")
        again = await stage.client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert again.status_code == 304
        for path in ("/.secret", "/%2e%2e/outside.txt", "/assets/../../outside.txt", "/assets", "/nothing.js"):
            assert (await stage.client.get(path)).status_code == 404
        assert (await stage.client.post("/", json={})).status_code == 405


async def test_missing_pages_say_how_to_build_them(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, web_root=tmp_path / "none") as stage:
        answer = await stage.client.get("/")
        assert answer.status_code == 404
        assert "make" in answer.json()["error"]


async def test_health_is_in_the_documents_form(stage: Stage) -> None:
    document: dict[str, Any] = {}
    async with asyncio.timeout(10):
        while document.get("status") != "healthy":
            document = (await stage.client.get("/healthz")).json()
    assert {"service", "status", "timestamp", "version", "uptime", "dependencies"} <= set(document)
    assert document["service"] == "gateway"
    assert document["dependencies"]["redis"]["status"] == "connected"
    assert document["dependencies"]["external_services"]["threat"]["status"] == "reachable"


async def test_metrics_are_not_public(stage: Stage) -> None:
    assert (await stage.client.get("/metrics")).status_code == 404


async def test_a_full_gateway_says_when_to_come_back(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, max_requests=1, body_seconds=5) as stage:
        hold = asyncio.Event()

        async def slow() -> Any:
            yield b"{"
            await hold.wait()
            yield b"}"

        headers = {"Content-Type": "application/json"}
        held = asyncio.create_task(stage.client.post("/api/threat/trials", content=slow(), headers=headers))
        async with asyncio.timeout(10):
            while (answer := await stage.client.get("/api/session")).status_code != 503:
                pass
        assert answer.json()["errorCode"] == "overloaded"
        assert answer.headers["retry-after"] == "1"
        hold.set()
        assert (await held).status_code == 200


async def test_a_body_that_never_ends_is_given_up(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, body_seconds=0.2) as stage:

        async def stalled() -> Any:
            yield b"{"
            await asyncio.sleep(3)
            yield b"}"

        headers = {"Content-Type": "application/json"}
        answer = await stage.client.post("/api/threat/trials", content=stalled(), headers=headers)
        assert answer.status_code == 504
        assert answer.json()["errorCode"] == "deadline"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_a_head_that_never_ends_is_given_up(pki: Path, redis_url: str, tmp_path: Path, sent: bytes) -> None:
    async with open_stage(pki, redis_url, tmp_path, body_seconds=0.3) as stage:
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.port)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        kept = await stage.client.get("/healthz/live")
        assert kept.status_code == 200
        assert (await stage.client.get("/healthz/live")).status_code == 200


async def test_a_head_over_the_limit_is_cut_off(stage: Stage) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    with contextlib.suppress(ConnectionError):
        for number in range(2000):
            writer.write(b"X-%d: %s\r\n" % (number, b"a" * 1000))
            await writer.drain()
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    headers = {f"X-{number}": "a" * 1000 for number in range(20)}
    assert (await stage.client.get("/healthz/live", headers=headers)).status_code == 200


async def test_logs_name_nobody(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="servers.gateway"):
        trial = await stage.sign_in()
        await stage.client.get(f"/api/threat/risk-profiles/{trial['userId']}?x=y")
    told = " ".join(str(vars(record)) for record in caplog.records)
    assert "/api/threat/risk-profiles/{user_id}" in told
    assert trial["userId"] not in told
    assert stage.client.cookies["auth_token"] not in told
    assert "127.0.0.1" not in told


async def test_requests_in_progress_finish_before_the_gateway_stops(stage: Stage) -> None:
    begun = asyncio.Event()

    async def body() -> Any:
        yield b"{"
        begun.set()
        await asyncio.sleep(0.2)
        yield b"}"

    headers = {"Content-Type": "application/json"}
    request = asyncio.create_task(stage.client.post("/api/threat/trials", content=body(), headers=headers))
    await begun.wait()
    await asyncio.sleep(0.05)
    stage.server.stop()
    assert (await request).status_code == 200


@pytest.mark.parametrize(("content", "mode", "said"), [("short", 0o600, "shorter"), ("a" * 40, 0o644, "chmod 600")])
async def test_a_careless_operator_token_stops_the_start(
    pki: Path, redis_url: str, tmp_path: Path, content: str, mode: int, said: str
) -> None:
    token = tmp_path / "careless"
    token.write_text(content)
    token.chmod(mode)
    with pytest.raises(ValueError, match=said):
        async with open_stage(pki, redis_url, tmp_path, operator_token_file=token):
            pass


def test_lists_in_the_environment_are_written_with_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEHAVIORGUARD_ALLOWED_HOSTS", "guard.example, localhost")
    settings = GatewaySettings(tls_ca=tmp_path, tls_cert=tmp_path, tls_key=tmp_path)
    assert settings.allowed_hosts == ("guard.example", "localhost")


async def test_the_contract_is_published(stage: Stage) -> None:
    answer = await stage.client.get("/openapi.json")
    if answer.status_code == 404:
        pytest.skip("generated/openapi.json is not there: run `make generate`")
    assert isinstance(answer, httpx.Response)
    assert ANALYZE in answer.json()["paths"]
