"""Events for measurements, shaped like those of the threat service: every field, and evidence of the layout's size.

The values are synthetic (seeded random numbers in plausible ranges). Speed does not depend on them: every model
computes the same for every value, and the messages have the length of real ones. Detection is measured on recordings of
people, by `behaviorguard evaluate`.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from pipeline.features.layout import BASELINE_HEADER, BASELINE_SIZE, CONTEXT, EVIDENCE_VERSION, MEASURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORGANIZATION = "00000000-0000-4000-8000-000000000001"
PROMPT = 1.0
ATTACKED = 0.02
NEUTRAL = dict.fromkeys(
    (
        "network_activity",
        "authentication_patterns",
        "biometric_confidence",
        "location_consistency",
        "typing_pattern_deviation",
        "mouse_dynamic_variance",
    ),
    0.5,
)
_EVENT_MARK = "00000000-0000-0000-0000-00000000e0e0"
_ACCEPTED_MARK = 1_234_567_890_123


def user_id(number: int) -> str:
    """The id of the user of that number."""
    return f"11111111-1111-4111-8111-{number:012x}"


def event_id(series: int, after_ms: int, number: int) -> str:
    """The id of an event that says when it was accepted, so that who receives its alert needs to read nothing else.

    `series` keeps runs apart; `after_ms` is milliseconds since the run's start, under 2**20; `number` is under 2**28.
    """
    return f"{series:08x}-2222-4222-8222-{after_ms << 28 | number:012x}"


def read_event_id(text: bytes) -> tuple[int, int, int]:
    """Series, milliseconds since the run's start, and number of an event."""
    packed = int(text[24:], 16)
    return int(text[:8], 16), packed >> 28, packed & (2**28 - 1)


def record(user: int, event: str, accepted_at_ms: int, rng: np.random.Generator) -> dict[str, Any]:
    """A `ThreatEventRecord` as a dictionary: a person well known, working as usual.

    One event in fifty is far from the person's normal, so that reasons are found and written as often as in a system
    that is attacked at times.
    """
    sample, baseline = _evidence(rng, strayed=rng.random() < ATTACKED)
    context = dict.fromkeys(CONTEXT, 0.0) | NEUTRAL
    context["user_behavior_score"] = round(float(rng.random()) / 4, 4)
    return {
        "user_id": user_id(user),
        "timestamp": datetime.fromtimestamp(accepted_at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "source": "behavioral",
        "correlation_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        **context,
        "threat_indicators": 0,
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


def _evidence(rng: np.random.Generator, *, strayed: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A sample and the baseline it belongs to: typing timing and mouse, no touch."""
    header = len(BASELINE_HEADER)
    mean = rng.uniform(80.0, 160.0, len(MEASURES))
    spread = mean * 0.2
    far = 4.0 if strayed else 0.0
    measures = mean + spread * (rng.normal(0.0, 0.7, len(MEASURES)) + far)
    unobserved = [i for i, name in enumerate(MEASURES) if name.startswith(("pressure", "size"))]
    for column in (measures, mean, spread):
        column[unobserved] = np.nan
    baseline = np.full(BASELINE_SIZE, 0.0, "<f4")
    for index, name in enumerate(BASELINE_HEADER):
        baseline[index] = 40.0 if name.endswith("_samples") else 0.6 if name.startswith("self_mean") else 0.2
    baseline[header:] = np.concatenate([mean, spread])
    return np.concatenate([[PROMPT], measures]).astype("<f4"), baseline


@dataclass(frozen=True, slots=True)
class Template:
    """A serialized event with gaps for user, event and time: making another costs one join instead of one
    serialization."""

    head: bytes
    before_event: bytes
    before_accepted: bytes
    tail: bytes

    def fill(self, user: bytes, event: bytes, accepted_at_ms: int) -> bytes:
        """The event of that user with that id, accepted at that time."""
        return b"".join(
            (self.head, user, self.before_event, event, self.before_accepted, b"%d" % accepted_at_ms, self.tail)
        )


def templates(number: int, seed: int = 1) -> list[Template]:
    """Events of different content, serialized once."""
    rng = np.random.default_rng(seed)
    return [_template(rng) for _ in range(number)]


def _template(rng: np.random.Generator) -> Template:
    rest = orjson.dumps(record(0, _EVENT_MARK, _ACCEPTED_MARK, rng))
    head, _, rest = rest.partition(user_id(0).encode())
    before_event, _, rest = rest.partition(_EVENT_MARK.encode())
    before_accepted, _, tail = rest.partition(b"%d" % _ACCEPTED_MARK)
    return Template(head, before_event, before_accepted, tail)
