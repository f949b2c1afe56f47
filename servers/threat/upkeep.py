"""What the service does by itself from time to time: writing profiles, erasing expired trials."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psycopg

if TYPE_CHECKING:
    from servers.threat.members import Members
    from servers.threat.mirror import RedisMirror
    from servers.threat.people import People
    from servers.threat.store import Store

_log = logging.getLogger(__name__)

_TRIAL_SECONDS: Final = 10.0
_TRIALS_AT_ONCE: Final = 50


class ProfileWriter:
    """Writes changed profiles, many changes of one person as one."""

    def __init__(self, people: People, *, every_s: float) -> None:
        self._people = people
        self._every_s = every_s

    async def run(self) -> None:
        """Write again and again, for as long as the service runs."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.flush()

    async def flush(self) -> None:
        """Write now; what cannot be written stays for the next time."""
        try:
            conflicts = await self._people.save()
        except psycopg.Error as error:
            _log.warning("profiles wait for the database", extra={"cause": type(error).__name__})
        else:
            if conflicts:
                _log.info("profiles were written by another instance first and are merged", extra={"count": conflicts})


class TrialEraser:
    """Erases throwaway people whose time is over."""

    def __init__(self, store: Store, people: People, members: Members, mirror: RedisMirror) -> None:
        self._store = store
        self._people = people
        self._members = members
        self._mirror = mirror

    async def run(self) -> None:
        """Erase again and again, for as long as the service runs."""
        while True:
            try:
                while await self.sweep(datetime.now(UTC)) == _TRIALS_AT_ONCE:
                    pass
            except psycopg.Error as error:
                _log.warning("expired trials wait for the database", extra={"cause": type(error).__name__})
            await asyncio.sleep(_TRIAL_SECONDS)

    async def sweep(self, now: datetime) -> int:
        """Erase some of the trials that ended before `now`; returns how many.

        Raises:
            psycopg.Error: the database is away.
        """
        ended = await self._store.end_trials(now, _TRIALS_AT_ONCE)
        for user_id in ended:
            self._members.forget(user_id)
            self._people.forget(user_id)
            self._people.forget_evidence(user_id)
            await self._mirror.erase(user_id)
        return len(ended)
