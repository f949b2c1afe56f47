"""Bytes from `threat-events` to arrays, strictly: what is wrong is refused with its reason and harms no neighbour.

Each message is parsed alone; after that a whole batch is checked a column at a time, because a check in NumPy or over a
joined string costs a hundredth of the same check for each message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

CONTEXT_FIELDS = (
    "user_behavior_score",
    "network_activity",
    "authentication_patterns",
    "biometric_confidence",
    "threat_indicators",
    "session_duration",
    "device_fingerprint_hash",
    "location_consistency",
    "api_usage_anomaly",
    "data_access_risk",
    "typing_pattern_deviation",
    "mouse_dynamic_variance",
    "navigation_anomaly",
    "privilege_escalation_attempt",
    "failed_auth_ratio",
)
"""The document's 15 features in its order: the columns of `EventBatch.context`."""

SOURCES = frozenset({"behavioral", "network", "biometric", "authentication"})
"""Values of `source`."""

MAX_SESSION_SECONDS = 604_800
"""The contract's upper bound of `session_duration`: a week."""

_UPPER = {"threat_indicators": 10.0, "session_duration": float(MAX_SESSION_SECONDS)}
_UPPER_BOUNDS = np.array([[_UPPER.get(name, 1.0)] for name in CONTEXT_FIELDS])
_INTEGERS = ("threat_indicators", "session_duration")
_UUIDS = ("user_id", "event_id", "session_id", "organization_id", "correlation_id")
_EVIDENCE = ("sample", "baseline")
_OTHERS = ("timestamp", "source", "evidence_version", "simulated_features", "accepted_at_ms")
_FIELDS = _UUIDS + _OTHERS + _EVIDENCE + CONTEXT_FIELDS
_PICK = itemgetter(*_FIELDS)

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UUID_LENGTH = 36
_UUID_SHAPE = b"00000000-0000-0000-0000-000000000000"
_SHAPE_OF = bytes.maketrans(b"123456789abcdefABCDEF", b"0" * 21)
"""Maps a UUID to `_UUID_SHAPE`, and nothing else but itself to a zero or a hyphen."""
_MAX_TIMESTAMP_LENGTH = 40
_EPOCH_2000_MS = 946_684_800_000
_EPOCH_2200_MS = 7_258_118_400_000
_MAX_EVIDENCE = 1e9

MALFORMED = "malformed_json"
MISSING = "missing_field"
NOT_FINITE = "not_finite"
OUT_OF_RANGE = "out_of_range"
WRONG_SIZE = "wrong_size"
UNKNOWN_VERSION = "unknown_version"
TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class EvidenceLayout:
    """Sizes of the packed vectors for one `evidence_version`."""

    version: int
    sample_slots: int
    baseline_slots: int


@dataclass(frozen=True, slots=True)
class EventBatch:
    """N valid events as columns, in the order of their messages."""

    rows: NDArray[np.intp]
    """Index of each event's message in what was given to `deserialize`, ascending."""
    context: NDArray[np.float32]
    """[N, 15] in the order of `CONTEXT_FIELDS`."""
    sample: NDArray[np.float32]
    """[N, S], NaN where nothing was observed; read-only."""
    baseline: NDArray[np.float32]
    """[N, B], NaN where nothing is known; read-only."""
    accepted_at_ms: NDArray[np.int64]
    user_ids: Sequence[str]
    event_ids: Sequence[str]
    session_ids: Sequence[str]
    organization_ids: Sequence[str]
    correlation_ids: Sequence[str]
    timestamps: Sequence[str]
    simulated_features: Sequence[Sequence[str]]
    sample_texts: Sequence[str]
    """`sample` as it came, base64: what an alert hands back."""
    evidence_version: int

    def __len__(self) -> int:
        return len(self.event_ids)

    def take(self, indices: NDArray[np.intp]) -> EventBatch:
        """The events at `indices`, in that order."""
        chosen = indices.tolist()

        def column(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in chosen]

        return EventBatch(
            rows=self.rows[indices],
            context=self.context[indices],
            sample=self.sample[indices],
            baseline=self.baseline[indices],
            accepted_at_ms=self.accepted_at_ms[indices],
            user_ids=column(self.user_ids),
            event_ids=column(self.event_ids),
            session_ids=column(self.session_ids),
            organization_ids=column(self.organization_ids),
            correlation_ids=column(self.correlation_ids),
            timestamps=column(self.timestamps),
            simulated_features=column(self.simulated_features),
            sample_texts=column(self.sample_texts),
            evidence_version=self.evidence_version,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the message at `row` cannot be scored. `detail` names fields and bounds, never the message's content."""

    row: int
    reason: str
    detail: str


def deserialize(
    messages: Sequence[tuple[bytes | None, bytes | None]], layout: EvidenceLayout, max_bytes: int = 65_536
) -> tuple[EventBatch, list[Refusal]]:
    """Parse and check (key, value) pairs: the valid events, and a refusal for each of the others."""
    sieve = _Sieve(len(messages))
    parsed = [_parse(row, key, value, max_bytes, sieve) for row, (key, value) in enumerate(messages)]
    rows = [row for row, fields in enumerate(parsed) if fields is not None]
    records = [fields for fields in parsed if fields is not None]
    if not records:
        return _empty(layout), sieve.refusals()
    columns = dict(zip(_FIELDS, zip(*records, strict=True), strict=True))
    check = sieve.at(rows)
    for name in _UUIDS:
        check(_uuids(columns[name]), MALFORMED, f"{name} is not a UUID")
    check(_keys_match(messages, rows, columns["user_id"]), MALFORMED, "the message's key is not its user_id")
    check(_each(columns["timestamp"], _is_utc_time), MALFORMED, "timestamp is not ISO 8601 with an offset")
    check(_members(columns["source"]), OUT_OF_RANGE, f"source is none of {', '.join(sorted(SOURCES))}")
    check(
        _each(columns["simulated_features"], _is_simulated), OUT_OF_RANGE, "simulated_features names no known feature"
    )
    check(_versions(columns["evidence_version"], layout), UNKNOWN_VERSION, f"evidence_version is not {layout.version}")
    accepted = _instants(columns["accepted_at_ms"])
    check(accepted >= 0, OUT_OF_RANGE, "accepted_at_ms is not a time in milliseconds since the epoch")
    context = _context([columns[name] for name in CONTEXT_FIELDS], check)
    sample = _evidence("sample", columns["sample"], layout.sample_slots, check)
    baseline = _evidence("baseline", columns["baseline"], layout.baseline_slots, check)
    batch = EventBatch(
        rows=np.array(rows, np.intp),
        context=context,
        sample=sample,
        baseline=baseline,
        accepted_at_ms=accepted,
        user_ids=columns["user_id"],
        event_ids=columns["event_id"],
        session_ids=columns["session_id"],
        organization_ids=columns["organization_id"],
        correlation_ids=columns["correlation_id"],
        timestamps=columns["timestamp"],
        simulated_features=columns["simulated_features"],
        sample_texts=columns["sample"],
        evidence_version=layout.version,
    )
    passed = sieve.passed(rows)
    return (batch if passed.all() else batch.take(np.flatnonzero(passed))), sieve.refusals()


class _Sieve:
    """Collects refusals: the first reason for a message counts."""

    def __init__(self, size: int) -> None:
        self._refused: dict[int, Refusal] = {}
        self._size = size

    def refuse(self, row: int, reason: str, detail: str) -> None:
        self._refused.setdefault(row, Refusal(row, reason, detail))

    def at(self, rows: Sequence[int]) -> Check:
        """A check that refuses `rows[i]` wherever the i-th verdict is false."""

        def check(verdicts: NDArray[np.bool_], reason: str, detail: str) -> None:
            if not verdicts.all():
                for index in np.flatnonzero(~verdicts).tolist():
                    self.refuse(rows[index], reason, detail)

        return check

    def passed(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        if not self._refused:
            return np.ones(len(rows), np.bool_)
        return np.fromiter((row not in self._refused for row in rows), np.bool_, len(rows))

    def refusals(self) -> list[Refusal]:
        return [self._refused[row] for row in sorted(self._refused)]


Check = Callable[[NDArray[np.bool_], str, str], None]


def _parse(row: int, _key: bytes | None, value: bytes | None, max_bytes: int, sieve: _Sieve) -> tuple[Any, ...] | None:
    if value is None or len(value) > max_bytes:
        reason, detail = (MALFORMED, "no value") if value is None else (TOO_LARGE, f"over {max_bytes} bytes")
        sieve.refuse(row, reason, detail)
        return None
    try:
        record = orjson.loads(value)
        picked: tuple[Any, ...] = _PICK(record)
    except orjson.JSONDecodeError:
        sieve.refuse(row, MALFORMED, "not JSON in UTF-8")
    except KeyError as missing:
        sieve.refuse(row, MISSING, f"{missing.args[0]} is missing")
    except (TypeError, IndexError):
        sieve.refuse(row, MALFORMED, "not a JSON object")
    else:
        return picked
    return None


def _each(column: Iterable[Any], predicate: Callable[[Any], bool]) -> NDArray[np.bool_]:
    return np.fromiter(map(predicate, column), np.bool_)


def _uuids(column: Sequence[Any]) -> NDArray[np.bool_]:
    """Whether each value is a UUID in text. The whole column is looked at at once; the exact check runs only when that
    fails."""
    if set(map(type, column)) == {str} and set(map(len, column)) == {_UUID_LENGTH}:
        joined = "".join(column)
        if joined.isascii() and joined.encode().translate(_SHAPE_OF) == _UUID_SHAPE * len(column):
            return np.ones(len(column), np.bool_)
    return _each(column, lambda value: type(value) is str and _UUID.fullmatch(value) is not None)


def _keys_match(
    messages: Sequence[tuple[bytes | None, bytes | None]], rows: Sequence[int], user_ids: Sequence[Any]
) -> NDArray[np.bool_]:
    """A user's events must share a partition, or their order and their window are lost: the key has to be the user."""
    keys = [messages[row][0] for row in rows]
    try:
        if b"".join(key or b"" for key in keys) == "".join(user_ids).encode() and None not in keys:
            return np.ones(len(rows), np.bool_)
    except (TypeError, UnicodeEncodeError):
        pass  # a user_id that is no text: told apart below
    return _each(zip(keys, user_ids, strict=True), lambda pair: _key_matches(*pair))


def _key_matches(key: bytes | None, user_id: object) -> bool:
    return key is not None and isinstance(user_id, str) and key == user_id.encode("utf-8", "surrogatepass")


def _is_utc_time(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _MAX_TIMESTAMP_LENGTH or value[10:11] != "T":
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_simulated(value: object) -> bool:
    if type(value) is not list:
        return False
    return not value or all(type(name) is str and name in CONTEXT_FIELDS for name in value)


def _members(column: Sequence[Any]) -> NDArray[np.bool_]:
    if set(map(type, column)) == {str} and SOURCES.issuperset(column):
        return np.ones(len(column), np.bool_)
    return _each(column, lambda value: type(value) is str and value in SOURCES)


def _versions(column: Sequence[Any], layout: EvidenceLayout) -> NDArray[np.bool_]:
    if set(map(type, column)) == {int} and set(column) == {layout.version}:
        return np.ones(len(column), np.bool_)
    return _each(column, lambda value: type(value) is int and value == layout.version)


def _instants(column: Sequence[Any]) -> NDArray[np.int64]:
    """[N] milliseconds; -1 where the value is none between the years 2000 and 2200."""
    return np.fromiter(
        (v if type(v) is int and _EPOCH_2000_MS <= v < _EPOCH_2200_MS else -1 for v in column), np.int64, len(column)
    )


def _context(columns: Sequence[Sequence[Any]], check: Check) -> NDArray[np.float32]:
    """[N, 15]; rows with anything but finite numbers in range are refused and hold zeros."""
    numbers = [_numbers(name, column, check) for name, column in zip(CONTEXT_FIELDS, columns, strict=True)]
    values = np.array(numbers, np.float64)
    inside = (values >= 0) & (values <= _UPPER_BOUNDS)
    if not inside.all():
        finite = np.isfinite(values)
        check(np.asarray(finite.all(axis=0)), NOT_FINITE, "a feature is not finite")
        for name, fine, bound in zip(CONTEXT_FIELDS, inside | ~finite, _UPPER_BOUNDS[:, 0], strict=True):
            check(fine, OUT_OF_RANGE, f"{name} is not in 0 to {bound:g}")
        values[~inside] = 0.0
    return np.ascontiguousarray(values.T, np.float32)


def _numbers(name: str, column: Sequence[Any], check: Check) -> Sequence[float]:
    """The column, with 0 in place of what is no number."""
    types = set(map(type, column))
    if not types <= {int, float}:
        check(_each(column, lambda value: type(value) in {int, float}), MALFORMED, f"{name} is not a number")
        column = [value if type(value) in {int, float} else 0 for value in column]
    if name in _INTEGERS and types != {int}:
        check(_each(column, lambda value: type(value) is int), MALFORMED, f"{name} is not an integer")
    return column


def _evidence(name: str, column: Sequence[Any], slots: int, check: Check) -> NDArray[np.float32]:
    """[N, slots] from base64; a refused row holds zeros."""
    size = slots * 4
    decoded = [_decode(value) for value in column]
    if set(map(len, decoded)) != {size}:
        check(_each(decoded, lambda data: data is not _UNDECODED), MALFORMED, f"{name} is not base64")
        check(_each(decoded, lambda data: len(data) == size), WRONG_SIZE, f"{name} has not {slots} values of 4 bytes")
        decoded = [data if len(data) == size else bytes(size) for data in decoded]
    values = np.frombuffer(b"".join(decoded), "<f4").reshape(len(column), slots)
    # Neither NaN nor anything else within bounds is beyond them, so that one look finds both kinds of fault.
    beyond = np.abs(values) > _MAX_EVIDENCE
    if beyond.any():
        check(~np.isinf(values).any(axis=1), NOT_FINITE, f"{name} holds an infinite value")
        check(~beyond.any(axis=1), OUT_OF_RANGE, f"{name} holds a value over {_MAX_EVIDENCE:g}")
    return values


_UNDECODED = b"\0\0"
"""What `_decode` gives for something else than base64: of no valid size, and told apart by identity."""


def _decode(value: object) -> bytes:
    try:
        return pybase64.b64decode(value, validate=True)  # type: ignore[arg-type] # of another type: TypeError
    except (ValueError, TypeError):
        return _UNDECODED


def _empty(layout: EvidenceLayout) -> EventBatch:
    return EventBatch(
        rows=np.empty(0, np.intp),
        context=np.empty((0, len(CONTEXT_FIELDS)), np.float32),
        sample=np.empty((0, layout.sample_slots), np.float32),
        baseline=np.empty((0, layout.baseline_slots), np.float32),
        accepted_at_ms=np.empty(0, np.int64),
        user_ids=(),
        event_ids=(),
        session_ids=(),
        organization_ids=(),
        correlation_ids=(),
        timestamps=(),
        simulated_features=(),
        sample_texts=(),
        evidence_version=layout.version,
    )
