"""The threat service put together: settings in, server out."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from behaviorguard.threat.v1.threat_service_pb2_grpc import add_ThreatServiceServicer_to_server

from servers.mesh.audit_link import open_audit
from servers.mesh.health import DependencyCheck, HealthMonitor
from servers.mesh.server import MeshServer, ServiceBinding
from servers.mesh.tasks import RestartBudget, TaskOwner
from servers.mesh.telemetry import Telemetry
from servers.threat.intake import Intake, warm_up
from servers.threat.members import Members
from servers.threat.mirror import RedisMirror
from servers.threat.peers import AlertConsumer, BrokerProducer
from servers.threat.people import People
from servers.threat.places import Addresses
from servers.threat.recent import RecentEvents
from servers.threat.results import ResultConsumer
from servers.threat.service import ThreatParts, ThreatService
from servers.threat.settings import ThreatSettings
from servers.threat.store import Store
from servers.threat.upkeep import ProfileWriter, TrialEraser
from servers.threat.watch import AlertHub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from servers.mesh.limits import RateLimiter

SERVICE_NAME = "behaviorguard.threat.v1.ThreatService"


@asynccontextmanager
async def threat_app(
    settings: ThreatSettings | None = None, *, limiter: RateLimiter | None = None
) -> AsyncIterator[MeshServer]:
    """Everything that the service needs, opened and closed around its server (which is not started).

    Args:
        settings: None reads them from the environment.
        limiter: None counts requests in this process.

    Raises:
        pydantic.ValidationError: a setting is missing or wrong.
    """
    settings = settings or ThreatSettings()  # type: ignore[call-arg]  # the rest comes from the environment
    instance = uuid.uuid4().hex
    dsn = settings.postgres_dsn.get_secret_value()
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(warm_up)
        store = Store(dsn, connections=settings.postgres_connections, instance=instance)
        await store.open()
        stack.push_async_callback(store.close)
        addresses = Addresses(settings.anonymizer_networks)
        people = People(store, addresses, capacity=settings.people_cached, evidence=settings.evidence_events)
        members = Members(store, capacity=2 * settings.people_cached, believed_s=settings.members_seconds)
        producer = BrokerProducer(
            settings.kafka_bootstrap,
            queue=settings.produce_queue,
            within_seconds=settings.produce_seconds,
            linger_ms=settings.linger_ms,
            client_id="bg-threat-ai",
        )
        stack.push_async_callback(producer.close)
        mirror = RedisMirror(settings.redis_url.get_secret_value(), store, people)
        stack.push_async_callback(mirror.close)

        def erased_elsewhere(user_id: str) -> None:
            people.forget(user_id)
            people.forget_evidence(user_id)
            members.forget(user_id)

        hub = AlertHub(
            store,
            dsn,
            instance=instance,
            queue=settings.watch_queue,
            readers=settings.watch_readers,
            on_results=people.apply,
            on_erased=erased_elsewhere,
        )
        source = AlertConsumer(
            settings.kafka_bootstrap,
            settings.alerts_topic,
            settings.alerts_group,
            batch=settings.alert_batch,
            window_s=settings.alert_window_ms / 1000.0,
            session_s=settings.alerts_session_seconds,
            client_id="bg-threat-ai",
        )
        stack.push_async_callback(source.close)
        consumer = ResultConsumer(
            source, store, people, hub, mirror, producer, dead_letters_topic=settings.dead_letters_topic
        )
        writer = ProfileWriter(people, every_s=settings.save_seconds)
        # What was learnt last is written before the pool closes.
        stack.push_async_callback(writer.flush)
        intake = Intake(
            producer, settings.events_topic, members, people, addresses, RecentEvents(settings.recent_events)
        )
        tasks = TaskOwner()
        stack.push_async_callback(tasks.stop)
        budget = RestartBudget(restarts=5)
        tasks.start("alert stream", hub.run, budget=budget)
        tasks.start("alert consumer", consumer.run, budget=budget)
        tasks.start("redis mirror", mirror.run, budget=budget)
        tasks.start("profile writer", writer.run, budget=budget)
        tasks.start("trial eraser", TrialEraser(store, people, members, mirror).run, budget=budget)
        telemetry = Telemetry(settings)
        _measure(telemetry, consumer, people, hub, mirror, producer)
        audit = await stack.enter_async_context(open_audit(settings))
        yield MeshServer(
            settings,
            [
                ServiceBinding(
                    SERVICE_NAME,
                    add_ThreatServiceServicer_to_server,
                    ThreatService(ThreatParts(settings, intake, members, people, hub, mirror, store)),
                    self_checked=frozenset({"StreamEvents"}),
                )
            ],
            health=HealthMonitor(
                settings.service_name,
                [
                    DependencyCheck("database", store.probe),
                    DependencyCheck("redis", mirror.probe, required=False),
                    DependencyCheck("kafka", producer.probe),
                ],
                interval_seconds=settings.health_interval_seconds,
            ),
            telemetry=telemetry,
            limiter=limiter,
            tasks=tasks,
            audit=audit,
        )


def _measure(
    telemetry: Telemetry,
    consumer: ResultConsumer,
    people: People,
    hub: AlertHub,
    mirror: RedisMirror,
    producer: BrokerProducer,
) -> None:
    counts = consumer.counts
    gauges = {
        "behaviorguard.threat.results_stored": ("Results stored since the start.", lambda: float(counts.stored)),
        "behaviorguard.threat.results_repeated": (
            "Alerts whose result was stored before.",
            lambda: float(counts.repeated),
        ),
        "behaviorguard.threat.results_erased": ("Alerts dropped by an erasure.", lambda: float(counts.erased)),
        "behaviorguard.threat.alerts_dead": ("Alerts that could not be used.", lambda: float(counts.dead)),
        "behaviorguard.threat.store_waits": ("Times a batch waited for the database.", lambda: float(counts.retries)),
        "behaviorguard.threat.produce_waiting": ("Events that wait for the broker.", lambda: float(producer.waiting)),
        "behaviorguard.threat.people_cached": ("People in memory.", lambda: float(len(people))),
        "behaviorguard.threat.watch_readers": ("Readers of alerts.", lambda: float(hub.readers)),
        "behaviorguard.threat.redis_behind": ("1 while the Redis view misses something.", lambda: float(mirror.behind)),
    }
    for name, (description, read) in gauges.items():
        telemetry.gauge(name, "1", description, read)
