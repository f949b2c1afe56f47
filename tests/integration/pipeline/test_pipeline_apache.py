"""Against Apache Kafka itself: a broker that goes and comes back. The wheel's broker forgets everything when it
stops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from infra.kafka.topics import ensure_topics
from infra.settings import StackSettings
from infra.stack.kafka import ApacheBroker, BrokerOptions, apache_obstacle, libraries_folder
from infra.stack.ports import free_port
from tests.integration.pipeline.conftest import Broker, ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.pipeline.conftest import PipelineProcess

pytestmark = pytest.mark.chaos
START_SECONDS = 90.0


@pytest.fixture
def apache(tmp_path: Path) -> Iterator[ApacheBroker]:
    cache = StackSettings().cache
    obstacle = apache_obstacle(cache)
    if obstacle is None and not libraries_folder(cache).exists():
        obstacle = "its libraries were not fetched yet (behaviorguard up does)"
    if obstacle is not None:
        pytest.skip(f"Apache Kafka cannot run here: {obstacle}")
    broker = ApacheBroker(BrokerOptions(tmp_path / "kafka", free_port(), free_port(), cache, tmp_path / "kafka.log"))
    broker.start(time.monotonic() + START_SECONDS)
    ensure_topics(broker.bootstrap())
    yield broker
    broker.stop()


def test_nothing_is_lost_while_the_broker_restarts(
    apache: ApacheBroker, pipelines: Callable[..., PipelineProcess], events: Callable[..., list[dict[str, Any]]]
) -> None:
    process = pipelines(BEHAVIORGUARD_KAFKA_BOOTSTRAP=apache.bootstrap()).wait_healthy()
    broker = Broker(apache.bootstrap())
    sent = events(4000, users=20)
    broker.send(sent[:2000])
    broker.wait(lambda seen: len(seen.alerts) > 100)
    apache.stop()
    process.wait(lambda status, _: status == 503)
    apache.start(time.monotonic() + START_SECONDS)
    broker.send(sent[2000:])
    broker.wait_for_alerts(ids(sent))
    process.wait_healthy()
    assert process.end() == 0
    broker.close()
