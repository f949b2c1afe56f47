"""REST over real sockets: the document's forms, and every way to be refused."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from servers.mesh.context import Scope

if TYPE_CHECKING:
    from tests.integration.gateway.gateway_stage import Stage

from tests.integration.gateway.gateway_stage import event


async def test_an_event_is_analyzed_in_the_documents_form(stage: Stage) -> None:
    trial = await stage.sign_in()
    answer = await stage.client.post("/api/threat/analyze-realtime", json=event())
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
    answer = await stage.client.post("/api/threat/analyze-realtime", json=event(), headers={"X-Correlation-ID": given})
    assert answer.headers["x-correlation-id"] == given
    assert stage.threat.calls[-1].correlation_id == given
