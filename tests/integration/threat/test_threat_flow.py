"""An event in, an alert out."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from behaviorguard.threat.v1 import threat_pb2
from behaviorguard.threat.v1 import threat_service_pb2 as pb

from tests.support.threat import Hand, StandInPipeline, end_user, eventually, running_threat, take

if TYPE_CHECKING:
    from tests.support.threat import Stores


async def test_an_event_becomes_one_stored_result_and_an_alert(stores: Stores) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    async with running_threat(stores) as service:
        gateway = service.stub("gateway")
        with StandInPipeline(stores.kafka):
            watch = gateway.WatchAlerts(
                pb.WatchAlertsRequest(minimum_level=threat_pb2.THREAT_LEVEL_NORMAL), metadata=end_user(anna)
            )
            await watch.initial_metadata()
            request = Hand(1).event(anna, session)
            answer = await gateway.AnalyzeRealtime(request, metadata=end_user(anna))
            assert answer.event_id == request.event_data.event_id
            assert answer.processing_status == pb.PROCESSING_STATUS_QUEUED_FOR_MORPHEUS
            assert 0 <= answer.preliminary_risk <= 1
            [alert] = await take(watch, 1)
        assert alert.type == "threat_alert"
        assert alert.data.event_id == answer.event_id
        assert alert.data.user_id == anna
        assert alert.data.session_id == session
        assert alert.data.threat_level == threat_pb2.THREAT_LEVEL_NORMAL
        stored = stores.rows("SELECT count(*) FROM ai_services.threat_events WHERE event_id = %s", answer.event_id)
        assert stored == [(1,)]
        profile = await gateway.GetRiskProfile(pb.GetRiskProfileRequest(user_id=anna), metadata=end_user(anna))
        assert profile.profile.baseline.typing_samples == 1
        assert profile.profile.session_count == 1
        await eventually(
            lambda: stores.rows(
                "SELECT 1 FROM ai_services.behavioral_profiles WHERE user_id = %s AND session_count = 1", anna
            )
        )
