"""What supervisors see."""

from __future__ import annotations

import urllib.error
import urllib.request

import orjson
import pytest
from confluent_kafka import KafkaError
from prometheus_client import CollectorRegistry

from pipeline.runners.health import Endpoint, Health
from pipeline.stages.monitor import RateMeter

UP = '{"brokers": {"a": {"state": "DOWN"}, "b": {"state": "UP"}}}'


def healthy() -> Health:
    health = Health(lambda: 12.34)
    health.statistics(UP)
    health.assigned([1, 0])
    return health


def test_healthy_is_connected_assigned_and_without_trouble() -> None:
    health = Health(lambda: 0.0)
    assert not health.healthy
    health.statistics(UP)
    assert not health.healthy
    health.assigned([])
    assert health.healthy
    health.trouble("the broker did not take a message")
    assert not health.healthy
    health.progressed()
    assert health.healthy
    health.client_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert not health.healthy
    health.statistics('{"brokers": {}}')
    assert not health.healthy


def test_a_reading_thread_that_stalls_is_noticed() -> None:
    now = [0.0]
    health = Health(lambda: 0.0, clock=lambda: now[0])
    health.statistics(UP)
    health.assigned([0])
    now[0] = 29.0
    assert health.healthy
    now[0] = 31.0
    assert not health.healthy
    health.beat()
    assert health.healthy


def test_the_endpoint_answers_in_the_documents_form() -> None:
    health = healthy()
    endpoint = Endpoint(0, health, CollectorRegistry())
    endpoint.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/health", timeout=5) as answer:
            report = orjson.loads(answer.read())
        assert report["service"] == "pipeline"
        assert report["status"] == "healthy"
        assert report["partitions"] == [0, 1]
        assert report["morpheus_specific"]["events_processed_per_second"] == 12.3
        health.trouble("x")
        for path, status in (("/health", 503), ("/", 404)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}{path}", timeout=5)
            with refused.value as error:
                assert error.code == status
    finally:
        endpoint.stop()


def test_rates_are_of_the_last_ten_seconds() -> None:
    meter = RateMeter()
    meter.add(100, 0.0)
    meter.add(50, 6.0)
    assert meter.read(6.0) == 15.0
    assert meter.read(11.0) == 5.0
    assert meter.read(20.0) == 0.0
