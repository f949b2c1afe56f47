"""What only the quantum service adds to its health report: `quantum_specific` of the document."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from behaviorguard.monitoring.v1 import health_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers.mesh.health_report import Figures, Particulars

_PACKAGE: Final = "/behaviorguard.quantum.v1."
_SERVICES: Final = ("KeyService/", "TemplateService/", "TokenService/")
_ENCRYPTIONS: Final = ("EncryptTemplate", "EncryptBiometric", "BatchEncryptTemplates")
_DONE: Final = frozenset({"OK"})
_BUCKET_SECONDS: Final = 60.0


class HitRate:
    """Share of look-ups that memory answered, over the last one to two minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._hits = self._misses = self._hits_before = self._misses_before = 0

    def hit(self) -> None:
        """Memory had it."""
        self._turn()
        self._hits += 1

    def miss(self) -> None:
        """The database was asked."""
        self._turn()
        self._misses += 1

    def rate(self) -> float:
        """0 to 1; 1 while nothing was looked up."""
        self._turn()
        hits, misses = self._hits + self._hits_before, self._misses + self._misses_before
        return hits / (hits + misses) if hits + misses else 1.0

    def _turn(self) -> None:
        age = self._clock() - self._begun
        if age < _BUCKET_SECONDS:
            return
        recent = age < 2 * _BUCKET_SECONDS
        self._hits_before, self._misses_before = (self._hits, self._misses) if recent else (0, 0)
        self._hits = self._misses = 0
        self._begun = self._clock()


def quantum_particulars(hits: HitRate) -> Particulars:
    """Adds `quantum_specific`; the HSM's state is the health check's of that name.

    Args:
        hits: of the keys held in memory.
    """

    def add(figures: Figures, answer: pb.HealthCheckResponse) -> None:
        operations = sum(figures.count(prefix=_PACKAGE + service) for service in _SERVICES)
        methods = [f"{_PACKAGE}TemplateService/{name}" for name in _ENCRYPTIONS]
        tried = sum(figures.count(prefix=method) for method in methods)
        done = sum(figures.count(prefix=method, codes=_DONE) for method in methods)
        hsm = answer.dependencies.external_services["hsm"].status
        reachable = hsm == pb.REACHABILITY_STATUS_REACHABLE
        specific = answer.quantum_specific
        specific.quantum_operations_per_minute = figures.a_minute(operations)
        specific.hsm_connection_status = (
            pb.CONNECTION_STATUS_CONNECTED if reachable else pb.CONNECTION_STATUS_DISCONNECTED
        )
        specific.key_cache_hit_rate = hits.rate()
        specific.encryption_success_rate = done / tried if tried else 1.0

    return add
