"""What is known of one person: their own normal, their running risk, and what may teach it.

**Who may teach.** A baseline that anybody can teach protects nobody, so an event teaches only when all of this holds:

* After enrolment: the pipeline judged it normal, it is not far from the baseline (a second opinion beside the models'),
  the person's running risk was normal before it (an intruder's lucky event teaches nothing), its session has never been
  judged a threat, and its context does not speak against the person.
* During enrolment, when scores are indicative only: the event belongs to the enrolling session, or to another one on
  the same device or with a strong biometric check; it fits what has been learnt so far; it is not confidently judged a
  threat. Partial enrolment by a session that went away is forgotten, never mixed with that of a stranger to it.

What this cannot prevent: whoever is at work from the first event on enrols themself. Enrolment must therefore begin
after a strong sign-in; `EraseBehavior` starts it again. And a patient intruder who stays normal can shift a mean
slowly: the profile limits the step.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from servers.threat.alerts import Level
from servers.threat.baseline import SAMPLES_NEEDED, Profile
from servers.threat.behavior import EVIDENCE_VERSION, SLOTS
from servers.threat.context import ContextState
from servers.threat.features import FEATURES
from servers.threat.habits import digest
from servers.threat.places import NEUTRAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servers.threat.behavior import Floats
    from servers.threat.observations import Observation
    from servers.threat.places import Addresses

STATE_VERSION: Final = 1
INITIAL_RISK: Final = 0.5
DEFAULT_THRESHOLD: Final = 0.7

_RISK_SHARE: Final = 0.3  # weight of the newest score in the running risk: half of it is forgotten after two events
_USUAL_SHARE: Final = 0.05
_RISK_TO_LEARN: Final = 0.3  # the document's bound of "normal"
_SURE: Final = 0.5  # confidence from which a score counts against enrolment
_FITS: Final = 0.97  # deviation above which a sample does not belong to what was enrolled so far
_FITS_LEARNT: Final = 0.8  # the same for a baseline that is learnt: over three of the person's own spreads away
_STRONG_CHECK: Final = 0.9  # biometric confidence that vouches for a session
_IDLE_S: Final = 3600.0  # an enrolling session that was silent for this long has ended
_SESSIONS: Final = 16

_AT: Final = {name: index for index, name in enumerate(FEATURES)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A stored result, as far as a person's state depends on it."""

    position: int
    """Place in the alert stream; 0 for what an analyst decided."""
    session_id: str
    score: float
    level: Level
    confidence: float
    scored_at_s: float
    features: tuple[float, ...]
    simulated: tuple[str, ...]
    sample: str
    """base64 of the event's sample, or empty."""
    evidence_version: int
    verified: bool = False
    """True when an analyst has found that it was the person."""

    def feature(self, name: str, neutral: float) -> float:
        """One of the 15 features; `neutral` when it was not handed back or rests on a simulated value."""
        return neutral if not self.features or name in self.simulated else self.features[_AT[name]]


class Evidence(NamedTuple):
    """What this process remembers of an event that is on its way through the pipeline."""

    seen: Observation
    """Without its keystrokes and pointer movement."""
    accepted_at_s: float
    sample: Floats


@dataclass(slots=True)
class _Session:
    first_seen_s: float
    seconds: float
    tainted: bool

    def to_json(self) -> list[float]:
        return [self.first_seen_s, self.seconds, int(self.tainted)]


@dataclass(slots=True)
class Sessions:
    """The last sessions of a person by digest, and the count and mean length of all."""

    count: int = 0
    past_seconds: float = 0.0
    recent: OrderedDict[str, _Session] = field(default_factory=OrderedDict)

    @property
    def average_seconds(self) -> float:
        """Mean length of all sessions seen."""
        return (self.past_seconds + sum(s.seconds for s in self.recent.values())) / self.count if self.count else 0.0

    def see(self, name: str, at_s: float, *, threat: bool) -> None:
        """Note an event of a session."""
        session = self.recent.get(name)
        if session is None:
            session = self.recent[name] = _Session(at_s, 0.0, False)
            self.count += 1
            if len(self.recent) > _SESSIONS:
                _, gone = self.recent.popitem(last=False)
                self.past_seconds += gone.seconds
        session.seconds = max(session.seconds, at_s - session.first_seen_s)
        session.tainted = session.tainted or threat

    def is_tainted(self, name: str) -> bool:
        """True when an event of the session was judged a threat and nobody has cleared it."""
        session = self.recent.get(name)
        return session is not None and session.tainted

    def clear(self, name: str) -> None:
        """An analyst found that it was the person: the session may teach again."""
        if name in self.recent:
            self.recent[name].tainted = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, for storage."""
        return {
            "count": self.count,
            "past_seconds": self.past_seconds,
            "recent": {name: session.to_json() for name, session in self.recent.items()},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Sessions:
        """What `to_json` wrote."""
        recent = OrderedDict(
            (name, _Session(float(row[0]), float(row[1]), bool(row[2]))) for name, row in stored["recent"].items()
        )
        return cls(int(stored["count"]), float(stored["past_seconds"]), recent)


@dataclass(slots=True)
class Enrolment:
    """Which session is teaching an empty baseline."""

    session: str = ""
    """Digest of the session; empty before the first event."""
    device: float = NEUTRAL
    last_seen_s: float = 0.0


@dataclass(slots=True)
class PersonState:
    """Everything that is known of one person; `apply` is the only thing that changes it."""

    behavior: Profile = field(default_factory=Profile)
    context: ContextState = field(default_factory=ContextState)
    sessions: Sessions = field(default_factory=Sessions)
    enrolment: Enrolment = field(default_factory=Enrolment)
    risk_score: float = INITIAL_RISK
    last_threat_score: float = 0.0
    usual_score: float = INITIAL_RISK
    """Slow average of the scores of events judged normal."""
    anomaly_threshold: float = DEFAULT_THRESHOLD
    last_anomaly_s: float | None = None
    last_analysis_s: float | None = None
    learnt_position: int = 0
    """Place in the alert stream up to which results are in here."""
    erased_at_s: float = 0.0
    """When the person's behaviour was last erased: results of events accepted before are dropped."""

    @property
    def known_share(self) -> float:
        """How far the baseline is learnt, 0 to 1."""
        return min(1.0, max(self.behavior.typing_samples, self.behavior.mouse_samples) / SAMPLES_NEEDED)

    def apply(self, outcome: Outcome, evidence: Evidence | None, addresses: Addresses) -> bool:
        """Fold one result in, in the stream's order; a result that is in here already only adds what this process
        alone knows.

        Returns:
            True when the baseline learnt from the event.
        """
        if outcome.scored_at_s <= self.erased_at_s:
            return False
        session = digest(outcome.session_id)
        teaches = outcome.verified or self._may_teach(outcome, session)
        learnt = False
        if outcome.verified or outcome.position > self.learnt_position:
            sample = _sample(outcome, evidence)
            if teaches and sample is not None:
                self._anchor(outcome, session)
                self.behavior.learn(sample)
                learnt = True
            self._note(outcome, session)
        if teaches and evidence is not None:
            self.context.learn(evidence.seen, addresses, evidence.accepted_at_s)
        return learnt

    def _note(self, outcome: Outcome, session: str) -> None:
        if outcome.verified:
            self.sessions.clear(session)
            return
        self.risk_score += _RISK_SHARE * (outcome.score - self.risk_score)
        self.last_threat_score = outcome.score
        if outcome.level is Level.NORMAL:
            self.usual_score += _USUAL_SHARE * (outcome.score - self.usual_score)
        self.last_analysis_s = outcome.scored_at_s
        if outcome.score > self.anomaly_threshold:
            self.last_anomaly_s = outcome.scored_at_s
        threat = outcome.level >= Level.THREAT and (not self.behavior.enrolling or outcome.confidence >= _SURE)
        self.sessions.see(session, outcome.scored_at_s, threat=threat)
        self.learnt_position = outcome.position

    def _may_teach(self, outcome: Outcome, session: str) -> bool:
        # Simulated context is neutral here: it neither vouches for anybody nor speaks against them.
        if (
            outcome.feature("location_consistency", NEUTRAL) < 0.25
            or outcome.feature("failed_auth_ratio", 0.0) > 0.5
            or outcome.feature("privilege_escalation_attempt", 0.0) > 0.6
            or self.sessions.is_tainted(session)
        ):
            return False
        if self.behavior.enrolling:
            return self._may_enrol(outcome, session)
        # Two opinions: a score that the models got wrong must not move the baseline towards whoever is at work.
        fits = outcome.feature("user_behavior_score", NEUTRAL) <= _FITS_LEARNT
        return fits and outcome.level is Level.NORMAL and self.risk_score < _RISK_TO_LEARN

    def _may_enrol(self, outcome: Outcome, session: str) -> bool:
        surely_threat = outcome.level >= Level.THREAT and outcome.confidence >= _SURE
        if surely_threat or outcome.feature("user_behavior_score", 0.0) > _FITS:
            return False
        enrolment = self.enrolment
        if not enrolment.session:
            return True
        device = outcome.feature("device_fingerprint_hash", NEUTRAL)
        same_device = abs(device - enrolment.device) < 1e-6  # float32 on its way through the pipeline
        if session == enrolment.session:
            return same_device
        if (same_device and device != NEUTRAL) or outcome.feature("biometric_confidence", NEUTRAL) >= _STRONG_CHECK:
            return True
        if outcome.scored_at_s - enrolment.last_seen_s < _IDLE_S:
            return False
        self.behavior, self.enrolment = Profile(), Enrolment()
        return True

    def _anchor(self, outcome: Outcome, session: str) -> None:
        if not self.behavior.enrolling:
            return
        if not self.enrolment.session:
            self.enrolment.session = session
            self.enrolment.device = outcome.feature("device_fingerprint_hash", NEUTRAL)
        self.enrolment.last_seen_s = max(self.enrolment.last_seen_s, outcome.scored_at_s)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `behavioral_profiles.baseline_behavior`."""
        return {
            "version": STATE_VERSION,
            "behavior": self.behavior.to_json(),
            "context": self.context.to_json(),
            "sessions": self.sessions.to_json(),
            "enrolment": [self.enrolment.session, self.enrolment.device, self.enrolment.last_seen_s],
            "risk": [
                self.risk_score,
                self.usual_score,
                self.last_threat_score,
                self.last_anomaly_s,
                self.last_analysis_s,
            ],
            "learnt_position": self.learnt_position,
            "erased_at": self.erased_at_s,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], anomaly_threshold: float = DEFAULT_THRESHOLD) -> PersonState:
        """What `to_json` wrote. A baseline of another layout is enrolled anew; everything else is kept.

        Raises:
            KeyError, TypeError, ValueError: it is damaged or of another version.
        """
        if stored["version"] != STATE_VERSION:
            raise ValueError(
                f"the state has version {stored['version']}, not {STATE_VERSION}: erase the person's behaviour"
            )
        state = cls(anomaly_threshold=anomaly_threshold)
        if stored["behavior"].get("version") == EVIDENCE_VERSION:
            state.behavior = Profile.from_json(stored["behavior"])
            state.enrolment = Enrolment(*stored["enrolment"])
        state.context = ContextState.from_json(stored["context"])
        state.sessions = Sessions.from_json(stored["sessions"])
        state.risk_score, state.usual_score, state.last_threat_score = (float(value) for value in stored["risk"][:3])
        state.last_anomaly_s, state.last_analysis_s = stored["risk"][3:]
        state.learnt_position = int(stored["learnt_position"])
        state.erased_at_s = float(stored["erased_at"])
        return state


def _sample(outcome: Outcome, evidence: Evidence | None) -> Floats | None:
    """The event's sample, or None when it is gone or of another layout."""
    if evidence is not None:
        return evidence.sample
    if not outcome.sample or outcome.evidence_version != EVIDENCE_VERSION:
        return None
    packed = base64.b64decode(outcome.sample)
    if len(packed) != 4 * len(SLOTS):
        return None
    return np.frombuffer(packed, np.dtype("<f4")).astype(np.float32)
