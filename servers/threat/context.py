"""What is usual for a person besides typing and mouse: places, networks, devices, views, rates and rights.

Everything here is learnt from events that were judged the person's own, is bounded in size and holds digests in place
of names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from servers.threat.habits import Familiar, Level, Paths, digest
from servers.threat.observations import Access, Operation
from servers.threat.places import NEUTRAL, AddressKind, PlaceHistory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from servers.threat.observations import Authentication, Context, Observation
    from servers.threat.places import Addresses

NOTHING: Final = 0.0
"""Value of a feature that counts evidence when there is none."""

_LEAST_EVENTS: Final = 5  # events before a level says anything
_LEAST_STEPS: Final = 20  # steps between views before a path says anything
_NEW: Final = 0.8  # novelty of a network or device never seen: people buy telephones and visit cafes
_RESOURCES: Final = 64
_NETWORKS: Final = 32
_DEVICES: Final = 16

# Risk of one access by what it does, before familiarity; deleting and exporting cannot be undone.
_OPERATION_RISK: Final = {
    Operation.READ: 0.02,
    Operation.WRITE: 0.08,
    Operation.DELETE: 0.30,
    Operation.EXPORT: 0.40,
    Operation.PRIVILEGE: 0.40,
}
_SENSITIVE_FACTOR: Final = 2.0


class ContextScores(NamedTuple):
    """The document's context features of one event, each 0 to 1 (their meaning: `ThreatEventRecord`)."""

    network_activity: float = NEUTRAL
    authentication_patterns: float = NEUTRAL
    biometric_confidence: float = NEUTRAL
    device_fingerprint_hash: float = NEUTRAL
    device_novelty: float = NEUTRAL
    location_consistency: float = NEUTRAL
    api_usage_anomaly: float = NOTHING
    data_access_risk: float = NOTHING
    navigation_anomaly: float = NOTHING
    privilege_escalation_attempt: float = NOTHING
    failed_auth_ratio: float = NOTHING


@dataclass(slots=True)
class ContextState:
    """What is usual for one person. `score` reads it, `learn` changes it."""

    places: PlaceHistory = field(default_factory=PlaceHistory)
    networks: Familiar = field(default_factory=lambda: Familiar(_NETWORKS))
    devices: Familiar = field(default_factory=lambda: Familiar(_DEVICES))
    resources: Familiar = field(default_factory=lambda: Familiar(_RESOURCES))
    paths: Paths = field(default_factory=Paths)
    calls: Level = field(default_factory=Level)
    """Calls a minute, as log(1 + rate)."""
    sign_ins: Level = field(default_factory=Level)
    """Sign-ins over 24 hours, as log(1 + count)."""

    def score(self, seen: Observation, addresses: Addresses, now_s: float) -> ContextScores:
        """The context features of an event, without learning from it."""
        context = seen.context
        kind = addresses.kind(context.ip_address)
        signed_in = context.authentication
        return ContextScores(
            network_activity=self._novelty(self.networks, _network_of(context, addresses)),
            authentication_patterns=self._sign_in_anomaly(signed_in),
            biometric_confidence=_biometric(signed_in),
            device_fingerprint_hash=fingerprint_hash(context.device),
            device_novelty=self._novelty(self.devices, digest(context.device) if context.device else ""),
            location_consistency=self.places.consistency(context.place, kind, now_s),
            api_usage_anomaly=self._call_anomaly(seen.calls_per_minute),
            data_access_risk=self._access_risk(seen.accesses),
            navigation_anomaly=self.paths.anomaly(seen.views, _LEAST_STEPS) or NOTHING,
            privilege_escalation_attempt=self._privilege(seen.accesses),
            failed_auth_ratio=_failed_ratio(signed_in),
        )

    def learn(self, seen: Observation, addresses: Addresses, now_s: float) -> None:
        """Take an event that was judged the person's own into what is usual; simulated fields teach nothing."""
        context, simulated = seen.context, seen.context.simulated
        kind = addresses.kind(context.ip_address)
        if not simulated & {"location", "ip_address"}:
            self.places.learn(context.place, kind, now_s)
        network = _network_of(context, addresses)
        if network and not simulated & {"ip_address", "network_fingerprint"}:
            self.networks.learn(network)
        if context.device and "device_fingerprint" not in simulated:
            self.devices.learn(digest(context.device))
        if context.authentication is not None and "authentication" not in simulated:
            self.sign_ins.learn(math.log1p(context.authentication.attempts))
        for access in seen.accesses:
            self.resources.learn(_access_name(access))
        self.calls.learn(math.log1p(seen.calls_per_minute))
        self.paths.learn(seen.views)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for storage."""
        return {
            "places": self.places.to_json(),
            "networks": self.networks.counts,
            "devices": self.devices.counts,
            "resources": self.resources.counts,
            "paths": self.paths.to_json(),
            "calls": self.calls.to_json(),
            "sign_ins": self.sign_ins.to_json(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ContextState:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        return cls(
            places=PlaceHistory.from_json(stored["places"]),
            networks=Familiar.from_json(_NETWORKS, stored["networks"]),
            devices=Familiar.from_json(_DEVICES, stored["devices"]),
            resources=Familiar.from_json(_RESOURCES, stored["resources"]),
            paths=Paths.from_json(stored["paths"]),
            calls=Level.from_json(stored["calls"]),
            sign_ins=Level.from_json(stored["sign_ins"]),
        )

    @staticmethod
    def _novelty(known: Familiar, name: str) -> float:
        """0.5 when nothing is known, 0.8 for something new, falling towards 0 the more often it was seen."""
        if not name or not known.counts:
            return NEUTRAL
        seen = known.count(name)
        return 0.3 / seen if seen else _NEW

    def _sign_in_anomaly(self, signed_in: Authentication | None) -> float:
        if signed_in is None or signed_in.attempts == 0:
            return NEUTRAL
        failures = min(signed_in.failed, signed_in.attempts) / (signed_in.attempts + 2.0)
        excess = 0.0
        if self.sign_ins.count >= _LEAST_EVENTS:
            excess = 1.0 - math.exp(-self.sign_ins.excess(math.log1p(signed_in.attempts), 0.4) / 3.0)
        return 1.0 - (1.0 - failures) * (1.0 - excess)

    def _call_anomaly(self, calls_per_minute: float) -> float:
        if self.calls.count < _LEAST_EVENTS:
            return NOTHING
        far = self.calls.distance(math.log1p(calls_per_minute), 0.3)
        return 1.0 - math.exp(-0.5 * (max(0.0, far - 1.0) / 2.0) ** 2)

    def _access_risk(self, accesses: Sequence[Access]) -> float:
        safe = 1.0
        for access in accesses:
            if not access.count:
                continue
            risk = _OPERATION_RISK[access.operation] * (1.0 + math.log10(access.count))
            risk *= _SENSITIVE_FACTOR if access.sensitive else 1.0
            # What somebody does every day is a quarter as telling; it never becomes harmless.
            risk *= 0.25 + 0.75 / (1.0 + self.resources.count(_access_name(access)))
            safe *= 1.0 - min(0.9, risk)
        return 1.0 - safe

    def _privilege(self, accesses: Sequence[Access]) -> float:
        attempts = 0.0
        for access in accesses:
            if access.operation is Operation.PRIVILEGE and access.count:
                usual = self.resources.count(_access_name(access))
                attempts += (1.0 + math.log2(access.count)) / (1.0 + usual)
        return 1.0 - math.exp(-attempts)


def fingerprint_hash(fingerprint: str) -> float:
    """A device fingerprint as a stable number from 0 to 1 (an identifier, not a measure); 0.5 when there is none."""
    if not fingerprint:
        return NEUTRAL
    return int.from_bytes(blake2b(fingerprint.encode(), digest_size=6).digest()) / 2**48


def _network_of(context: Context, addresses: Addresses) -> str:
    """A digest of the network's fingerprint, else of the address's network; empty when neither says anything."""
    if context.network:
        return digest(context.network)
    if addresses.kind(context.ip_address) is not AddressKind.PUBLIC:
        return ""
    return digest(addresses.network(context.ip_address))


def _access_name(access: Access) -> str:
    return f"{access.operation.value}{digest(access.resource)}"


def _biometric(signed_in: Authentication | None) -> float:
    if signed_in is None or signed_in.biometric_confidence is None:
        return NEUTRAL
    return signed_in.biometric_confidence


def _failed_ratio(signed_in: Authentication | None) -> float:
    if signed_in is None or signed_in.attempts == 0:
        return NOTHING
    return min(1.0, signed_in.failed / signed_in.attempts)
