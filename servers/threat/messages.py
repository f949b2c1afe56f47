"""Between the contract's messages and the domain's values."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from behaviorguard.api.v1.errors_pb2 import ErrorReason
from behaviorguard.threat.v1 import behavior_pb2, threat_pb2, threat_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from servers.mesh.errors import FieldProblem, MeshError
from servers.mesh.interceptors import new_correlation_id
from servers.threat.alerts import Level
from servers.threat.baseline import SAMPLES_NEEDED
from servers.threat.behavior import KeystrokeRun, MousePath
from servers.threat.observations import (
    Access,
    Authentication,
    Context,
    Observation,
    Operation,
    Place,
    keystroke_problem,
    stroke_problem,
)
from servers.threat.rows import StoredEvent, StoredVerdict
from servers.threat.tokens import resume_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from servers.threat.alerts import Alert
    from servers.threat.people import Person
    from servers.threat.rows import StoredAlert

Number = TypeVar("Number", bound=np.generic)

_NO_READINGS: Final = np.empty(0, np.float32)
_SOURCES: Final = {0: "behavioral", 1: "behavioral", 2: "network", 3: "biometric", 4: "authentication"}
_VERDICTS: Final = {1: "takeover", 2: "genuine", 3: "inconclusive"}
_VERDICT_NUMBERS: Final = {name: number for number, name in _VERDICTS.items()}
_LEAST_SECONDS, _MOST_SECONDS = -62_135_596_800, 253_402_300_799  # years 1 to 9999, google.protobuf.Timestamp


def content_digest(request: threat_service_pb2.AnalyzeRealtimeRequest) -> bytes | None:
    """A digest of what the sender observed: two copies of one event have the same, whatever their correlation id. None
    for an event without an id: no copy of it can be told.

    Copies come from one sender's serialiser, so the bytes are compared as they are.
    """
    if not request.event_data.event_id:
        return None
    content = blake2b(request.user_id.lower().encode(), digest_size=16, person=b"bg-event")
    content.update(request.timestamp.SerializeToString())
    content.update(request.event_data.SerializeToString(deterministic=True))
    return content.digest()


def observation_of(request: threat_service_pb2.AnalyzeRealtimeRequest, correlation_id: str) -> Observation:
    """The event that a request carries.

    Args:
        request: field rules checked.
        correlation_id: of the call (a UUID), for events that bring none.

    Raises:
        MeshError: INVALID_FIELD, with every field that breaks a rule which the contract cannot express.
    """
    event = request.event_data
    metrics = event.behavioral_metrics
    problems: list[FieldProblem] = []
    observation = Observation(
        event_id=event.event_id.lower() or new_correlation_id(),
        user_id=request.user_id.lower(),
        session_id=event.session_id.lower(),
        correlation_id=request.correlation_id.lower() or correlation_id.lower(),
        source=_SOURCES.get(event.source, "behavioral"),
        occurred_at_s=_seconds(request.timestamp, "timestamp", problems),
        runs=_runs(metrics.keystroke_dynamics, problems),
        paths=_paths(metrics.mouse_dynamics, problems),
        views=_views(metrics.navigation_pattern, problems),
        session_seconds=metrics.session_duration,
        calls_per_minute=metrics.api_call_frequency,
        accesses=[
            Access(item.resource, Operation(item.operation or 1), item.count, item.sensitive)
            for item in metrics.data_access_patterns
        ],
        context=_context(event.contextual_data, problems),
    )
    if problems:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, "the event breaks rules of its fields", fields=problems)
    return observation


def moment_of(message: threat_service_pb2.ListThreatEventsRequest, field: str) -> datetime | None:
    """An optional time of a request.

    Raises:
        MeshError: INVALID_FIELD, it is no time.
    """
    if not message.HasField(field):  # type: ignore[arg-type]  # the stubs want a literal
        return None
    problems: list[FieldProblem] = []
    seconds = _seconds(getattr(message, field), field, problems)
    if problems:
        raise MeshError(ErrorReason.ERROR_REASON_INVALID_FIELD, "a time is out of range", fields=problems)
    return datetime.fromtimestamp(seconds, UTC)


def watch_response(result: StoredAlert) -> threat_service_pb2.WatchAlertsResponse:
    """An alert in the form that browsers get."""
    alert = result.alert
    return threat_service_pb2.WatchAlertsResponse(
        type="threat_alert",
        data=threat_service_pb2.AlertData(
            user_id=alert.user_id,
            threat_level=_level(alert.level),
            threat_score=alert.threat_score,
            timestamp=_timestamp(alert.scored_at),
            recommendations=alert.recommendations,
            correlation_id=alert.correlation_id or "",
            event_id=alert.event_id,
            session_id=alert.session_id,
            reasons=_reasons(alert),
            ml_confidence=alert.ml_confidence,
            anomaly_score=alert.anomaly_score,
            sequence_threat_score=alert.sequence_threat_score,
            pattern_anomaly_score=alert.pattern_anomaly_score,
            processing_time_ms=alert.processing_time_ms,
        ),
        resume_token=resume_token(alert.organization_id, result.position),
    )


def threat_event(event: StoredEvent) -> threat_pb2.ThreatEvent:
    """A stored result."""
    alert = event.stored.alert
    return threat_pb2.ThreatEvent(
        event_id=alert.event_id,
        user_id=alert.user_id,
        session_id=alert.session_id,
        threat_score=alert.threat_score,
        threat_level=_level(alert.level),
        anomaly_score=alert.anomaly_score,
        sequence_threat_score=alert.sequence_threat_score,
        pattern_anomaly_score=alert.pattern_anomaly_score,
        ml_confidence=alert.ml_confidence,
        processing_time_ms=alert.processing_time_ms,
        pipeline_version=alert.pipeline_version,
        features=alert.features,
        reasons=_reasons(alert),
        recommendations=alert.recommendations,
        model_versions=[threat_pb2.ModelVersion(**model) for model in alert.model_versions],
        correlation_id=alert.correlation_id or "",
        occurred_at=_timestamp(alert.occurred_at),
        processed_at=_timestamp(alert.scored_at),
        verdict=_verdict(event.verdict),
        simulated_features=alert.simulated_features,
    )


def verdict_of(message: threat_pb2.Verdict, analyst: str, now: datetime) -> StoredVerdict:
    """What an analyst says, with who and when."""
    # PostgreSQL's text cannot hold NUL.
    return StoredVerdict(_VERDICTS[message.kind], message.note.replace("\x00", ""), analyst, now)


def risk_profile(person: Person) -> threat_pb2.RiskProfile:
    """What is known of a person's risk."""
    state = person.state
    return threat_pb2.RiskProfile(
        user_id=person.user_id,
        risk_score=state.risk_score,
        last_threat_score=state.last_threat_score,
        anomaly_threshold=state.anomaly_threshold,
        baseline=threat_pb2.BaselineStatus(
            typing_samples=state.behavior.typing_samples,
            mouse_samples=state.behavior.mouse_samples,
            samples_needed=SAMPLES_NEEDED,
            enrolling=state.behavior.enrolling,
        ),
        session_count=state.sessions.count,
        average_session_seconds=state.sessions.average_seconds,
        last_anomaly=_timestamp_at(state.last_anomaly_s),
        last_analysis=_timestamp_at(state.last_analysis_s),
    )


def level_of(number: int, unset: Level) -> Level:
    """The level that a request names; `unset` when it names none."""
    return Level(number) if number else unset


def timestamp_of(moment: datetime) -> Timestamp:
    """A moment for an answer."""
    return _timestamp(moment)


def _column(values: Sequence[float], kind: type[Number]) -> NDArray[Number]:
    return np.fromiter(values, kind, len(values))


def _touch(values: Sequence[float]) -> NDArray[np.float32]:
    """Most keyboards have no touch readings."""
    return np.fromiter(values, np.float32, len(values)) if values else _NO_READINGS


def _runs(patterns: Sequence[behavior_pb2.KeystrokePattern], problems: list[FieldProblem]) -> list[KeystrokeRun]:
    runs = []
    for index, pattern in enumerate(patterns):
        run = KeystrokeRun(
            prompt_id=pattern.prompt_id,
            key_classes=_column(pattern.key_classes, np.int64),
            hold_ms=_column(pattern.hold_ms, np.float32),
            flight_ms=_column(pattern.flight_ms, np.float32),
            pressure=_touch(pattern.pressure),
            contact_size=_touch(pattern.contact_size),
        )
        if problem := keystroke_problem(run):
            place = f"event_data.behavioral_metrics.keystroke_dynamics[{index}]"
            problems.append(FieldProblem(place, problem, "KEYSTROKE_COLUMNS"))
        else:
            runs.append(run)
    return runs


def _paths(patterns: Sequence[behavior_pb2.MousePattern], problems: list[FieldProblem]) -> list[MousePath]:
    paths = []
    for index, pattern in enumerate(patterns):
        path = MousePath(
            time_ms=_column(pattern.time_ms, np.float64),
            x_px=_column(pattern.x_px, np.float64),
            y_px=_column(pattern.y_px, np.float64),
            actions=_column(pattern.actions, np.int64),
        )
        if problem := stroke_problem(path):
            place = f"event_data.behavioral_metrics.mouse_dynamics[{index}]"
            problems.append(FieldProblem(place, problem, "MOUSE_COLUMNS"))
        else:
            paths.append(path)
    return paths


def _views(navigation: behavior_pb2.NavigationData, problems: list[FieldProblem]) -> list[str]:
    views = list(navigation.views)
    if navigation.dwell_ms and len(navigation.dwell_ms) != len(views):
        place = "event_data.behavioral_metrics.navigation_pattern.dwell_ms"
        problems.append(FieldProblem(place, "must have as many items as views, or none", "NAVIGATION_COLUMNS"))
    return views


def _context(data: behavior_pb2.ContextualData, problems: list[FieldProblem]) -> Context:
    return Context(
        ip_address=data.ip_address,
        place=_place(data.location) if data.HasField("location") else None,
        device=data.device_fingerprint,
        network=data.network_fingerprint,
        authentication=_authentication(data.authentication, problems) if data.HasField("authentication") else None,
        simulated=frozenset(data.simulated_fields),
    )


def _place(location: behavior_pb2.GeoLocation) -> Place:
    return Place(location.latitude, location.longitude, location.accuracy_km, location.country, location.anonymizer)


def _authentication(message: behavior_pb2.AuthenticationContext, problems: list[FieldProblem]) -> Authentication:
    place = "event_data.contextual_data.authentication"
    if message.failed_attempts > message.attempts:
        problems.append(FieldProblem(f"{place}.failed_attempts", "must be at most attempts", "AUTHENTICATION_COUNTS"))
    return Authentication(
        failed=message.failed_attempts,
        attempts=message.attempts,
        biometric_confidence=message.biometric_confidence if message.HasField("biometric_confidence") else None,
        last_success_s=(
            _seconds(message.last_success, f"{place}.last_success", problems)
            if message.HasField("last_success")
            else None
        ),
    )


def _seconds(timestamp: Timestamp, field: str, problems: list[FieldProblem]) -> float:
    if not (_LEAST_SECONDS <= timestamp.seconds <= _MOST_SECONDS and 0 <= timestamp.nanos < 1_000_000_000):
        problems.append(FieldProblem(field, "must be a time in the years 1 to 9999", "TIMESTAMP"))
        return 0.0
    return timestamp.seconds + timestamp.nanos * 1e-9


def _reasons(alert: Alert) -> list[threat_pb2.Reason]:
    return [threat_pb2.Reason(**reason) for reason in alert.reasons]


def _level(level: Level) -> threat_pb2.ThreatLevel.ValueType:
    return threat_pb2.ThreatLevel.ValueType(level.value)


def _verdict(verdict: StoredVerdict | None) -> threat_pb2.Verdict | None:
    if verdict is None:
        return None
    kind: Any = _VERDICT_NUMBERS[verdict.kind]
    return threat_pb2.Verdict(
        kind=kind, note=verdict.note, analyst=verdict.analyst, recorded_at=_timestamp(verdict.recorded_at)
    )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _timestamp_at(at_s: float | None) -> Timestamp | None:
    return None if at_s is None else _timestamp(datetime.fromtimestamp(at_s, UTC))
