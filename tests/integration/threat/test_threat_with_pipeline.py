"""The threat service and the real pipeline over one broker: they meet at the records and nowhere else."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
import uuid
from typing import TYPE_CHECKING

from behaviorguard.threat.v1 import threat_pb2
from behaviorguard.threat.v1 import threat_service_pb2 as pb

from servers.threat.baseline import SAMPLES_NEEDED
from tests.support.threat import Hand, end_user, running_threat, take

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.threat import Stores


async def test_a_person_is_learnt_and_somebody_else_raises_the_risk(stores: Stores, tmp_path: Path) -> None:
    anna, session = stores.person(), str(uuid.uuid4())
    with (tmp_path / "pipeline.log").open("wb") as log:
        pipeline = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pipeline",
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "BEHAVIORGUARD_KAFKA_BOOTSTRAP": stores.kafka,
                "BEHAVIORGUARD_PIPELINE_HEALTH_PORT": "0",
            },
            stdout=log,
            stderr=log,
        )
    try:
        async with running_threat(stores) as service:
            stub = service.stub("gateway")
            follow = pb.WatchAlertsRequest(minimum_level=threat_pb2.THREAT_LEVEL_NORMAL)
            watch = stub.WatchAlerts(follow, metadata=end_user(anna))
            await watch.initial_metadata()
            waits = []

            async def work(hand: Hand) -> pb.AlertData:
                begun = time.perf_counter()
                await stub.AnalyzeRealtime(hand.event(anna, session), metadata=end_user(anna))
                [alert] = await take(watch, 1, within_s=60)
                waits.append(time.perf_counter() - begun)
                data: pb.AlertData = alert.data
                return data

            owner, other = Hand(1), Hand(2)
            for _ in range(SAMPLES_NEEDED + 10):
                await work(owner)
            request = pb.GetRiskProfileRequest(user_id=anna)
            profile = (await stub.GetRiskProfile(request, metadata=end_user(anna))).profile
            assert not profile.baseline.enrolling, "the baseline is learnt from the pipeline's own judgement"
            own = [(await work(owner)).threat_score for _ in range(8)]
            before = (await stub.GetRiskProfile(request, metadata=end_user(anna))).profile.baseline
            foreign = [await work(other) for _ in range(8)]
            after = (await stub.GetRiskProfile(request, metadata=end_user(anna))).profile
            assert statistics.median(own) < 0.3
            # The hands are made up: how well people are told apart is measured on recordings of people.
            scores = [alert.threat_score for alert in foreign]
            assert statistics.median(scores) > 2 * statistics.median(own)
            assert after.risk_score > profile.risk_score
            assert after.baseline.typing_samples == before.typing_samples, "somebody else teaches nothing"
            assert statistics.median(waits) < 1.0
    finally:
        pipeline.terminate()
        await pipeline.wait()
