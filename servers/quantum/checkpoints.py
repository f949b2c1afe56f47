"""Checkpoints: the HSM signs where each chain ends, every so many records and every so many seconds.

Before it asks for a signature, the service reads the records since the last checkpoint again and checks that they form
a chain: what somebody changed in the database meanwhile is never signed, and raises a security event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import psycopg
from psycopg_pool import PoolTimeout

from servers.mesh.errors import MeshError
from servers.mesh.interceptors import new_correlation_id
from servers.quantum.audit_chain import (
    CHECKPOINT_CONTEXT,
    FIRST_PREVIOUS,
    AuditRecord,
    Checkpoint,
    checkpoint_message,
    record_hash,
)
from servers.quantum.security_events import Finding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from servers.quantum.audit_reader import AuditReader, Due
    from servers.quantum.ports import Hsm
    from servers.quantum.security_events import SecurityEvents

_log = logging.getLogger(__name__)

MOST_APART: Final = 4096
"""Records between two checkpoints at most: the contract's limit of a proof."""
_PAGE: Final = 100  # records that are hashed at once: about 3 ms of the loop's time
_RETRY_SECONDS: Final = 5.0


class SigningKey(Protocol):
    """A version of the platform's key for checkpoints."""

    @property
    def key_id(self) -> str:
        """UUID of the key."""

    @property
    def version(self) -> int:
        """Number of the version."""

    @property
    def key_handle(self) -> str:
        """The HSM's name for it."""

    @property
    def organization_id(self) -> str:
        """UUID of the organisation that the key belongs to."""


Key = Callable[[], Awaitable[SigningKey]]
"""Gives the newest version of the key, an ML-DSA-65 one."""


class ChainBrokenError(Exception):
    """Records in the database do not form a chain: the one at `sequence` does not fit."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"record {sequence} does not fit")
        self.sequence = sequence


class Checkpointer:
    """Makes checkpoints; `run` must run as one of the service's tasks.

    Args:
        reader: reads the trail, keeps checkpoints.
        hsm: signs.
        key: the key to sign with.
        events: takes the security event when a chain is broken.
        every_records: so many new records bring a checkpoint at once; 1 to 4,096.
        every_seconds: after this time any new record brings one.
    """

    def __init__(
        self,
        reader: AuditReader,
        hsm: Hsm,
        key: Key,
        events: SecurityEvents,
        *,
        every_records: int = 500,
        every_seconds: float = 60.0,
    ) -> None:
        if not 1 <= every_records <= MOST_APART:
            raise ValueError(f"checkpoints stand 1 to {MOST_APART} records apart")
        self._reader = reader
        self._hsm = hsm
        self._key = key
        self._events = events
        self._every_records = every_records
        self._every_seconds = every_seconds
        self._grown: dict[str, int] = {}
        self._wake = asyncio.Event()
        self.made = 0
        """Checkpoints made since the start."""
        self.failing = False
        """Whether the last attempt failed."""

    def on_appended(self, heads: Mapping[str, int]) -> None:
        """Records were written: a chain that has grown enough is due. Give it to the trail."""
        for organization_id, head in heads.items():
            if head - self._grown.setdefault(organization_id, head) >= self._every_records:
                self._wake.set()

    async def run(self) -> None:
        """Make what is due, until cancelled."""
        due_at = time.monotonic() + self._every_seconds
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.0, due_at - time.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            timely = time.monotonic() >= due_at
            if timely:
                due_at = time.monotonic() + self._every_seconds
            if not await self._pass(1 if timely else self._every_records):
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()

    async def make(self, organization_id: str) -> int:
        """Make a chain's checkpoint now, when it has records that none covers.

        Returns:
            Place of the last record that a checkpoint then covers; 0 when it was made before.

        Raises:
            MeshError: the HSM cannot sign.
            psycopg.Error: the database is away.
        """
        for due in await self._reader.due(1, organization_id=organization_id):
            if await self._cover(due):
                return due.head
        return 0

    async def _pass(self, new: int) -> bool:
        """Cover every chain that is due; False when something failed and should be tried again soon."""
        try:
            async for due in self._all_due(new):
                await self._cover(due)
                self._grown[due.organization_id] = due.head
        except (MeshError, psycopg.Error, PoolTimeout, OSError) as error:
            cause = error.reason_name if isinstance(error, MeshError) else type(error).__name__
            if not self.failing:
                _log.warning("checkpoints cannot be made", extra={"cause": cause})
            self.failing = True
            return False
        self.failing = False
        return True

    async def _all_due(self, new: int) -> AsyncIterator[Due]:
        last = ""
        while page := await self._reader.due(new, after=last):
            for due in page:
                yield due
            last = page[-1].organization_id

    async def _cover(self, due: Due) -> bool:
        """Check and sign a chain up to its head, in steps that a proof can span; False when it is broken."""
        place, digest = due.covered, due.covered_hash or FIRST_PREVIOUS
        try:
            while place < due.head:
                upto = min(due.head, place + self._every_records)
                digest = await self._checked(due.organization_id, place, digest, upto)
                place = upto
                await self._sign(due.organization_id, place, digest)
        except ChainBrokenError as broken:
            await self._alarm(due.organization_id, broken.sequence)
            return False
        return True

    async def _checked(self, organization_id: str, place: int, digest: bytes, upto: int) -> bytes:
        """The hash of the record at `upto`, after every record from `place` on was found to be in order."""
        while place < upto:
            page = await self._reader.after(organization_id, place, upto, _PAGE)
            if not page:
                raise ChainBrokenError(place + 1)
            for record in page:
                if not follows(record, place, digest):
                    raise ChainBrokenError(place + 1)
                place, digest = record.sequence, record.record_hash
        return digest

    async def _sign(self, organization_id: str, sequence: int, digest: bytes) -> None:
        key = await self._key()
        unsigned = Checkpoint(
            organization_id, sequence, digest, datetime.now(UTC), key.key_id, key.version, "ML-DSA-65"
        )
        message = checkpoint_message(unsigned)
        signed = await self._hsm.sign(key.key_handle, key.organization_id, message, CHECKPOINT_CONTEXT)
        await self._reader.keep(replace(unsigned, signature=signed.signature))
        self.made += 1

    async def _alarm(self, organization_id: str, sequence: int) -> None:
        said = {"organization_id": organization_id, "sequence": sequence}
        _log.error("the audit chain does not verify: no checkpoint is made from here on", extra=said)
        finding = Finding(
            "audit_chain_broken",
            organization_id,
            new_correlation_id(),
            datetime.now(UTC),
            {"sequence": sequence},
            window=str(sequence),
        )
        await self._events.raise_event(finding)


def follows(record: AuditRecord, place: int, digest: bytes) -> bool:
    """Whether a record is whole and stands right after the one at `place` whose hash is `digest`."""
    return record.sequence == place + 1 and record.previous_hash == digest and record.record_hash == record_hash(record)
