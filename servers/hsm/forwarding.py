"""Carries the journal's ceremonies and alarms into the platform's audit trail, when the quantum service is there.

At least once: after a crash a record may come twice, never not at all. The journal stays the source.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Final

from behaviorguard.quantum.v1 import audit_service_pb2 as pb
from behaviorguard.quantum.v1.audit_service_pb2_grpc import AuditServiceStub
from grpc import aio

from servers.hsm.audit import CEREMONIES
from servers.hsm.modules import QuorumError
from servers.mesh.errors import MeshError
from servers.mesh.interceptors import new_correlation_id
from servers.mesh.settings import DEFAULT_ORGANIZATION_ID

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor

    from servers.hsm.journal import Entry
    from servers.hsm.modules import Modules

_log = logging.getLogger(__name__)

POSITION: Final = "forwarded"
"""File in each module: number of the last record that the audit trail has."""
ALARMS: Final = {
    "repair": ("RepairReplica", "REPLICA_REPAIRED"),
    "replicas-lost": ("LoseReplicas", "ERROR_REASON_REPLICAS_DAMAGED"),
    "token-replay": ("ReplayToken", "HSM_TOKEN_REPLAY"),
    "entropy-failed": ("FailEntropy", "ERROR_REASON_ENTROPY_FAILED"),
}
"""Records that somebody should look at: name that the audit trail has for each, and its reason."""

_SERVICE: Final = "behaviorguard.hsm.v1.HsmService"
_BATCH: Final = 64
_WAITING: Final = 10_000


class AuditForwarder:
    """Sends records in their order, from where it stopped.

    Args:
        channel: to the quantum service.
        modules: keep the position.
        executor: threads that wait for disks.
        every_s: pause between two rounds.
    """

    def __init__(self, channel: aio.Channel, modules: Modules, executor: Executor, *, every_s: float) -> None:
        self._append = AuditServiceStub(channel).AppendAuditRecord
        self._modules = modules
        self._executor = executor
        self._every_s = every_s
        self._waiting: deque[Entry] = deque()
        self.dropped = 0
        """Records that found no room; the journal has them."""

    @property
    def waiting(self) -> int:
        """Records on their way."""
        return len(self._waiting)

    def resume(self, entries: Iterable[Entry]) -> None:
        """Begin with what the audit trail does not have yet."""
        position = self._position()
        for entry in entries:
            if entry.sequence > position:
                self.take(entry)

    def take(self, entry: Entry) -> None:
        """Take a new record; called in any thread."""
        if not _concerns(entry):
            return
        if len(self._waiting) >= _WAITING:
            self.dropped += 1
            return
        self._waiting.append(entry)

    async def run(self) -> None:
        """Forward what is there, again and again."""
        while True:
            await self.forward()
            await asyncio.sleep(self._every_s)

    async def forward(self) -> int:
        """Forward until nothing waits or the quantum service is away; returns how many records it took."""
        done = 0
        while self._waiting:
            taken = 0
            try:
                for entry in tuple(self._waiting)[:_BATCH]:
                    await self._append(request_of(entry))
                    taken += 1
            except (aio.AioRpcError, MeshError) as error:
                _log.debug("the audit trail takes no records", extra={"cause": type(error).__name__})
            if taken == 0:
                break
            await self._advance(taken)
            done += taken
        return done

    async def _advance(self, taken: int) -> None:
        last = [self._waiting.popleft() for _ in range(taken)][-1]
        position = str(last.sequence).encode()
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._modules.write, POSITION, position)
        except QuorumError:
            _log.warning("the position of the audit trail is not kept: records may come twice")

    def _position(self) -> int:
        found = [replica.content for replica in self._modules.read(POSITION, 32)]
        numbers = [int(content) for content in found if content is not None and content.isdigit()]
        return max(numbers, default=0)


def request_of(entry: Entry) -> pb.AppendAuditRecordRequest:
    """A journal's record as the audit trail takes it."""
    data = entry.data
    name, reason = ALARMS.get(entry.kind, (str(data.get("method", "")), str(data.get("reason", ""))))
    success = entry.kind == "call" and data.get("outcome") == "OK"
    request = pb.AppendAuditRecordRequest(
        method=f"{_SERVICE}/{name}",
        organization_id=DEFAULT_ORGANIZATION_ID,
        correlation_id=str(data.get("correlation_id", "")) or new_correlation_id(),
        result=pb.OPERATION_RESULT_SUCCESS if success else pb.OPERATION_RESULT_FAILURE,
        reason="" if success else (reason or str(data.get("outcome", ""))),
        processing_time_ms=int(data.get("ms", 0)),
    )
    request.operation_timestamp.FromDatetime(datetime.fromisoformat(entry.at))
    return request


def _concerns(entry: Entry) -> bool:
    return entry.kind in ALARMS or (entry.kind == "call" and entry.data.get("method") in CEREMONIES)
