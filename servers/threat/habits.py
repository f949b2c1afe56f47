"""Small bounded memories of what is usual for one person: things seen before, steps between views, levels of a rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_COUNT: Final = 1000
_LEVEL_MEMORY: Final = 50.0  # events over which a level is averaged


def digest(text: str) -> str:
    """A short one-way name for an opaque string, so that no memory holds the string itself: 12 hexadecimal digits."""
    return blake2b(text.encode(), digest_size=6).hexdigest()


@dataclass(slots=True)
class Familiar:
    """Counts of things seen before; forgets the one that was not seen for longest when it is full."""

    limit: int
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """How often `name` was seen."""
        return self.counts.get(name, 0)

    def learn(self, name: str) -> None:
        """Count one more sight of `name`."""
        seen = self.counts.pop(name, 0)
        self.counts[name] = min(seen + 1, _MAX_COUNT)
        if len(self.counts) > self.limit:
            del self.counts[next(iter(self.counts))]

    @classmethod
    def from_json(cls, limit: int, stored: Mapping[str, int]) -> Familiar:
        """What `counts` held; the oldest entries over the limit are dropped."""
        return cls(limit, dict(list(stored.items())[-limit:]))


@dataclass(slots=True)
class Level:
    """Running mean and variance of a number, with a memory of the last few dozen events."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def learn(self, value: float) -> None:
        """Take one more value into account."""
        self.count = min(self.count + 1, _MAX_COUNT)
        share = max(1.0 / self.count, 1.0 / _LEVEL_MEMORY)
        offset = value - self.mean
        self.mean += share * offset
        self.variance = (1.0 - share) * (self.variance + share * offset * offset)

    def excess(self, value: float, least_spread: float) -> float:
        """How far above the usual a value is, in units of its spread; 0 when it is not above."""
        return max(0.0, value - self.mean) / max(math.sqrt(self.variance), least_spread)

    def distance(self, value: float, least_spread: float) -> float:
        """How far from the usual a value is, in units of its spread."""
        return abs(value - self.mean) / max(math.sqrt(self.variance), least_spread)

    def to_json(self) -> list[float]:
        """Count, mean and variance."""
        return [self.count, self.mean, self.variance]

    @classmethod
    def from_json(cls, stored: Sequence[Any]) -> Level:
        """What `to_json` wrote."""
        return cls(int(stored[0]), float(stored[1]), float(stored[2]))


@dataclass(slots=True)
class Paths:
    """How a person moves through an application: counts of steps from one view to the next."""

    limit: int = 256
    steps: Familiar = field(init=False)
    sources: Familiar = field(init=False)
    learnt: int = 0

    def __post_init__(self) -> None:
        self.steps = Familiar(self.limit)
        self.sources = Familiar(self.limit)

    def anomaly(self, views: Sequence[str], least_learnt: int) -> float | None:
        """How unlikely a path is: 0 usual to 1 never seen, or None while too little is known or nothing was visited.

        The mean over the steps of -log2 p(next | view), with add-half smoothing, on a scale where six bits are certain
        news.
        """
        if len(views) < 2 or self.learnt < least_learnt:
            return None
        names = [digest(view) for view in views]
        bits = 0.0
        for source, target in pairwise(names):
            seen = self.steps.count(source + target)
            total = self.sources.count(source)
            bits -= math.log2((seen + 0.5) / (total + 0.5 * 64))
        return min(1.0, bits / (len(names) - 1) / 6.0) ** 2

    def learn(self, views: Sequence[str]) -> None:
        """Count the steps of a path."""
        names = [digest(view) for view in views]
        for source, target in pairwise(names):
            self.steps.learn(source + target)
            self.sources.learn(source)
            self.learnt = min(self.learnt + 1, _MAX_COUNT)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for storage."""
        return {"steps": self.steps.counts, "sources": self.sources.counts, "learnt": self.learnt}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Paths:
        """What `to_json` wrote."""
        paths = cls()
        paths.steps = Familiar.from_json(paths.limit, stored["steps"])
        paths.sources = Familiar.from_json(paths.limit, stored["sources"])
        paths.learnt = int(stored["learnt"])
        return paths
