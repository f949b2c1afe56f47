"""What the pipeline says about an event, read from the broker: an `Alert`, or the reason why it cannot be used."""

from __future__ import annotations

import base64
import binascii
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

import orjson

from servers.threat.features import FEATURES

MAX_ALERT_BYTES: Final = 1_048_576
_LEAST_YEAR, _MOST_YEAR = 2000, 2200
_MAX_TEXT: Final = 2000
_MAX_REASONS: Final = 5
_MAX_ITEMS: Final = 16
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL's text and jsonb hold neither


class Level(IntEnum):
    """How serious an event is; numbers as `ThreatLevel` in threat.proto."""

    NORMAL = 1
    SUSPICIOUS = 2
    THREAT = 3
    CRITICAL = 4

    @property
    def label(self) -> str:
        """The document's name: "normal"."""
        return self.name.lower()


class UnusableAlertError(ValueError):
    """An alert that cannot be stored. `reason` is one of `DeadLetterRecord.reason`; the text never holds content."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Alert:
    """A scored event as the pipeline published it (`ThreatAlertRecord`), checked."""

    event_id: str
    user_id: str
    session_id: str
    organization_id: str
    correlation_id: str | None
    threat_score: float
    level: Level
    anomaly_score: float
    sequence_threat_score: float
    pattern_anomaly_score: float
    ml_confidence: float
    processing_time_ms: int
    pipeline_version: str
    features: tuple[float, ...]
    """The 15 features, or empty when the pipeline did not hand them back."""
    simulated_features: tuple[str, ...]
    reasons: tuple[dict[str, Any], ...]
    """Plain JSON in the form of `Reason`."""
    model_versions: tuple[dict[str, Any], ...]
    recommendations: tuple[str, ...]
    occurred_at: datetime
    scored_at: datetime
    sample: str
    """base64, or empty."""
    evidence_version: int

    @property
    def accepted_at_s(self) -> float:
        """When the service accepted the event, seconds since the Unix epoch."""
        return self.scored_at.timestamp() - self.processing_time_ms / 1000.0


def parse_alert(value: bytes | None) -> Alert:
    """Read and check one message of `threat-alerts`.

    Raises:
        UnusableAlertError: it is not JSON, lacks a field, or holds a value out of range.
    """
    if not value:
        raise UnusableAlertError("malformed_json", "the message has no value")
    if len(value) > MAX_ALERT_BYTES:
        raise UnusableAlertError("too_large", "the message is over 1 MiB")
    try:
        # orjson refuses NaN and Infinity, as JSON does.
        record = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise UnusableAlertError("malformed_json", "the value is not JSON in UTF-8") from None
    if not isinstance(record, dict):
        raise UnusableAlertError("malformed_json", "the value is not a JSON object")
    score = _share(record, "threat_score")
    scored_at = _time(record, "timestamp")
    return Alert(
        event_id=_uuid(record, "event_id"),
        user_id=_uuid(record, "user_id"),
        session_id=_uuid(record, "session_id"),
        organization_id=_uuid(record, "organization_id"),
        correlation_id=_uuid(record, "correlation_id") if record.get("correlation_id") else None,
        threat_score=score,
        level=_level(record),
        anomaly_score=_share(record, "anomaly_score"),
        sequence_threat_score=_share(record, "sequence_threat_score"),
        pattern_anomaly_score=_share(record, "pattern_anomaly_score"),
        ml_confidence=_share(record, "ml_confidence"),
        processing_time_ms=_whole(record, "processing_time_ms", 2_147_483_647),
        pipeline_version=_text(record, "pipeline_version")[:50],
        features=_features(record),
        simulated_features=tuple(_texts(record, "simulated_features")),
        reasons=tuple(_reason(item) for item in _objects(record, "reasons", _MAX_REASONS)),
        model_versions=tuple(_model(item) for item in _objects(record, "model_versions", _MAX_ITEMS)),
        recommendations=tuple(_texts(record, "recommendations")),
        occurred_at=_time(record, "occurred_at") if record.get("occurred_at") else scored_at,
        scored_at=scored_at,
        sample=_base64(record, "sample"),
        evidence_version=_whole(record, "evidence_version", 2_147_483_647, default=0),
    )


def _uuid(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or value == "":
        raise UnusableAlertError("missing_field", f"{name} is missing")
    if not isinstance(value, str) or len(value) != 36:
        raise UnusableAlertError("out_of_range", f"{name} is not a UUID")
    try:
        return str(UUID(value))
    except ValueError:
        raise UnusableAlertError("out_of_range", f"{name} is not a UUID") from None


def _number(record: dict[str, Any], name: str, default: float | None = None) -> float:
    value = record.get(name, default)
    if value is None:
        raise UnusableAlertError("missing_field", f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableAlertError("out_of_range", f"{name} is not a number")
    if not math.isfinite(value):
        raise UnusableAlertError("not_finite", f"{name} is not finite")
    return value


def _share(record: dict[str, Any], name: str) -> float:
    value = _number(record, name)
    if not 0.0 <= value <= 1.0:
        raise UnusableAlertError("out_of_range", f"{name} is not between 0 and 1")
    return float(value)


def _whole(record: dict[str, Any], name: str, most: int, default: int | None = None) -> int:
    value = _number(record, name, default)
    if not 0 <= value <= most:
        raise UnusableAlertError("out_of_range", f"{name} is not between 0 and {most}")
    return int(value)


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name, "")
    if not isinstance(value, str):
        raise UnusableAlertError("out_of_range", f"{name} is not a text")
    return _UNSTORABLE.sub("", value)[:_MAX_TEXT]


def _texts(record: dict[str, Any], name: str) -> list[str]:
    values = record.get(name) or []
    if not isinstance(values, list) or len(values) > _MAX_ITEMS or not all(isinstance(item, str) for item in values):
        raise UnusableAlertError("out_of_range", f"{name} is not a list of at most {_MAX_ITEMS} texts")
    return [_UNSTORABLE.sub("", item)[:_MAX_TEXT] for item in values]


def _objects(record: dict[str, Any], name: str, most: int) -> list[dict[str, Any]]:
    values = record.get(name) or []
    if not isinstance(values, list) or len(values) > most or not all(isinstance(item, dict) for item in values):
        raise UnusableAlertError("out_of_range", f"{name} is not a list of at most {most} objects")
    return values


def _reason(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "feature": _text(item, "feature"),
        "text": _text(item, "text"),
        "deviation": _number(item, "deviation", 0.0),
        "contribution": _number(item, "contribution", 0.0),
        "modality": _text(item, "modality"),
        "simulated": item.get("simulated") is True,
    }


def _model(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": _text(item, "name"),
        "version": _text(item, "version"),
        "accuracy": _number(item, "accuracy", 0.0),
    }


def _features(record: dict[str, Any]) -> tuple[float, ...]:
    values = record.get("features") or []
    if not isinstance(values, list) or len(values) not in (0, len(FEATURES)):
        raise UnusableAlertError("wrong_size", f"features is not a list of {len(FEATURES)} numbers")
    return tuple(float(_number({"features": value}, "features")) for value in values)


def _level(record: dict[str, Any]) -> Level:
    label = record.get("threat_level")
    if label is None:
        raise UnusableAlertError("missing_field", "threat_level is missing")
    for level in Level:
        if label in (level.label, f"THREAT_LEVEL_{level.name}"):
            return level
    raise UnusableAlertError("out_of_range", "threat_level is not one of the four levels")


def _time(record: dict[str, Any], name: str) -> datetime:
    value = record.get(name)
    if not value:
        raise UnusableAlertError("missing_field", f"{name} is missing")
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise UnusableAlertError("out_of_range", f"{name} is not an ISO 8601 time") from None
    if not _LEAST_YEAR < moment.year < _MOST_YEAR:
        raise UnusableAlertError("out_of_range", f"{name} is not of this age")
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _base64(record: dict[str, Any], name: str) -> str:
    value = record.get(name) or ""
    try:
        base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise UnusableAlertError("out_of_range", f"{name} is not base64") from None
    return str(value)
