"""The topics of the document, created when missing and compared when there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the package re-exports these without __all__
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

DAY_MS = 24 * 60 * 60 * 1000
ANSWER_SECONDS = 15.0


@dataclass(frozen=True)
class Topic:
    """A topic as the document specifies it: times in milliseconds, sizes in bytes; None leaves the broker's default."""

    name: str
    partitions: int
    retention_ms: int
    compression: str | None = None
    max_message_bytes: int | None = None
    replication: int = 1

    @property
    def settings(self) -> Mapping[str, str]:
        """The topic's configuration in Kafka's names."""
        wanted = {
            "retention.ms": str(self.retention_ms),
            "compression.type": self.compression,
            "max.message.bytes": str(self.max_message_bytes) if self.max_message_bytes else None,
        }
        return {key: value for key, value in wanted.items() if value is not None}


THREAT_TOPICS = (
    Topic("threat-events", partitions=8, retention_ms=DAY_MS, compression="lz4", max_message_bytes=1_048_576),
    Topic("threat-alerts", partitions=8, retention_ms=7 * DAY_MS, compression="lz4"),
    # Ours: what could not be scored, kept as long as the alerts. Rare, so one partition.
    Topic("threat-dead-letters", partitions=1, retention_ms=7 * DAY_MS),
)


def ensure_topics(bootstrap: str, topics: Sequence[Topic] = THREAT_TOPICS) -> list[str]:
    """Create what is missing; return how existing topics differ from what is wanted, one sentence each.

    What exists is never changed.

    Args:
        bootstrap: the broker's `host:port`.
        topics: what is wanted.

    Raises:
        KafkaException: the broker is away or refuses.
    """
    admin = AdminClient(
        {"bootstrap.servers": bootstrap, "socket.timeout.ms": 10_000, "client.id": "behaviorguard-infra"}
    )
    known = admin.list_topics(timeout=ANSWER_SECONDS).topics
    missing = [topic for topic in topics if topic.name not in known]
    if missing:
        _wait_created(
            admin.create_topics(
                [
                    NewTopic(
                        t.name, num_partitions=t.partitions, replication_factor=t.replication, config=dict(t.settings)
                    )
                    for t in missing
                ],
                operation_timeout=ANSWER_SECONDS,
            )
        )
    present = [topic for topic in topics if topic.name in known]
    differences = [
        f"{topic.name} has {len(known[topic.name].partitions)} partitions, wanted {topic.partitions}"
        for topic in present
        if len(known[topic.name].partitions) != topic.partitions
    ]
    return differences + (_setting_differences(admin, present) if present else [])


def _wait_created(futures: Mapping[str, Future[None]]) -> None:
    for future in futures.values():
        try:
            future.result(timeout=ANSWER_SECONDS)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":  # somebody else created it at the same moment
                raise


def _setting_differences(admin: AdminClient, topics: Sequence[Topic]) -> list[str]:
    answers = admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics], request_timeout=ANSWER_SECONDS
    )
    found = {resource.name: future.result(timeout=ANSWER_SECONDS) for resource, future in answers.items()}
    differences = []
    for topic in topics:
        for key, wanted in topic.settings.items():
            entry = found[topic.name].get(key)
            value = entry.value if entry is not None else None
            if value != wanted:
                differences.append(f"{topic.name} has {key}={value}, wanted {wanted}")
    return differences
