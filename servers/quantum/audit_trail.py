"""The audit trail's one writer in a process: group commit of records, each with the change that it speaks of.

Callers that come while a transaction runs share the next one, so that a record costs a fraction of a disk flush. The
chains' heads are locked first in every transaction: several processes can write, and no chain forks or has a gap.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import psycopg
from psycopg import AsyncConnection

from servers.mesh.audit import audit_unavailable
from servers.quantum import audit_store
from servers.quantum.audit_chain import HASH_BYTES, object_hash, plain_data, plain_text, timestamp_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from servers.mesh.context import AuditNotes

    Connection = AsyncConnection[tuple[Any, ...]]
    Change = Callable[[Connection], Awaitable[Any]]
    InTransaction = Callable[[Connection, Sequence[Mapping[str, Any]]], Awaitable[None]]

T = TypeVar("T")
_log = logging.getLogger(__name__)

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RESULTS: Final = frozenset({"success", "failure", "partial"})
_CONNECT_SECONDS: Final = 3
_LATER_SECONDS: Final = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_CROWD: Final = 4
"""Records in the last transaction from which on the next waits for more."""
_GATHER_STEP: Final = 0.0007
"""Seconds after which nobody is waited for when nobody came."""
_MOST_REASON, _MOST_MESSAGE, _MOST_AGENT, _MOST_NAME, _MOST_HSM_ID = 64, 512, 512, 100, 255
_MOST_MILLISECONDS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What a record says, before it has its place in the chain. Ids are UUIDs in either case."""

    operation: str
    """Label of the contract's `QuantumOperation` in lower case: "keygen"."""
    organization_id: str
    correlation_id: str
    service_id: str
    """The calling workload's name."""
    result: str = "success"
    """"success", "failure" or "partial"."""
    key_id: str = ""
    user_id: str = ""
    source_ip: str = ""
    user_agent: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
    """Particulars: text, integers, booleans, None, lists, dicts; at most 4 KiB; nothing personal, nothing secret."""
    processing_time_ms: int = 0
    reason: str = ""
    """Name of the `ErrorReason`; empty on success."""
    message: str = ""
    """What was wrong; empty on success."""
    hsm_operation_id: str = ""
    occurred_at: datetime | None = None
    """With time zone; None: now."""
    notes: AuditNotes | None = field(default=None, compare=False)
    """Notes of the call that the entry records; they are marked as recorded when it is durable."""
    audit_id: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(slots=True, eq=False)
class _Item:
    """A record on its way."""

    record: dict[str, Any]
    change: Change | None
    notes: AuditNotes | None
    unless_recorded: bool
    done: asyncio.Future[Any] | None
    gives_up: float
    value: Any = None

    @property
    def over(self) -> bool:
        """Nobody waits for it any more, or it has its answer."""
        return self.done.done() if self.done is not None else time.monotonic() > self.gives_up

    def settle(self) -> None:
        if self.notes is not None:
            self.notes.recorded = True
        if self.done is not None and not self.done.done():
            self.done.set_result(self.value)

    def fail(self, error: BaseException) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)


class AuditTrail:
    """Writes records. `run` must run as one of the service's tasks; nothing is written without it.

    Args:
        dsn: the quantum database, as the service's own role.
        batch: records in one transaction at most. Hashing takes the event loop about 20 us a record.
        queue: records that wait at most; more are refused.
        within_seconds: time that a caller waits for its record at most.
        gather_seconds: time that a transaction waits at most for more records, while many callers come.
        in_transaction: called in every transaction with the records just written (as the objects that were hashed),
            for what must be counted exactly; None: nothing.
    """

    def __init__(
        self,
        dsn: str,
        *,
        batch: int = 128,
        queue: int = 4096,
        within_seconds: float = 3.0,
        gather_seconds: float = 0.005,
        in_transaction: InTransaction | None = None,
    ) -> None:
        self._dsn = dsn
        self._batch = batch
        self._capacity = queue
        self._within = within_seconds
        self._gather_seconds = gather_seconds
        self._in_transaction = in_transaction
        self._listeners: list[Callable[[Mapping[str, int]], None]] = []
        self._queue: deque[_Item] = deque()
        self._wake = asyncio.Event()
        self._connection: Connection | None = None
        self.written = 0
        """Records written since the start."""
        self.transactions = 0
        """Transactions since the start."""

    @property
    def waiting(self) -> int:
        """Records that wait for a transaction."""
        return len(self._queue)

    def on_appended(self, listener: Callable[[Mapping[str, int]], None]) -> None:
        """Call `listener` after every transaction with the last sequence of each organisation that it wrote to; it must
        not block and not fail."""
        self._listeners.append(listener)

    @overload
    async def commit(self, entry: AuditEntry, change: None = None, *, unless_recorded: bool = False) -> None: ...
    @overload
    async def commit(
        self, entry: AuditEntry, change: Callable[[Connection], Awaitable[T]], *, unless_recorded: bool = False
    ) -> T: ...
    async def commit(self, entry: AuditEntry, change: Change | None = None, *, unless_recorded: bool = False) -> Any:
        """Write a record, and `change` in the same transaction: both are durable on return, or neither is.

        When the caller is cancelled before its transaction begins, nothing is written; later, both may be.

        Args:
            entry: the record.
            change: statements of the service's own, on the connection that it is given. It runs in a savepoint: what it
                raises is raised here, its record is not written, and others are not affected. It may be called again
                when the connection broke, so it must do nothing but SQL, and little of it: everybody waits meanwhile.
            unless_recorded: write nothing when the entry's notes say that the call's record is written already.

        Returns:
            What `change` returned.

        Raises:
            MeshError: AUDIT_UNAVAILABLE, the record could not be written in time or too many wait. Whether it was
                written after all is not known when the time ran out.
            ValueError: the entry is malformed (TypeError: its data cannot be recorded).
        """
        loop = asyncio.get_running_loop()
        item = self._enqueue(entry, change, unless_recorded=unless_recorded, done=loop.create_future())
        try:
            async with asyncio.timeout(self._within):
                return await item.done  # type: ignore[misc]  # made above
        except TimeoutError:
            if item.done is not None and not item.done.cancelled():
                raise  # the change's own
            raise audit_unavailable("the audit trail cannot be written at the moment") from None

    def write_later(self, entry: AuditEntry, *, unless_recorded: bool = False) -> None:
        """Write a record without waiting for it: it is given up after a minute. For calls that have failed already
        because the trail was away.

        Raises:
            MeshError: AUDIT_UNAVAILABLE, too many wait.
            ValueError: the entry is malformed.
        """
        self._enqueue(entry, None, unless_recorded=unless_recorded, done=None)

    async def run(self) -> None:
        """Write what is committed, until cancelled."""
        records = 0
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    if records >= _CROWD:
                        await self._gather()
                    records = min(self._batch, len(self._queue))
                    await self._write([self._queue.popleft() for _ in range(records)])
        finally:
            await self._disconnect()

    async def _gather(self) -> None:
        """Let more records join a transaction while they keep coming. It takes the event loop as long as some twenty
        records do, however many are in it; a caller alone never waits for others.
        """
        ends = time.monotonic() + self._gather_seconds
        while (waiting := len(self._queue)) < self._batch and time.monotonic() < ends:
            await asyncio.sleep(_GATHER_STEP)
            if len(self._queue) == waiting:
                return

    def _enqueue(
        self, entry: AuditEntry, change: Change | None, *, unless_recorded: bool, done: asyncio.Future[Any] | None
    ) -> _Item:
        if len(self._queue) >= self._capacity:
            raise audit_unavailable("too many audit records are waiting")
        gives_up = time.monotonic() + _LATER_SECONDS
        item = _Item(_record(entry), change, entry.notes, unless_recorded, done, gives_up)
        self._queue.append(item)
        self._wake.set()
        return item

    async def _write(self, batch: list[_Item]) -> None:
        """Write a batch, again and again while the database is away and somebody waits."""
        pause, doubtful = _FIRST_PAUSE, False
        while batch := [item for item in batch if not item.over]:
            try:
                async with asyncio.timeout(self._within):
                    await self._transact(await self._connected(), batch, doubtful=doubtful)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                await self._write_apart(batch, error)
            except (psycopg.OperationalError, OSError, TimeoutError) as error:
                _log.warning("the audit trail cannot be written", extra={"cause": type(error).__name__})
                doubtful = True  # the transaction may have been committed though nobody said so
                await self._disconnect()
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            except Exception as error:
                _log.exception("audit records cannot be written")
                await self._disconnect()
                for item in batch:
                    item.fail(_refused(error))
            return

    async def _write_apart(self, batch: list[_Item], error: psycopg.Error) -> None:
        """One record of the batch cannot be stored: the others must not suffer from it."""
        if len(batch) > 1:
            for item in batch:
                await self._write([item])
            return
        _log.error("an audit record cannot be stored", extra={"cause": type(error).__name__})
        batch[0].fail(_refused(error))

    async def _transact(self, connection: Connection, batch: list[_Item], *, doubtful: bool) -> None:
        organizations = {item.record["organization_id"] for item in batch}
        settled: list[_Item] = []
        moved: dict[str, tuple[int, bytes]] = {}
        async with connection.transaction():
            heads = await audit_store.lock_heads(connection, list(organizations))
            if doubtful:
                ids = [item.record["audit_id"] for item in batch]
                known = await audit_store.written(connection, ids, list(organizations))
                settled = [item for item in batch if item.record["audit_id"] in known]
            fresh = [item for item in batch if item not in settled] if settled else batch
            fresh = [item for item in fresh if await _changed(connection, item)]
            new = [item for item in fresh if not (item.unless_recorded and item.notes and item.notes.recorded)]
            if new:
                rows = _chain([item.record for item in new], heads, moved)
                await audit_store.append(connection, rows, moved)
                if self._in_transaction is not None:
                    await self._in_transaction(connection, [item.record for item in new])
        self.written += len(new)
        self.transactions += 1
        for item in (*settled, *fresh):
            item.settle()
        ends = {organization: head[0] for organization, head in moved.items()}
        for listener in self._listeners if ends else ():
            listener(ends)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            milliseconds = int(self._within * 1000)
            self._connection = await AsyncConnection.connect(
                self._dsn,
                connect_timeout=_CONNECT_SECONDS,
                application_name="behaviorguard-audit",
                tcp_user_timeout=milliseconds,
                # A process that stops in a transaction must not hold the chains' heads for ever.
                options=f"-c timezone=UTC -c statement_timeout={milliseconds}"
                f" -c idle_in_transaction_session_timeout={milliseconds}",
            )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _changed(connection: Connection, item: _Item) -> bool:
    """Run an item's change in a savepoint; False when its caller has its error, or has gone."""
    if item.over:
        return False
    if item.change is None:
        return True
    try:
        async with connection.transaction():
            item.value = await item.change(connection)
    except Exception as error:
        if connection.closed or connection.broken:
            raise
        item.fail(error)
        return False
    return True


def _chain(
    records: list[dict[str, Any]], heads: Mapping[str, tuple[int, bytes]], moved: dict[str, tuple[int, bytes]]
) -> list[str]:
    """Give records their places and hashes; returns their rows, and in `moved` where each chain then ends."""
    rows = []
    for record in records:
        organization_id = record["organization_id"]
        sequence, previous = moved.get(organization_id) or heads[organization_id]
        record["sequence"] = sequence + 1
        record["previous_hash"] = previous.hex()
        digest = object_hash(record)
        moved[organization_id] = (sequence + 1, digest)
        rows.append(audit_store.copy_row(record, digest))
    return rows


def _record(entry: AuditEntry) -> dict[str, Any]:
    """The entry as the object that is hashed, without a place yet.

    Raises:
        ValueError: it is malformed.
    """
    if entry.result not in _RESULTS:
        raise ValueError(f"{entry.result!r} is no result: give success, failure or partial")
    reason = entry.reason.partition(":")[0][:_MOST_REASON] or ("UNSPECIFIED" if entry.message else "")
    details = f"{reason}: {entry.message}" if entry.message else reason
    return {
        "audit_id": _uuid(entry.audit_id, "audit_id"),
        "correlation_id": _uuid(entry.correlation_id, "correlation_id"),
        "error_details": plain_text(details, _MOST_MESSAGE),
        "hsm_operation_id": plain_text(entry.hsm_operation_id, _MOST_HSM_ID),
        "key_id": _uuid(entry.key_id, "key_id") if entry.key_id else "",
        "operation": entry.operation,
        "operation_data": plain_data(entry.data),
        "operation_timestamp": timestamp_text(entry.occurred_at or datetime.now(UTC)),
        "organization_id": _uuid(entry.organization_id, "organization_id"),
        "previous_hash": "0" * 2 * HASH_BYTES,
        "processing_time_ms": min(_MOST_MILLISECONDS, max(0, entry.processing_time_ms)),
        "result": entry.result,
        "sequence": 0,
        "service_id": plain_text(entry.service_id, _MOST_NAME),
        "source_ip": _address(entry.source_ip) if entry.source_ip else "",
        "user_agent": plain_text(entry.user_agent, _MOST_AGENT),
        "user_id": _uuid(entry.user_id, "user_id") if entry.user_id else "",
    }


def _uuid(text: str, name: str) -> str:
    lower = text.lower()
    if _UUID.fullmatch(lower) is None:
        raise ValueError(f"an audit entry's {name} is not a UUID")
    return lower


def _address(text: str) -> str:
    """One form for each address; IPv4 inside IPv6 as IPv4, because languages and databases write it differently."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or IPv6Address(int(address))  # without its zone
    return str(address)


def _refused(error: Exception) -> Exception:
    refusal = audit_unavailable("the audit record cannot be stored")
    refusal.__cause__ = error
    return refusal
