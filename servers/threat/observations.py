"""One observation of a person at work, as the domain sees it, and the rules that a message's field rules cannot
express.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from servers.threat import keystrokes, movement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.threat.behavior import KeystrokeRun, MousePath

MAX_SKEW_S: Final = 300.0
"""How far an event's timestamp may be from the server's clock, either way (errors.proto, ERROR_REASON_CLOCK_SKEW)."""


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


class Context(NamedTuple):
    """Where and with what a person works. Empty strings and None mean unknown."""

    ip_address: str = ""
    place: Place | None = None
    device: str = ""
    network: str = ""
    authentication: Authentication | None = None
    simulated: frozenset[str] = frozenset()
    """Names of context fields that are simulated."""


@dataclass(slots=True)
class Observation:
    """One event: what a person did since their last one. `runs` and `paths` are emptied once they are described."""

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


_STROKE_PROBLEMS: Final = {
    movement.UNEVEN_COLUMNS: "columns must have the same number of items",
    movement.TIME_RANGE: "time_ms must start at 0 and end at 600000 or before",
    movement.TIME_FALLS: "time_ms must never fall",
    movement.PIXEL_RANGE: "x_px and y_px must be within 100000 of the first point",
    movement.UNKNOWN_ACTION: "actions must be known values",
}
_KEYSTROKE_PROBLEMS: Final = {
    keystrokes.UNEVEN_COLUMNS: "columns must have the same number of items",
    keystrokes.UNKNOWN_CLASS: "key_classes must be known values",
    keystrokes.HOLD_RANGE: "hold_ms must be numbers from 0 to 10000",
    keystrokes.FLIGHT_RANGE: "flight_ms must be numbers from 0 to 60000",
    keystrokes.TOUCH_RANGE: "pressure and contact_size must be numbers from 0 to 1, one for each key or none",
}


def stroke_problem(path: MousePath) -> str | None:
    """What is wrong with the columns of a stretch of pointer movement, or None."""
    return _STROKE_PROBLEMS.get(movement.stroke_fault(path.time_ms, path.x_px, path.y_px, path.actions))


def keystroke_problem(run: KeystrokeRun) -> str | None:
    """What is wrong with the columns of a run of keystrokes, or None. Pressure and contact size may be empty."""
    fault = keystrokes.keystroke_fault(run.key_classes, run.hold_ms, run.flight_ms, run.pressure, run.contact_size)
    return _KEYSTROKE_PROBLEMS.get(fault)
