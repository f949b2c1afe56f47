"""REST over real sockets: the document's forms, and every way to be refused."""

from __future__ import annotations

import json
import random
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from servers.mesh.context import Scope
from servers.mesh.errors import ErrorReason, FieldProblem, MeshError
from tests.integration.gateway.gateway_stage import OPERATOR_TOKEN, event, open_stage

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.integration.gateway.gateway_stage import Stage

ANALYZE = "/api/threat/analyze-realtime"
OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
JSON = {"Content-Type": "application/json"}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Checks an error's form; returns it."""
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json()
    assert document["errorCode"] == code
    assert document["correlationId"] == answer.headers["x-correlation-id"]
    assert set(document) - {"fields"} == {"error", "errorCode", "correlationId", "suggestedAction"}
    assert document["error"]
    assert document["suggestedAction"]
    return document


async def test_an_event_is_analyzed_in_the_documents_form(stage: Stage) -> None:
    trial = await stage.sign_in()
    answer = await stage.client.post(ANALYZE, json=event())
    assert answer.status_code == 200, answer.text
    assert answer.json()["processingStatus"] == "queued_for_morpheus"
    assert answer.json()["preliminaryRisk"] == 0.25
    request, call = stage.threat.requests[-1], stage.threat.calls[-1]
    assert request.user_id == trial["userId"]
    assert request.event_data.session_id == trial["sessionId"]
    assert request.event_data.contextual_data.ip_address == "127.0.0.1"
    assert "httpx" in request.event_data.contextual_data.user_agent
    assert call.caller == "gateway"
    assert call.end_user is not None
    assert call.end_user.user_id == trial["userId"]
    assert call.end_user.scope == Scope.SCOPE_SELF
    assert answer.headers["x-correlation-id"] == call.correlation_id == request.correlation_id


async def test_a_correlation_id_is_carried_through(stage: Stage) -> None:
    await stage.sign_in()
    given = str(uuid.uuid4())
    answer = await stage.client.post(ANALYZE, json=event(), headers={"X-Correlation-ID": given})
    assert answer.headers["x-correlation-id"] == given
    assert stage.threat.calls[-1].correlation_id == given


async def test_a_correlation_id_that_is_none_is_replaced(stage: Stage) -> None:
    answer = await stage.client.get("/api/session", headers={"X-Correlation-ID": "not a uuid"})
    assert str(uuid.UUID(answer.headers["x-correlation-id"])) == answer.headers["x-correlation-id"]


async def test_what_a_browser_says_of_its_address_and_sign_ins_is_dropped(stage: Stage) -> None:
    await stage.sign_in()
    body = event()
    body["eventData"]["contextualData"] = {
        "ipAddress": "203.0.113.9",
        "userAgent": "made up",
        "authentication": {"failedAttempts": 0, "attempts": 9},
        "deviceFingerprint": "kept",
    }
    spoofed = {"X-Forwarded-For": "203.0.113.9", "x-bg-user-id": str(uuid.uuid4()), "x-bg-scope": "admin"}
    answer = await stage.client.post(ANALYZE, json=body, headers=spoofed)
    assert answer.status_code == 200, answer.text
    context = stage.threat.requests[-1].event_data.contextual_data
    assert context.ip_address == "127.0.0.1"
    assert context.user_agent != "made up"
    assert not context.HasField("authentication")
    assert context.device_fingerprint == "kept"
    end_user = stage.threat.calls[-1].end_user
    assert end_user is not None
    assert end_user.scope == Scope.SCOPE_SELF


async def test_a_trusted_proxys_word_is_taken(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, trusted_proxies=("127.0.0.0/8", "10.0.0.0/8")) as stage:
        forwarded = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9, 10.1.2.3", "X-Forwarded-Proto": "https"}
        started = await stage.client.post("/api/threat/trials", json={}, headers=forwarded)
        cookie = started.headers["set-cookie"]
        assert cookie.startswith("auth_token=")
        assert "; Secure" in cookie
        handle = cookie.partition("=")[2].partition(";")[0]
        sent = {**forwarded, "Cookie": f"auth_token={handle}"}
        answer = await stage.client.post(ANALYZE, json=event(), headers=sent)
        assert answer.status_code == 200, answer.text
        assert "strict-transport-security" in answer.headers
        assert stage.threat.requests[-1].event_data.contextual_data.ip_address == "203.0.113.9"


async def test_nothing_of_oneself_without_a_session(stage: Stage) -> None:
    answer = await stage.client.post(ANALYZE, json=event())
    problem(answer, 401, "session_required")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert stage.threat.requests == []


async def test_a_made_up_handle_is_no_session(stage: Stage) -> None:
    for handle in ("x", "a" * 43, "é" * 43, "a" * 5000, '"', ";;=;"):
        sent = [(b"Cookie", f"auth_token={handle}".encode())]
        problem(await stage.client.post(ANALYZE, json=event(), headers=sent), 401, "session_required")


async def test_somebody_elses_data_is_refused(stage: Stage) -> None:
    await stage.sign_in()
    other = str(uuid.uuid4())
    answer = await stage.client.post(ANALYZE, json=event(userId=other))
    assert problem(answer, 403, "scope_not_allowed")["fields"][0]["field"] == "userId"
    problem(await stage.client.get(f"/api/threat/risk-profiles/{other}"), 403, "scope_not_allowed")
    problem(await stage.client.delete(f"/api/threat/risk-profiles/{other}"), 403, "scope_not_allowed")
    body = event()
    body["eventData"]["sessionId"] = other
    problem(await stage.client.post(ANALYZE, json=body), 403, "scope_not_allowed")


async def test_ones_own_data_is_read_and_erased(stage: Stage) -> None:
    user_id = (await stage.sign_in())["userId"]
    profile = (await stage.client.get(f"/api/threat/risk-profiles/{user_id}")).json()["profile"]
    assert profile["userId"] == user_id
    assert profile["riskScore"] == 0.5
    assert profile["sessionCount"] == 0
    erased = await stage.client.delete(f"/api/threat/risk-profiles/{user_id}")
    assert erased.json() == {"eventsErased": "3"}


async def test_a_persons_session_may_not_do_an_analysts_work(stage: Stage) -> None:
    await stage.sign_in()
    problem(await stage.client.get("/api/threat/events"), 403, "scope_not_allowed")


async def test_the_operator_lists_and_judges_events(stage: Stage) -> None:
    query = {"minimumLevel": "threat", "pageSize": "10", "startTime": "2026-11-22T12:00:00Z"}
    answer = await stage.client.get("/api/threat/events", params=query, headers=OPERATOR)
    assert answer.json() == {"events": [], "nextPageToken": ""}
    request = stage.threat.requests[-1]
    assert (request.minimum_level, request.page_size) == (3, 10)
    assert request.start_time.ToJsonString() == "2026-11-22T12:00:00Z"
    event_id = str(uuid.uuid4())
    path = f"/api/threat/events/{event_id}/verdict"
    verdict = await stage.client.post(path, json={"verdict": {"kind": "takeover"}}, headers=OPERATOR)
    assert verdict.json()["event"]["verdict"]["kind"] == "takeover"
    assert stage.threat.requests[-1].event_id == event_id


@pytest.mark.parametrize("token", ["wrong", OPERATOR_TOKEN + "x", OPERATOR_TOKEN[:-1]])
async def test_a_wrong_token_is_refused(stage: Stage, token: str) -> None:
    answer = await stage.client.get("/api/threat/events", headers={"Authorization": f"Bearer {token}"})
    problem(answer, 401, "session_required")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("minimumLevel=nose", "minimumLevel"),
        ("minimum_level=threat", "minimum_level"),
        ("pageSize=-1", "pageSize"),
        ("pageSize=1.5", "pageSize"),
        ("pageSize=1&pageSize=2", "pageSize"),
        ("startTime=yesterday", "startTime"),
        ("unheard=1", "unheard"),
        ("pageToken=%ff", "query"),
        ("pageToken", "query"),
    ],
)
async def test_parameters_that_do_not_fit_are_named(stage: Stage, query: str, field: str) -> None:
    answer = await stage.client.get(f"/api/threat/events?{query}", headers=OPERATOR)
    assert problem(answer, 400, "invalid_field")["fields"][0]["field"] == field


async def test_the_path_wins_over_the_body(stage: Stage) -> None:
    body = {"eventId": str(uuid.uuid4()), "verdict": {"kind": "takeover"}}
    answer = await stage.client.post(f"/api/threat/events/{uuid.uuid4()}/verdict", json=body, headers=OPERATOR)
    problem(answer, 400, "invalid_field")


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "malformed_body"),
        (b"{} {}", JSON, 400, "malformed_body"),
        (b'{"userId":NaN}', JSON, 400, "malformed_body"),
        (b'{"userId":"\xff"}', JSON, 400, "malformed_body"),
        (b'{"label":"a","label":"b"}', JSON, 400, "malformed_body"),
        (b"[" * 100_000, JSON, 400, "malformed_body"),
        (b'{"label":1}', JSON, 400, "invalid_field"),
        (b'{"unheard":1}', JSON, 400, "invalid_field"),
        (b'{"label":"' + b"a" * 100 + b'"}', JSON, 400, "invalid_field"),
        (b"{}", {"Content-Type": "text/plain"}, 400, "malformed_body"),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 400, "malformed_body"),
        (b"label=a", {"Content-Type": "application/x-www-form-urlencoded"}, 400, "malformed_body"),
        (b" " * 300_000, JSON, 413, "too_large"),
    ],
)
async def test_bodies_that_do_not_fit_are_refused(
    stage: Stage, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    problem(await stage.client.post("/api/threat/trials", content=content, headers=headers), status, code)


async def test_a_body_without_a_length_is_cut_off_at_the_limit(stage: Stage) -> None:
    async def endless() -> Any:
        for _ in range(20):
            yield b" " * 64_000

    answer = await stage.client.post("/api/threat/trials", content=endless(), headers=JSON)
    problem(answer, 413, "too_large")


async def test_a_large_body_is_read_off_the_event_loop(stage: Stage) -> None:
    await stage.sign_in()
    body = event()
    column = [number / 7 for number in range(256)]
    runs = {"keyClasses": ["letter_left"] * 256, "holdMs": column, "flightMs": column}
    body["eventData"]["behavioralMetrics"]["keystrokeDynamics"] = [runs] * 8
    content = json.dumps(body).encode()
    assert len(content) > 64 * 1024
    answer = await stage.client.post(ANALYZE, content=content, headers=JSON)
    assert answer.status_code == 200, answer.text


async def test_paths_and_methods_that_are_not_there(stage: Stage) -> None:
    problem(await stage.client.get("/api/nothing"), 404, "not_found")
    problem(await stage.client.get("/../../etc/passwd"), 404, "not_found")
    refused = await stage.client.put(ANALYZE, json={})
    problem(refused, 405, "malformed_body")
    assert refused.headers["allow"] == "POST"
    problem(await stage.client.get(f"/api/threat/events/{uuid.uuid4()}", headers=OPERATOR), 404, "not_found")


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (ErrorReason.ERROR_REASON_CLOCK_SKEW, 400),
        (ErrorReason.ERROR_REASON_UNKNOWN_USER, 404),
        (ErrorReason.ERROR_REASON_DUPLICATE_EVENT, 409),
        (ErrorReason.ERROR_REASON_WRONG_STATE, 409),
        (ErrorReason.ERROR_REASON_RATE_LIMITED, 429),
        (ErrorReason.ERROR_REASON_OVERLOADED, 503),
        (ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, 503),
        (ErrorReason.ERROR_REASON_DEADLINE, 504),
        (ErrorReason.ERROR_REASON_NOT_IMPLEMENTED, 501),
        (ErrorReason.ERROR_REASON_INTERNAL, 500),
    ],
)
async def test_a_services_reasons_become_http(stage: Stage, reason: ErrorReason.ValueType, status: int) -> None:
    await stage.sign_in()
    stage.threat.error = MeshError(
        reason, "what is wrong", fields=[FieldProblem("event_data.hold_ms[0]", "too long")], retry_after_s=1.2
    )
    answer = await stage.client.post(ANALYZE, json=event())
    document = problem(answer, status, ErrorReason.Name(reason).removeprefix("ERROR_REASON_").lower())
    assert document["error"] == "what is wrong"
    assert document["fields"] == [{"field": "eventData.holdMs[0]", "description": "too long"}]
    assert answer.headers["retry-after"] == "2"


async def test_a_services_fault_says_nothing_of_its_cause(stage: Stage) -> None:
    await stage.sign_in()
    stage.threat.error = RuntimeError("the password is swordfish")
    answer = await stage.client.post(ANALYZE, json=event())
    problem(answer, 500, "internal")
    assert "swordfish" not in answer.text


async def test_the_contracts_rules_are_named_in_jsons_names(stage: Stage) -> None:
    await stage.sign_in()
    body = event()
    body["eventData"]["behavioralMetrics"]["keystrokeDynamics"][0]["holdMs"] = [90, 91]
    answer = await stage.client.post(ANALYZE, json=body)
    document = problem(answer, 400, "invalid_field")
    assert document["fields"][0]["field"].startswith("eventData.behavioralMetrics.keystrokeDynamics[0]")


async def test_a_service_that_is_away_is_said_to_be(pki: Path, redis_url: str, tmp_path: Path) -> None:
    async with open_stage(pki, redis_url, tmp_path, threat_target="127.0.0.1:1") as stage:
        answer = await stage.client.post("/api/threat/trials", json={})
        problem(answer, 503, "dependency_unavailable")
        assert answer.headers["retry-after"] == "1"
        health = await stage.client.get("/healthz")
        assert health.status_code == 200
        assert health.json()["status"] == "degraded"


async def test_thousands_of_broken_bodies_never_break_the_gateway(stage: Stage) -> None:
    await stage.sign_in()
    stage.threat.error = MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, "reached the service")
    source = random.Random(20261122)  # noqa: S311 -- test data, the same in every run
    whole = json.dumps(event()).encode()
    for _ in range(2000):
        body = bytearray(whole)
        for _ in range(source.randrange(1, 5)):
            where = source.randrange(len(body))
            if source.random() < 0.5:
                body[where] = source.randrange(256)
            else:
                body[where:where] = source.choice([b"NaN", b"1e999", b"null", b"{}", b"[", b'"', b"\\u0000", b"9" * 30])
        answer = await stage.client.post(ANALYZE, content=bytes(body), headers=JSON)
        assert answer.status_code in (400, 403, 429), answer.text
        if answer.status_code == 429:
            break
