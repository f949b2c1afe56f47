"""What the HSM does by itself: repairs replicas before anybody asks, and tries failed entropy sources again."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from servers.hsm.modules import QuorumError
from servers.hsm.sealed import DamagedError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from servers.hsm.ceremony import Ceremony
    from servers.hsm.entropy import EntropyPool
    from servers.hsm.journal import Journal
    from servers.hsm.keystore import KeyStore

_log = logging.getLogger(__name__)

_WHOLE_ROUNDS: Final = 60
"""Every so many rounds the whole journal is compared, and destroyed keys are looked for."""


class Upkeep:
    """One round every few seconds, in a thread."""

    def __init__(
        self,
        entropy: EntropyPool,
        journal: Journal,
        store: KeyStore,
        ceremony: Ceremony,
        executor: Executor,
        *,
        every_s: float,
        keys: int,
    ) -> None:
        """Set it up; `run` does the work.

        Args:
            entropy: tested again where it fails.
            journal: brought up to date on modules that were away.
            store: its replicas are read in turn.
            ceremony: drops shares that waited too long.
            executor: threads that wait for disks.
            every_s: pause between two rounds.
            keys: keys whose replicas are read in one round; 0 for none.
        """
        self._entropy = entropy
        self._journal = journal
        self._store = store
        self._ceremony = ceremony
        self._executor = executor
        self._every_s = every_s
        self._keys = keys
        self._rounds = 0
        self._failed: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.get_running_loop().run_in_executor(self._executor, self.round)
            await asyncio.sleep(self._every_s)

    def round(self) -> None:
        """One round; blocks."""
        self._ceremony.expire_shares()
        try:
            self._watch_entropy()
            if self._journal.behind or self._rounds % _WHOLE_ROUNDS == _WHOLE_ROUNDS - 1:
                repaired = self._journal.check()
                if repaired:
                    self._journal.append("repair", {"replicas": "journal", "count": repaired})
                self._store.tidy()
            if self._keys:
                self._store.scrub(self._keys)
        except (QuorumError, DamagedError):
            _log.warning("the HSM's modules are not whole: behaviorguard hsm status", exc_info=True)
        self._rounds += 1

    def _watch_entropy(self) -> None:
        failed = self._failing()
        for name in sorted(failed - self._failed):
            _log.error("an entropy source fails its health tests: no key is made", extra={"source": name})
            self._journal.append("entropy-failed", {"source": name})
        if failed:
            self._entropy.retest()
        self._failed |= failed
        for name in sorted(self._failed - self._failing()):
            self._journal.append("entropy-recovered", {"source": name})
            self._failed -= {name}

    def _failing(self) -> frozenset[str]:
        return frozenset(state.name for state in self._entropy.states() if not state.healthy)
