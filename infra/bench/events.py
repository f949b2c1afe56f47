"""Events for measurements, shaped like those of the threat service: every field, and evidence of the layout's size.

The values are synthetic (seeded random numbers in plausible ranges). Speed does not depend on them: every model computes the same for every
value, and the messages have the length of real ones. Detection is measured on recordings of people, by `behaviorguard evaluate`.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from pipeline.features.layout import BASELINE_HEADER, BASELINE_SIZE, CONTEXT, EVIDENCE_VERSION, SAMPLE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

ORGANIZATION = "00000000-0000-4000-8000-000000000001"
_EVENT_MARK = "00000000-0000-0000-0000-00000000e0e0"
_ACCEPTED_MARK = 1_234_567_890_123


def user_id(number: int) -> str:
    """The id of the user of that number."""
    return f"11111111-1111-4111-8111-{number:012x}"


def event_id(series: int, number: int) -> str:
    """The id of an event; `series` keeps those of different runs apart."""
    return f"{series:08x}-2222-4222-8222-{number:012x}"


def record(user: int, event: str, accepted_at_ms: int, rng: np.random.Generator) -> dict[str, Any]:
    """A `ThreatEventRecord` as a dictionary."""
    sample = rng.normal(120.0, 40.0, SAMPLE_SIZE).astype("<f4")
    baseline = np.abs(rng.normal(120.0, 40.0, BASELINE_SIZE)).astype("<f4") + 1
    baseline[: len(BASELINE_HEADER)] = 20.0
    context: dict[str, float] = dict(zip(CONTEXT, np.round(rng.random(len(CONTEXT)), 4).tolist(), strict=True))
    return {
        "user_id": user_id(user),
        "timestamp": datetime.fromtimestamp(accepted_at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "source": "behavioral",
        "correlation_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        **context,
        "threat_indicators": int(rng.integers(0, 3)),
        "session_duration": int(rng.integers(0, 3600)),
        "event_id": event,
        "session_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        "organization_id": ORGANIZATION,
        "evidence_version": EVIDENCE_VERSION,
        "sample": base64.b64encode(sample.tobytes()).decode(),
        "baseline": base64.b64encode(baseline.tobytes()).decode(),
        "simulated_features": [],
        "accepted_at_ms": accepted_at_ms,
    }


@dataclass(frozen=True, slots=True)
class Template:
    """A serialized event with two gaps: making another costs one join instead of one serialization."""

    key: bytes
    head: bytes
    middle: bytes
    tail: bytes

    def fill(self, event: str, accepted_at_ms: int) -> bytes:
        """The event with that id, accepted at that time."""
        return b"".join((self.head, event.encode(), self.middle, b"%d" % accepted_at_ms, self.tail))


def templates(users: int, seed: int = 1) -> list[Template]:
    """One event a user, serialized once."""
    rng = np.random.default_rng(seed)
    return list(_templates(users, rng))


def _templates(users: int, rng: np.random.Generator) -> Iterator[Template]:
    for user in range(users):
        text = orjson.dumps(record(user, _EVENT_MARK, _ACCEPTED_MARK, rng))
        head, _, rest = text.partition(_EVENT_MARK.encode())
        middle, _, tail = rest.partition(b"%d" % _ACCEPTED_MARK)
        yield Template(user_id(user).encode(), head, middle, tail)
