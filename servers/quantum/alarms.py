"""Alarms over the audit trail, counted in the transaction that writes the records.

The trail locks the organisation's chain while it writes, so that the process that writes the record which goes over a
threshold sees every record before it, whoever wrote them: the count is exact across processes, and an alarm sounds
once. Redis could only count approximately (a record may be refused after it was counted, a cache may be emptied).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from servers.quantum.business_hours import BusinessHours, stretches_of
from servers.quantum.security_events import Finding, raise_within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from psycopg import AsyncConnection

    Record = Mapping[str, Any]

_log = logging.getLogger(__name__)

KEY_REQUESTS: Final = frozenset({"keygen", "rotate", "rewrap", "revoke", "manage"})
"""Operations that are requests for keys: the calls of KeyService. Uses of a key (encrypt, sign) are none: the document
expects thousands of those a minute."""

_HOURS_BELIEVED_S: Final = 30.0
_REMEMBERED: Final = 10_000
_ANOTHER_ORGANIZATION: Final = "ERROR_REASON_SCOPE_NOT_ALLOWED: the request names another organisation"
_REASONS: Final[Mapping[str, str]] = {"ERROR_REASON_ENTROPY_FAILED": "entropy_failure"}
"""Reasons of failures that are security events, whoever reports them."""
_HSM_REASONS: Final[Mapping[str, str]] = {
    "REPLICA_REPAIRED": "replica_repaired",
    "HSM_TOKEN_REPLAY": "hsm_token_replay",
}
"""What only the HSM's own records say."""
_HSM: Final = "hsm"
_OWN: Final = "quantum"
"""Who does what nobody asked for: rotation by schedule, expiry, the platform's own keys."""

_COUNT: Final = """
SELECT count(*), (SELECT max(e.event_timestamp) FROM quantum_security.security_events e
                  WHERE e.organization_id = %(organization)s
                    AND e.event_type = %(kind)s::public.security_event_type_enum AND e.event_timestamp > %(since)s)
FROM quantum_audit.quantum_operations_log
WHERE organization_id = %(organization)s AND operation_timestamp > %(since)s AND """
_HOURS: Final = """
SELECT organization_id::text, time_zone, hours FROM quantum_security.business_hours
WHERE organization_id = ANY(%s::uuid[])
"""


@dataclass(frozen=True, slots=True)
class Threshold:
    """An alarm that counts records of an organisation."""

    kind: str
    """Kind of the security event."""
    most: int
    """So many within the window are fine; one more sounds the alarm."""
    window: timedelta
    counted: str
    """What is counted, as a condition of SQL that an index serves."""


KEYGEN_FAILURES: Final = Threshold(
    "key_generation_failures", 5, timedelta(minutes=1), "operation = 'keygen' AND result = 'failure'"
)
EXCESSIVE_REQUESTS: Final = Threshold(
    "excessive_key_requests",
    100,
    timedelta(hours=1),
    "operation IN ('keygen', 'rotate', 'rewrap', 'revoke', 'manage') AND service_id <> 'quantum'",
)


class Alarms:
    """Looks at records as they are written; give `check` to the trail."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hours: dict[str, tuple[float, BusinessHours | None]] = {}
        self._quiet: dict[tuple[str, str], datetime] = {}
        self._raised: set[tuple[str, str, str]] = set()

    async def check(self, connection: AsyncConnection[Any], records: Sequence[Record]) -> None:
        """Raise what the records give rise to, in their transaction. A fault here costs the alarm, not the records."""
        try:
            for threshold, counted in ((KEYGEN_FAILURES, _failed_keygen), (EXCESSIVE_REQUESTS, _key_request)):
                for record in _last_of_each(records, counted):
                    await self._count(connection, threshold, record)
            await self._look(connection, records)
        except Exception as error:
            if connection.closed or connection.broken:
                raise
            _log.exception("an alarm could not be checked", extra={"cause": type(error).__name__})

    async def _count(self, connection: AsyncConnection[Any], threshold: Threshold, record: Record) -> None:
        """Sound the alarm when the records within the window that ends with `record` are too many, once in a window."""
        organization_id, at = record["organization_id"], _moment(record)
        quiet_until = self._quiet.get((organization_id, threshold.kind))
        if quiet_until is not None and at < quiet_until:
            return
        wanted = {"organization": organization_id, "kind": threshold.kind, "since": at - threshold.window}
        async with connection.transaction():
            cursor = await connection.execute((_COUNT + threshold.counted).encode(), wanted)
            row = await cursor.fetchone()
            count, sounded = (int(row[0]), row[1]) if row else (0, None)
            if count > threshold.most and sounded is None:
                await raise_within(connection, _over(threshold, record, count))
                sounded = at
        if sounded is not None:
            _remember(self._quiet, (organization_id, threshold.kind), sounded + threshold.window)

    async def _look(self, connection: AsyncConnection[Any], records: Sequence[Record]) -> None:
        await self._load_hours(connection, records)
        for record in records:
            finding = self._unusual(record) or _of_its_reason(record)
            if finding is None:
                continue
            once = (finding.organization_id, finding.kind, finding.window)
            if once in self._raised:
                continue
            async with connection.transaction():
                await raise_within(connection, finding)
            if len(self._raised) >= _REMEMBERED:
                self._raised.clear()
            self._raised.add(once)

    async def _load_hours(self, connection: AsyncConnection[Any], records: Sequence[Record]) -> None:
        now = self._clock()
        asked = {record["organization_id"] for record in records if record["key_id"]}
        stale = [each for each in asked if self._hours.get(each, (0.0, None))[0] <= now]
        if not stale:
            return
        async with connection.transaction():
            cursor = await connection.execute(_HOURS, (stale,))
            found = {row[0]: _hours(row[1], row[2]) for row in await cursor.fetchall()}
        for each in stale:
            _remember(self._hours, each, (now + _HOURS_BELIEVED_S, found.get(each)))

    def _unusual(self, record: Record) -> Finding | None:
        """A key that was used while the organisation was closed: one event for each key and closed time."""
        hours = self._hours.get(record["organization_id"], (0.0, None))[1] if record["key_id"] else None
        if hours is None or record["result"] == "failure":
            return None
        at = _moment(record)
        closed = hours.closed_since(at)
        if closed is None:
            return None
        return Finding(
            "unusual_key_access",
            record["organization_id"],
            record["correlation_id"],
            at,
            {"operation": record["operation"], "closed_since": closed.isoformat(), "time_zone": hours.time_zone},
            key_id=record["key_id"],
            user_id=record["user_id"],
            window=f"{record['key_id']} {closed:%Y-%m-%dT%H:%MZ}",
        )


def _over(threshold: Threshold, record: Record, count: int) -> Finding:
    data = {"count": count, "threshold": threshold.most, "window_seconds": int(threshold.window.total_seconds())}
    return Finding(
        threshold.kind,
        record["organization_id"],
        record["correlation_id"],
        _moment(record),
        data,
        user_id=record["user_id"],
    )


def _of_its_reason(record: Record) -> Finding | None:
    """What a refusal itself gives rise to, once an hour for each person or service."""
    details = record["error_details"]
    if not details:
        return None
    reason = details.partition(":")[0]
    kind = "organization_violation" if details == _ANOTHER_ORGANIZATION else _REASONS.get(reason)
    if kind is None and record["service_id"] == _HSM:
        kind = _HSM_REASONS.get(reason)
    if kind is None:
        return None
    at = _moment(record)
    who = record["user_id"] or record["service_id"]
    data = {"operation": record["operation"], "service": record["service_id"]}
    return Finding(
        kind,
        record["organization_id"],
        record["correlation_id"],
        at,
        data,
        user_id=record["user_id"],
        window=f"{who} {at:%Y-%m-%dT%H}",
    )


def _failed_keygen(record: Record) -> bool:
    return bool(record["operation"] == "keygen" and record["result"] == "failure")


def _key_request(record: Record) -> bool:
    return record["operation"] in KEY_REQUESTS and record["service_id"] != _OWN


def _last_of_each(records: Sequence[Record], counted: Callable[[Record], bool]) -> list[Record]:
    """The last record of each organisation that is counted."""
    return list({record["organization_id"]: record for record in records if counted(record)}.values())


def _moment(record: Record) -> datetime:
    return datetime.fromisoformat(record["operation_timestamp"]).astimezone(UTC)


def _hours(time_zone: str, hours: Sequence[Any]) -> BusinessHours | None:
    try:
        return BusinessHours(time_zone, stretches_of(hours))
    except ValueError:
        _log.exception("an organisation's business hours cannot be read: no alarms about them until they are corrected")
        return None


def _remember(remembered: dict[Any, Any], key: Any, value: Any) -> None:
    if len(remembered) >= _REMEMBERED:
        remembered.clear()
    remembered[key] = value
