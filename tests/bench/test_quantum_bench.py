"""`behaviorguard bench quantum` works and answers with its keys; its figures at this size mean nothing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from infra.bench.quantum import _milliseconds
from infra.cli.bench import QUANTUM_TARGETS, bench

KEYS = {
    "encrypt_per_s",
    "encrypt_ratio",
    "token_per_s",
    "keygen_p99_ms",
    "sign_keygen_p99_ms",
    "loop_block_max_ms",
}


@pytest.mark.chaos
def test_bench_quantum_measures_everything() -> None:
    result = CliRunner().invoke(bench, ["quantum", "--json", "--rounds", "1", "--seconds", "0.5", "--callers", "4"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures.keys() >= KEYS | QUANTUM_TARGETS.keys()
    assert all(figures[name] > 0 for name in KEYS)
    assert figures["keygen_p99_ms"] < figures["keygen_durable_p99_ms"]


def test_percentiles() -> None:
    seconds = [number / 1000 for number in range(1, 101)]
    assert (_milliseconds(seconds, 50), _milliseconds(seconds, 99)) == (51.0, 100.0)
    assert _milliseconds([0.002], 99) == 2.0
