"""Scores to the messages of `threat-alerts`: JSON of `ThreatAlertRecord`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson

from pipeline import VERSION
from pipeline.batch import LEVELS
from pipeline.stages.recommendations import recommendations_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.batch import Reason, Scores
    from pipeline.stages.deserialize import EventBatch

_DECIMALS = 6
"""Of scores: far below what the models resolve, and a third of the digits of a float64."""
_FEATURE_DECIMALS = 4
_NORMAL = 0
_MAX_INT32 = 2**31 - 1


class ModelVersion(NamedTuple):
    """A model as alerts name it; `accuracy` is balanced accuracy on people never trained on, 0 to 1."""

    name: str
    version: str
    accuracy: float


class Alert(NamedTuple):
    """A message for `threat-alerts`."""

    key: str
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


class AlertSerializer:
    """Writes alerts; holds what is equal in all of them."""

    def __init__(self, node: str, models: Sequence[ModelVersion]) -> None:
        self._node = node
        # Written once: it is the same bytes in every alert.
        self._models = orjson.Fragment(orjson.dumps([model._asdict() for model in models]))
        self._recommendations = [orjson.Fragment(orjson.dumps(recommendations_for(level))) for level in LEVELS]

    def __call__(
        self, events: EventBatch, scores: Scores, reasons: Mapping[int, Sequence[Reason]], now: datetime
    ) -> list[Alert]:
        """One alert an event, in order. `reasons` by position, for those that are not normal; `now` is when they were
        scored, in UTC."""
        columns = [
            _rounded(c)
            for c in (scores.threat_score, scores.anomaly, scores.sequence, scores.pattern, scores.confidence)
        ]
        context = np.round(events.context.astype(np.float64), _FEATURE_DECIMALS).tolist()
        taken = np.clip(int(now.timestamp() * 1000) - events.accepted_at_ms, 0, _MAX_INT32).tolist()
        timestamp = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        alerts = []
        for i, (level, threat, anomaly, sequence, pattern, confidence) in enumerate(
            zip(scores.level.tolist(), *columns, strict=True)
        ):
            event_id, user_id, correlation_id = events.event_ids[i], events.user_ids[i], events.correlation_ids[i]
            simulated = events.simulated_features[i]
            record = {
                "event_id": event_id,
                "user_id": user_id,
                "threat_score": threat,
                "threat_level": LEVELS[level],
                "anomaly_score": anomaly,
                "sequence_threat_score": sequence,
                "pattern_anomaly_score": pattern,
                "ml_confidence": confidence,
                "processing_time_ms": taken[i],
                "model_versions": self._models,
                "recommendations": self._recommendations[level],
                "correlation_id": correlation_id,
                "timestamp": timestamp,
                "session_id": events.session_ids[i],
                "organization_id": events.organization_ids[i],
                "occurred_at": events.timestamps[i],
                "reasons": [_reason(reason, simulated) for reason in reasons.get(i, ())],
                "features": context[i],
                "simulated_features": simulated,
                "pipeline_version": VERSION,
                "sample": events.sample_texts[i] if level == _NORMAL else "",
                "evidence_version": events.evidence_version,
            }
            headers: list[tuple[str, str | bytes | None]] = [
                ("alert-level", LEVELS[level]),
                ("user-id", user_id),
                ("correlation-id", correlation_id),
                ("processing-node", self._node),
            ]
            alerts.append(Alert(event_id, orjson.dumps(record), headers))
        return alerts


def _rounded(column: NDArray[np.float32]) -> list[float]:
    values: list[float] = np.round(column.astype(np.float64), _DECIMALS).tolist()
    return values


def _reason(reason: Reason, simulated: Sequence[str]) -> dict[str, str | float | bool]:
    return {
        "feature": reason.feature,
        "text": reason.text,
        "deviation": round(float(reason.deviation), 3),
        "contribution": round(float(reason.contribution), 4),
        "modality": reason.modality,
        "simulated": reason.feature in simulated,
    }
