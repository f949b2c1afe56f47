"""What keys are made from: the operating system's randomness and, where there is one, a quantum or other device's.

Every byte of every source passes the health tests of NIST SP 800-90B section 4.4 (repetition count, adaptive
proportion), whose cut-offs follow from the entropy that the source is credited with. While a source fails, no key is
made. Sources are mixed by SHAKE256, with as much from the operating system as the whole seed needs: a bad device can
make a seed no worse.
"""

from __future__ import annotations

import hashlib
import math
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

FALSE_ALARM_BITS: Final = 30
"""A healthy source fails a test by chance once in 2^30 samples or windows (SP 800-90B section 4.4 allows 2^-20 to
2^-40)."""
WINDOW: Final = 512
"""Samples of one window of the adaptive proportion test, for samples that are not single bits (section 4.4.2)."""
STARTUP_SAMPLES: Final = 1024
"""Samples that must pass before any is used (section 4.3), and again after a failure."""
OS: Final = "os"
QRNG: Final = "QRNG"

_DOMAIN: Final = b"BehaviorGuard HSM seed v1"


class EntropyFailedError(Exception):
    """A source fails, or one that was asked for is not there: no key may be made. The text names the source."""


def repetition_cutoff(min_entropy: float) -> int:
    """How many equal samples in a row fail a source (SP 800-90B section 4.4.1).

    Args:
        min_entropy: bits that each sample is credited with, above 0.
    """
    return 1 + math.ceil(FALSE_ALARM_BITS / min_entropy)


def proportion_cutoff(min_entropy: float, window: int = WINDOW) -> int:
    """How often a window's first value fails a source (SP 800-90B section 4.4.2): 1 + the critical binomial value.

    Args:
        min_entropy: bits that each sample is credited with, above 0.
        window: samples of a window.
    """
    chance = 2.0**-min_entropy
    limit = 2.0**-FALSE_ALARM_BITS
    tail, count = 0.0, window
    while count > 0:
        ways = math.lgamma(window + 1) - math.lgamma(count + 1) - math.lgamma(window - count + 1)
        misses = 0.0 if count == window else (window - count) * math.log1p(-chance)
        tail += math.exp(ways + count * math.log(chance) + misses)
        if tail > limit:
            break
        count -= 1
    return min(window, 1 + count)


class HealthTests:
    """The two continuous tests of one source, over its samples in their order."""

    def __init__(self, min_entropy: float) -> None:
        self._repetitions = repetition_cutoff(min_entropy)
        self._proportion = proportion_cutoff(min_entropy)
        self.reset()

    def reset(self) -> None:
        """Begin again, as when the source starts."""
        self._last = -1
        self._run = 0
        self._first = -1
        self._matches = 0
        self._in_window = 0

    def passes(self, samples: bytes) -> bool:
        """Test the next samples, one a byte; False as soon as one test fails."""
        for sample in samples:
            self._run = self._run + 1 if sample == self._last else 1
            self._last = sample
            if self._in_window == 0:
                self._first, self._matches = sample, 0
            self._matches += sample == self._first
            self._in_window = (self._in_window + 1) % WINDOW
            if self._run >= self._repetitions or self._matches >= self._proportion:
                return False
        return True


class EntropySource(Protocol):
    """Gives samples of one byte."""

    @property
    def name(self) -> str:
        """What status shows: "os", "qrng:/dev/...", "file:..."."""

    @property
    def min_entropy(self) -> float:
        """Bits that each sample is credited with: above 0, at most 8."""

    def read(self, size: int) -> bytes:
        """Exactly `size` fresh samples; blocks for a bounded time.

        Raises:
            OSError: the source is away, too slow or at its end.
        """


class OsSource:
    """The operating system's generator (`getrandom`)."""

    name: Final = OS
    min_entropy: Final = 8.0

    def read(self, size: int) -> bytes:
        """See `EntropySource`."""
        return os.urandom(size)


class FileSource:
    """A device, pipe or file of random bytes. A regular file is read once through; at its end the source fails."""

    def __init__(self, kind: str, path: Path, min_entropy: float, *, within_seconds: float = 2.0) -> None:
        self.name = f"{kind}:{path}"
        self.min_entropy = min_entropy
        self._path = path
        self._within = within_seconds
        self._file: int | None = None

    def read(self, size: int) -> bytes:
        """See `EntropySource`."""
        end = time.monotonic() + self._within
        samples = b""
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            while len(samples) < size:
                samples += self._piece(self._file, size - len(samples), end)
        except OSError:
            self.close()
            raise
        return samples

    def _piece(self, file: int, size: int, end: float) -> bytes:
        ready, _, _ = select.select([file], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError(f"{self.name} gives too little")
        piece = os.read(file, size)
        if not piece:
            raise OSError(f"{self.name} is at its end")
        return piece

    def close(self) -> None:
        """Close the file; the next reading opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@dataclass(frozen=True, slots=True)
class SourceState:
    """How a source is."""

    name: str
    healthy: bool
    samples_tested: int
    min_entropy: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """A seed and what it was made from."""

    seed: bytearray
    """The owner overwrites it after use."""
    told: str
    """"os:healthy", with commas between sources."""


class _Tested:
    """A source with its tests."""

    def __init__(self, source: EntropySource) -> None:
        self.source = source
        self.healthy = False
        self.tested = 0
        self._tests = HealthTests(source.min_entropy)

    def start(self) -> bool:
        self._tests.reset()
        self.healthy = True
        self.healthy = self.read(STARTUP_SAMPLES) is not None
        return self.healthy

    def read(self, size: int) -> bytes | None:
        """Tested samples; None: the source has failed now."""
        try:
            samples = self.source.read(size)
        except OSError:
            self.healthy = False
            return None
        self.tested += size
        if not self._tests.passes(samples):
            self.healthy = False
            return None
        return samples

    def needed(self, size: int) -> int:
        """Samples that hold as much entropy as `size` whole bytes."""
        return math.ceil(size * 8 / self.source.min_entropy)


class EntropyPool:
    """All sources, tested and mixed. Safe for several threads; its methods block while a device is slow."""

    def __init__(self, sources: Iterable[EntropySource]) -> None:
        self._sources = [_Tested(source) for source in sources]
        if all(tested.source.name != OS for tested in self._sources):
            raise ValueError("the operating system must be among the sources")
        self._lock = threading.Lock()

    def start(self) -> None:
        """Run the start-up tests; a source that fails them stays failed until `retest` finds it healthy."""
        with self._lock:
            for tested in self._sources:
                tested.start()

    def retest(self) -> bool:
        """Run the start-up tests of failed sources again; returns whether all are healthy now."""
        with self._lock:
            for tested in self._sources:
                if not tested.healthy:
                    tested.start()
            return all(tested.healthy for tested in self._sources)

    def draw(self, size: int, asked: Sequence[str] = ()) -> Drawn:
        """A seed of `size` bytes from the sources asked for; the operating system is always among them.

        Args:
            size: bytes.
            asked: "os", "QRNG" (every other source); empty takes all.

        Raises:
            EntropyFailedError: a source fails now or has failed before, or there is no QRNG.
        """
        with self._lock:
            failed = [tested.source.name for tested in self._sources if not tested.healthy]
            if failed:
                raise EntropyFailedError(f"entropy source {', '.join(failed)} fails its health tests")
            chosen = [tested for tested in self._sources if self._is_chosen(tested, asked)]
            if QRNG in asked and len(chosen) == 1:
                raise EntropyFailedError("there is no QRNG: set BEHAVIORGUARD_ENTROPY_QRNG, or ask for os alone")
            mix = hashlib.shake_256(_DOMAIN)
            for tested in chosen:
                samples = tested.read(tested.needed(size))
                if samples is None:
                    raise EntropyFailedError(f"entropy source {tested.source.name} fails its health tests")
                name = tested.source.name.encode()
                mix.update(len(name).to_bytes(4) + name + len(samples).to_bytes(4) + samples)
        told = ",".join(f"{tested.source.name}:healthy" for tested in chosen)
        return Drawn(bytearray(mix.digest(size)), told)

    def states(self) -> list[SourceState]:
        """How each source is, without waiting for one that is being read."""
        return [
            SourceState(each.source.name, each.healthy, each.tested, each.source.min_entropy) for each in self._sources
        ]

    @staticmethod
    def _is_chosen(tested: _Tested, asked: Sequence[str]) -> bool:
        return tested.source.name == OS or not asked or QRNG in asked
