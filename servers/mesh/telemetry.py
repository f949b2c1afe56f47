"""Metrics and traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.metrics import Counter, Histogram
    from opentelemetry.trace import Tracer

    from servers.mesh.settings import MeshSettings


class Telemetry:
    """The instruments of one process."""

    def __init__(self, settings: MeshSettings) -> None:
        raise NotImplementedError

    def counter(self, name: str, unit: str, description: str, series: Sequence[Mapping[str, str]] = ()) -> Counter:
        """A counter; each of `series` exists at 0 from the start, so that the first increase is seen."""
        raise NotImplementedError

    def histogram(self, name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
        """A histogram with these upper bounds."""
        raise NotImplementedError

    def gauge(self, name: str, unit: str, description: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks."""
        raise NotImplementedError

    @property
    def tracer(self) -> Tracer:
        """Makes spans; they go nowhere when no collector is configured."""
        raise NotImplementedError

    def close(self) -> None:
        """Send what is pending and stop."""
        raise NotImplementedError
