"""One observation of a person at work, as the domain sees it, and the rules that a message's field rules cannot
express.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.threat.behavior import KeystrokeRun, MousePath

MAX_SKEW_S: Final = 300.0
"""How far an event's timestamp may be from the server's clock, either way (errors.proto, ERROR_REASON_CLOCK_SKEW)."""

_MAX_STROKE_MS: Final = 600_000
_MAX_PIXELS: Final = 100_000
_MAX_HOLD_MS: Final = 10_000.0
_MAX_FLIGHT_MS: Final = 60_000.0


class Operation(IntEnum):
    """What was done to a resource; numbers as `AccessOperation` in behavior.proto."""

    READ = 1
    WRITE = 2
    DELETE = 3
    EXPORT = 4
    PRIVILEGE = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device is said to be, WGS 84."""

    latitude: float
    """Degrees north, -90 to 90."""
    longitude: float
    """Degrees east, -180 to 180."""
    accuracy_km: float
    """Radius within which it is right; 0 when not known."""
    country: str
    """ISO 3166-1 alpha-2, or empty."""
    anonymizer: bool
    """True for a VPN or proxy exit."""


@dataclass(frozen=True, slots=True)
class Authentication:
    """What sign-in saw over the last 24 hours."""

    failed: int
    attempts: int
    biometric_confidence: float | None
    """0 to 1, or None when there was no check."""
    last_success_s: float | None
    """Seconds since the Unix epoch, or None."""


@dataclass(frozen=True, slots=True)
class Access:
    """Accesses of one kind to one kind of resource since the last event."""

    resource: str
    operation: Operation
    count: int
    sensitive: bool


@dataclass(frozen=True, slots=True)
class Context:
    """Where and with what a person works. Empty strings and None mean unknown."""

    ip_address: str = ""
    place: Place | None = None
    device: str = ""
    network: str = ""
    authentication: Authentication | None = None
    simulated: frozenset[str] = frozenset()
    """Names of context fields that are simulated."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One event: what a person did since their last one."""

    event_id: str
    """UUID in lower case."""
    user_id: str
    """UUID in lower case."""
    session_id: str
    """UUID in lower case."""
    correlation_id: str
    """UUID that follows the event through every service."""
    source: str
    """"behavioral", "network", "biometric" or "authentication"."""
    occurred_at_s: float
    """Seconds since the Unix epoch, by the sender's clock."""
    runs: Sequence[KeystrokeRun]
    paths: Sequence[MousePath]
    views: Sequence[str]
    session_seconds: int
    calls_per_minute: float
    accesses: Sequence[Access]
    context: Context


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one field of an observation; never its value."""

    field: str
    """Path below `event_data`."""
    description: str
    rule: str
    """The broken rule, machine-readable."""


def clock_skew(occurred_at_s: float, now_s: float) -> float:
    """Seconds by which a timestamp is outside what the service takes: 0 when it is within, NaN-safe.

    A timestamp that is not a number counts as infinitely far away.
    """
    distance = abs(occurred_at_s - now_s)
    if distance <= MAX_SKEW_S:
        return 0.0
    return distance - MAX_SKEW_S if distance == distance else float("inf")  # noqa: PLR0124 - NaN is the one value unequal to itself


def stroke_problem(
    time_ms: Sequence[int], x_px: Sequence[int], y_px: Sequence[int], actions: Sequence[int]
) -> str | None:
    """What is wrong with the columns of a stretch of pointer movement, or None."""
    if not len(time_ms) == len(x_px) == len(y_px) == len(actions):
        return "columns must have the same number of items"
    if time_ms[0] != 0 or time_ms[-1] > _MAX_STROKE_MS:
        return "time_ms must start at 0 and end at 600000 or before"
    if any(later < earlier for earlier, later in pairwise(time_ms)):
        return "time_ms must never fall"
    if any(not -_MAX_PIXELS <= pixel <= _MAX_PIXELS for column in (x_px, y_px) for pixel in (min(column), max(column))):
        return "x_px and y_px must be within 100000 of the first point"
    if max(actions) > 7 or min(actions) < 0:  # PointerAction's last value
        return "actions must be known values"
    return None


def keystroke_problem(
    key_classes: Sequence[int], hold_ms: Sequence[float], flight_ms: Sequence[float], touch: Sequence[Sequence[float]]
) -> str | None:
    """What is wrong with the columns of a run of keystrokes, or None. `touch` holds pressure and contact size, either
    may be empty.
    """
    if not len(key_classes) == len(hold_ms) == len(flight_ms):
        return "columns must have the same number of items"
    if max(key_classes) > 9 or min(key_classes) < 0:  # KeyClass's last value
        return "key_classes must be known values"
    # Comparisons with NaN are false, so these refuse it as well.
    if not all(0.0 <= hold <= _MAX_HOLD_MS for hold in hold_ms):
        return "hold_ms must be numbers from 0 to 10000"
    if not all(0.0 <= flight <= _MAX_FLIGHT_MS for flight in flight_ms):
        return "flight_ms must be numbers from 0 to 60000"
    for column in touch:
        if column and (len(column) != len(hold_ms) or not all(0.0 <= value <= 1.0 for value in column)):
            return "pressure and contact_size must be numbers from 0 to 1, one for each key or none"
    return None
