"""What the store takes and gives, and how it lies in rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from servers.threat.alerts import Alert, Level
from servers.threat.behavior import EVIDENCE_VERSION

if TYPE_CHECKING:
    from servers.threat.person import PersonState


@dataclass(frozen=True, slots=True)
class Member:
    """A person as the service must know them."""

    user_id: str
    organization_id: str
    active: bool
    trial_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """A result with its place in the alert stream."""

    position: int
    alert: Alert


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """What an analyst concluded."""

    kind: str
    """"takeover", "genuine" or "inconclusive"."""
    note: str
    analyst: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A result with what is known about it since."""

    stored: StoredAlert
    stored_at: datetime
    verdict: StoredVerdict | None


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """A row of `behavioral_profiles` and the results that are stored since it was written."""

    user_id: str
    organization_id: str
    baseline: dict[str, Any] | None
    """`PersonState.to_json`, or None when the person has no profile yet."""
    anomaly_threshold: float
    revision: int


@dataclass(frozen=True, slots=True)
class ProfileWrite:
    """A profile to be written over `revision`; 0 for a new one."""

    user_id: str
    organization_id: str
    state: PersonState
    revision: int


@dataclass(frozen=True, slots=True)
class StreamFilter:
    """Which alerts a reader follows."""

    organization_id: str
    user_ids: frozenset[str]
    """Empty: everybody of the organisation."""
    minimum_level: Level
    session_id: str
    """Empty: every session."""

    def admits(self, alert: Alert) -> bool:
        """Whether the reader gets this alert."""
        return (
            alert.organization_id == self.organization_id
            and alert.level >= self.minimum_level
            and (not self.user_ids or alert.user_id in self.user_ids)
            and (not self.session_id or alert.session_id == self.session_id)
        )


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a list holds."""

    organization_id: str
    user_id: str | None
    minimum_level: Level
    start: datetime | None
    end: datetime | None


def microseconds(moment: datetime) -> int:
    """A moment as microseconds since the Unix epoch, exactly."""
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_microseconds(value: int) -> datetime:
    """The moment that `microseconds` named."""
    seconds, rest = divmod(value, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def alert_row(alert: Alert) -> dict[str, Any]:
    """A result as JSON, with the names that the store's insert reads."""
    return {
        "event_id": alert.event_id,
        "user_id": alert.user_id,
        "session_id": alert.session_id,
        "organization_id": alert.organization_id,
        "correlation_id": alert.correlation_id,
        "threat_score": alert.threat_score,
        "threat_level": alert.level.label,
        "anomaly_score": alert.anomaly_score,
        "sequence_threat_score": alert.sequence_threat_score,
        "pattern_anomaly_score": alert.pattern_anomaly_score,
        "ml_confidence": alert.ml_confidence,
        "processing_time_ms": alert.processing_time_ms,
        "pipeline_version": alert.pipeline_version,
        "event_data": {"sample": alert.sample, "evidence_version": alert.evidence_version} if alert.sample else {},
        "recommendations": alert.recommendations,
        "scored_at": alert.scored_at,
        "occurred_at": alert.occurred_at,
        "features": alert.features,
        "simulated_features": alert.simulated_features,
        "reasons": alert.reasons,
        "model_versions": alert.model_versions,
    }


def stored_alert(row: dict[str, Any]) -> StoredAlert:
    """A row of `threat_events` as the store selects it."""
    alert = Alert(
        event_id=row["event_id"],
        user_id=row["user_id"],
        session_id=row["session_id"] or "",
        organization_id=row["organization_id"],
        correlation_id=row["correlation_id"],
        threat_score=row["threat_score"],
        level=Level[row["threat_level"].upper()],
        anomaly_score=row["anomaly_score"] or 0.0,
        sequence_threat_score=row["sequence_threat_score"] or 0.0,
        pattern_anomaly_score=row["pattern_anomaly_score"] or 0.0,
        ml_confidence=row["ml_confidence"] or 0.0,
        processing_time_ms=row["processing_time_ms"] or 0,
        pipeline_version=row["morpheus_pipeline_version"] or "",
        features=tuple(row["features"] or ()),
        simulated_features=tuple(row["simulated_features"]),
        reasons=tuple(row["reasons"]),
        model_versions=tuple(row["model_versions"]),
        recommendations=tuple(row["recommendations"] or ()),
        occurred_at=row["occurred_at"] or row["created_at"],
        scored_at=row["processed_at"] or row["created_at"],
        sample=row["sample"],
        evidence_version=row["evidence_version"],
    )
    return StoredAlert(int(row["stream_position"]), alert)


def stored_event(row: dict[str, Any]) -> StoredEvent:
    """A row of `threat_events` with its verdict."""
    verdict = None
    if row["verdict_kind"] is not None:
        verdict = StoredVerdict(
            row["verdict_kind"], row["verdict_note"] or "", row["verdict_analyst"] or "", row["verdict_recorded_at"]
        )
    return StoredEvent(stored_alert(row), row["created_at"], verdict)


def profile_row(write: ProfileWrite) -> dict[str, Any]:
    """A profile as JSON, with the names that the store's upsert reads."""
    state = write.state
    return {
        "user_id": write.user_id,
        "organization_id": write.organization_id,
        "baseline": state.to_json(),
        "risk": state.risk_score,
        "analysed": _moment(state.last_analysis_s),
        "evidence_version": EVIDENCE_VERSION,
        "last_score": state.last_threat_score,
        "anomaly": _moment(state.last_anomaly_s),
        "sessions": state.sessions.count,
        "seconds": state.sessions.average_seconds,
        "revision": write.revision,
    }


def _moment(at_s: float | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC)
