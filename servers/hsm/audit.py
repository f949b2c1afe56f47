"""Audited calls in the journal."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from servers.hsm.modules import QuorumError
from servers.mesh.audit import LogAudit, audit_unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from servers.hsm.journal import Journal, Value
    from servers.mesh.audit import Outcome
    from servers.mesh.context import CallContext

CEREMONIES: Final = frozenset({"Initialize", "Unseal", "Seal", "ExportBackup", "RestoreBackup"})
USES: Final = frozenset({"Decrypt", "Sign"})
"""Uses of keys: the quantum service keeps a record of each, with our operation's number; ours go to the log."""
RECORDED: Final = frozenset({"GenerateKey", "DestroyKey"})
"""The journal holds their success already, written together with what they did."""

_REFUSALS_A_MINUTE: Final = 60


class JournalAudit:
    """Writes audited calls into the journal: every ceremony, opened channel and list, and what was refused.

    So many refusals a minute, of ceremonies and of other calls each, are written one by one; the rest is counted and
    written as one record, so that nobody fills the disks by being refused, nor hides an attempt at a ceremony so.
    """

    def __init__(self, journal: Journal, executor: Executor, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._executor = executor
        self._clock = clock
        self._log = LogAudit()
        self._minute_ends = 0.0
        self._refusals: Counter[bool] = Counter()

    async def record(self, call: CallContext, outcome: Outcome) -> None:
        """See `AuditSink`."""
        method = call.method.rpartition("/")[2]
        if method in USES or (method in RECORDED and outcome.success):
            await self._log.record(call, outcome)
            return
        records: list[tuple[str, dict[str, Value]]] = []
        suppressed = self._next_minute()
        if suppressed:
            records.append(("refusals", {"count": suppressed}))
        if outcome.success or self._has_room(ceremony=method in CEREMONIES):
            records.append(("call", _said(call, outcome, method)))
        if not records:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._journal.append_all, records)
        except QuorumError as error:
            raise audit_unavailable(str(error)) from error

    def _next_minute(self) -> int:
        """When a new minute begins: how many refusals of the last were not written."""
        now = self._clock()
        if now < self._minute_ends:
            return 0
        suppressed = sum(max(0, count - _REFUSALS_A_MINUTE) for count in self._refusals.values())
        self._minute_ends = now + 60.0
        self._refusals.clear()
        return suppressed

    def _has_room(self, *, ceremony: bool) -> bool:
        self._refusals[ceremony] += 1
        return self._refusals[ceremony] <= _REFUSALS_A_MINUTE


def _said(call: CallContext, outcome: Outcome, method: str) -> dict[str, Value]:
    said: dict[str, Value] = {
        "method": method,
        "caller": call.caller,
        "correlation_id": call.correlation_id,
        "outcome": outcome.code,
        "ms": int(outcome.seconds * 1000),
    }
    optional = {
        "reason": outcome.reason,
        "operation_id": call.audit.hsm_operation_id,
        "key_id": call.audit.key_id,
        "organization_id": call.audit.organization_id,
    }
    return said | {name: value for name, value in optional.items() if value}
