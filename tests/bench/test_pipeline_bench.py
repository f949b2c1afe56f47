"""`behaviorguard bench pipeline` works and answers with its keys; its figures at this size mean nothing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from infra.cli.bench import bench

KEYS = {
    "rate",
    "seconds",
    "p50_ms",
    "p99_ms",
    "lost",
    "max_rate",
    "relay_max_rate",
    "relay_ratio",
    "model_ratio",
    "broker",
}


@pytest.mark.chaos
def test_bench_pipeline_measures_everything() -> None:
    arguments = ["pipeline", "--json", "--broker", "embedded", "--rate", "500", "--seconds", "2"]
    result = CliRunner().invoke(bench, [*arguments, "--backlog", "10000", "--users", "2000"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures.keys() >= KEYS
    assert figures["lost"] == figures["duplicates"] == 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["relay_max_rate"] > 0
    assert figures["model_ratio"] > 0
    assert figures["users"] == 2000


def test_a_plan_that_cannot_be_numbered_is_refused() -> None:
    result = CliRunner().invoke(bench, ["pipeline", "--rate", "1000000", "--seconds", "600"])
    assert result.exit_code == 2
    assert "268 million" in result.output
