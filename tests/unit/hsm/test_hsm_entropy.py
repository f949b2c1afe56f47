"""Health tests of entropy sources, and how sources are mixed."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from math import comb
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.hsm.entropy import (
    FALSE_ALARM_BITS,
    WINDOW,
    EntropyFailedError,
    EntropyPool,
    FileSource,
    HealthTests,
    OsSource,
    proportion_cutoff,
    repetition_cutoff,
)

if TYPE_CHECKING:
    from pathlib import Path


class Fixed:
    """A source that gives what it is told."""

    def __init__(self, content: bytes, name: str = "qrng:fixed", min_entropy: float = 8.0) -> None:
        self.name = name
        self.min_entropy = min_entropy
        self.content = content

    def read(self, size: int) -> bytes:
        if len(self.content) < size:
            raise OSError("at its end")
        taken, self.content = self.content[:size], self.content[size:]
        return taken


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 -- made-up samples


def exact_cutoff(min_entropy: int) -> int:
    """1 + the critical binomial value, in exact arithmetic (SP 800-90B section 4.4.2)."""
    chance = Fraction(1, 2**min_entropy)
    below = Fraction(0)
    for value in range(WINDOW + 1):
        below += comb(WINDOW, value) * chance**value * (1 - chance) ** (WINDOW - value)
        if below >= 1 - Fraction(1, 2**FALSE_ALARM_BITS):
            return 1 + value
    raise AssertionError


@pytest.mark.parametrize("min_entropy", [1, 2, 4, 8])
def test_cutoffs_are_the_standards(min_entropy: int) -> None:
    assert proportion_cutoff(min_entropy) == exact_cutoff(min_entropy)
    assert repetition_cutoff(min_entropy) == 1 + -(-FALSE_ALARM_BITS // min_entropy)


def test_the_repetition_count_test_fails_at_its_cutoff() -> None:
    cutoff = repetition_cutoff(8.0)
    assert HealthTests(8.0).passes(b"\x07" * (cutoff - 1) + b"\x08")
    assert not HealthTests(8.0).passes(b"\x07" * cutoff)


def test_the_adaptive_proportion_test_fails_at_its_cutoff() -> None:
    cutoff = proportion_cutoff(8.0)
    others = [value for value in range(WINDOW) if value % 256 != 7]
    window = bytes([7] + [others[i] % 256 if i % 2 else 7 for i in range(2 * (cutoff - 2))])
    assert window.count(7) == cutoff - 1
    tests = HealthTests(8.0)
    assert tests.passes(window)
    assert not tests.passes(b"\x07")


@settings(max_examples=50)
@given(st.lists(st.integers(min_value=1, max_value=600), max_size=8), st.integers())
def test_it_does_not_matter_how_samples_are_cut(cuts: list[int], seed: int) -> None:
    samples = random.Random(seed).choices(range(16), k=2000)  # noqa: S311 -- made-up samples
    whole, pieces = HealthTests(3.0), HealthTests(3.0)
    verdict, place = True, 0
    for cut in [*cuts, 2000]:
        verdict = verdict and pieces.passes(bytes(samples[place : place + cut]))
        place += cut
    assert whole.passes(bytes(samples)) == verdict


def test_the_systems_randomness_passes() -> None:
    assert HealthTests(8.0).passes(os.urandom(200_000))


@pytest.mark.parametrize("content", [b"\x00" * 5000, b"\x00\x01" * 2500, b""])
def test_a_bad_source_stops_all(content: bytes) -> None:
    pool = EntropyPool([OsSource(), Fixed(content)])
    pool.start()
    with pytest.raises(EntropyFailedError, match="qrng:fixed"):
        pool.draw(32)
    with pytest.raises(EntropyFailedError):
        pool.draw(32, ["os"])


def test_a_source_that_fails_later_stops_all_until_it_passes_again() -> None:
    source = Fixed(noise(1024 + 64) + b"\x00" * 64)
    pool = EntropyPool([OsSource(), source])
    pool.start()
    assert pool.draw(64).told == "os:healthy,qrng:fixed:healthy"
    with pytest.raises(EntropyFailedError):
        pool.draw(64)
    assert [state.healthy for state in pool.states()] == [True, False]
    assert not pool.retest()
    source.content = noise(4096, 2)
    assert pool.retest()
    assert len(pool.draw(64).seed) == 64


def test_the_system_is_always_mixed_in() -> None:
    """Two pools with the same device give different seeds: the device alone decides nothing."""
    seeds = set()
    for _ in range(2):
        pool = EntropyPool([OsSource(), Fixed(noise(4096))])
        pool.start()
        seeds.add(bytes(pool.draw(64, ["QRNG"]).seed))
    assert len(seeds) == 2


def test_sources_are_asked_for_by_name() -> None:
    pool = EntropyPool([OsSource(), Fixed(noise(4096))])
    pool.start()
    assert pool.draw(32, ["os"]).told == "os:healthy"
    assert pool.draw(32, ["QRNG"]).told == "os:healthy,qrng:fixed:healthy"
    alone = EntropyPool([OsSource()])
    alone.start()
    with pytest.raises(EntropyFailedError, match="no QRNG"):
        alone.draw(32, ["QRNG"])


def test_a_weak_source_gives_more_samples() -> None:
    source = Fixed(noise(4096), min_entropy=2.0)
    pool = EntropyPool([OsSource(), source])
    pool.start()
    pool.draw(64)
    assert len(source.content) == 4096 - 1024 - 64 * 4


def test_a_pool_needs_the_system() -> None:
    with pytest.raises(ValueError, match="operating system"):
        EntropyPool([Fixed(b"")])


def test_a_file_is_read_once_through(tmp_path: Path) -> None:
    file = tmp_path / "random"
    file.write_bytes(noise(100))
    source = FileSource("file", file, 8.0)
    assert source.read(60) + source.read(40) == noise(100)
    with pytest.raises(OSError, match="at its end"):
        source.read(1)
    source.close()


def test_a_silent_device_fails_in_time(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    source = FileSource("qrng", pipe, 8.0, within_seconds=0.05)
    os.write(writer, b"12345")
    with pytest.raises(TimeoutError):
        source.read(6)
    os.close(writer)


def test_a_missing_device_fails(tmp_path: Path) -> None:
    pool = EntropyPool([OsSource(), FileSource("qrng", tmp_path / "none", 8.0)])
    pool.start()
    with pytest.raises(EntropyFailedError, match="qrng:"):
        pool.draw(32)
