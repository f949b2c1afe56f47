"""Notices when somebody asks for another organisation's key, and tells the key's owner by a security event.

Whoever asks learns nothing: the answer is the same as for a key that does not exist, and it does not wait for this.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import psycopg
from psycopg_pool import PoolTimeout

from servers.mesh.context import current_call
from servers.quantum.security_events import Finding

if TYPE_CHECKING:
    from servers.quantum.security_events import SecurityEvents

_log = logging.getLogger(__name__)

_MOST_WAITING: Final = 1000


class Owners(Protocol):
    """Whose keys are whose."""

    async def owner(self, key_id: str, organization_id: str) -> str | None:
        """The organisation that has the key, when it is another one."""


@dataclass(frozen=True, slots=True)
class _Suspicion:
    organization_id: str
    key_id: str
    service_id: str
    correlation_id: str
    at: datetime


class Violations:
    """Looks into look-ups that found nothing; `run` must run beside it."""

    def __init__(self, owners: Owners, events: SecurityEvents) -> None:
        self._owners = owners
        self._events = events
        self._waiting: deque[_Suspicion] = deque(maxlen=_MOST_WAITING)
        self._ready = asyncio.Event()

    def suspect(self, organization_id: str, key_id: str) -> None:
        """The organisation of the call that is being served has no such key; never waits."""
        call = current_call()
        if call is not None:
            at = datetime.now(UTC)
            self._waiting.append(_Suspicion(organization_id, key_id, call.caller, call.correlation_id, at))
            self._ready.set()

    async def run(self) -> None:
        """Look into suspicions, until cancelled."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._waiting:
                suspicion = self._waiting.popleft()
                try:
                    await self._look(suspicion)
                except (psycopg.Error, PoolTimeout) as error:
                    _log.warning("a look-up could not be looked into", extra={"cause": type(error).__name__})

    async def _look(self, suspicion: _Suspicion) -> None:
        owner = await self._owners.owner(suspicion.key_id, suspicion.organization_id)
        if owner is None:
            return
        await self._events.raise_event(
            Finding(
                "organization_violation",
                owner,
                suspicion.correlation_id,
                suspicion.at,
                {"service": suspicion.service_id, "what": "a key of this organisation was asked for by another one"},
                key_id=suspicion.key_id,
                # Once an hour for each key and asking organisation, which the owner is not told.
                window=f"{suspicion.key_id} {suspicion.organization_id} {suspicion.at:%Y-%m-%dT%H}",
            )
        )
