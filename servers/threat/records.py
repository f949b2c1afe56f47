"""Messages to the broker, as bytes: an accepted event for the pipeline, and what could not be used."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from pybase64 import b64encode_as_string

from servers.threat.behavior import EVIDENCE_VERSION
from servers.threat.features import FEATURES

if TYPE_CHECKING:
    from servers.threat.behavior import Floats
    from servers.threat.features import FeatureVector
    from servers.threat.observations import Observation

SERVICE: Final = "bg-threat-ai"
"""This service's name in the headers of its messages, from the document."""

_MOST_ORIGINAL: Final = 65_536


class BrokerRecord(NamedTuple):
    """One message for the broker."""

    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


def event_record(
    seen: Observation,
    organization_id: str,
    features: FeatureVector,
    evidence: tuple[Floats, Floats],
    accepted_at_s: float,
) -> BrokerRecord:
    """An accepted event (`ThreatEventRecord`); `evidence` is the event's sample and the person's packed baseline."""
    timestamp = iso_time(seen.occurred_at_s)
    sample, baseline = evidence
    value: dict[str, Any] = {
        "user_id": seen.user_id,
        "timestamp": timestamp,
        "source": seen.source,
        "correlation_id": seen.correlation_id,
    }
    value.update(zip(FEATURES, features.values, strict=True))
    value.update(
        event_id=seen.event_id,
        session_id=seen.session_id,
        organization_id=organization_id,
        evidence_version=EVIDENCE_VERSION,
        sample=_packed(sample),
        baseline=_packed(baseline),
        simulated_features=features.simulated,
        accepted_at_ms=int(accepted_at_s * 1000),
    )
    headers: list[tuple[str, str | bytes | None]] = [
        ("correlation-id", seen.correlation_id.encode()),
        ("user-id", seen.user_id.encode()),
        ("service", SERVICE.encode()),
        ("timestamp", timestamp.encode()),
    ]
    return BrokerRecord(seen.user_id.encode(), orjson.dumps(value), headers)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def dead_letter(origin: Origin, reason: str, detail: str, now_s: float) -> BrokerRecord:
    """A message that could not be used (`DeadLetterRecord`), with the reason."""
    value = {
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
        "reason": reason,
        "detail": detail,
        "original": b64encode((origin.value or b"")[:_MOST_ORIGINAL]).decode(),
        "timestamp": iso_time(now_s),
    }
    return BrokerRecord(
        origin.key or b"", orjson.dumps(value), [("service", SERVICE.encode()), ("reason", reason.encode())]
    )


def iso_time(at_s: float) -> str:
    """Seconds since the Unix epoch as ISO 8601 in UTC, to the millisecond."""
    second, milliseconds = divmod(int(at_s * 1000), 1000)
    return f"{_iso_second(second)}.{milliseconds:03}Z"


@lru_cache(maxsize=256)
def _iso_second(second: int) -> str:
    """Most events carry the second that it is."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _packed(values: Floats) -> str:
    return b64encode_as_string(values.astype("<f4", copy=False).data)
