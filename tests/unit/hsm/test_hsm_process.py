"""What the process does for its memory, and how it counts its work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from servers.hsm.in_use import InUse
from servers.hsm.rates import OperationRates

PROGRAM = """
import ctypes, json, resource
from servers.hsm.hardening import harden
done = harden()
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
print(json.dumps({"done": done, "dumpable": dumpable, "core": resource.getrlimit(resource.RLIMIT_CORE)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_process_forbids_core_files_and_debuggers() -> None:
    answer = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True)
    said = json.loads(answer.stdout)
    assert said["core"] == [0, 0]
    assert said["dumpable"] == 0
    assert said["done"]["no_core_files"]
    assert said["done"]["not_dumpable"]


def test_errors_count_for_a_minute() -> None:
    now = [100.0]
    rates = OperationRates(clock=lambda: now[0])
    assert rates.error_rate == 0
    rates.count(64, 16)
    now[0] += 30
    rates.count(16, 4)
    assert rates.error_rate == 0.25
    now[0] += 31
    assert rates.error_rate == 0.25  # the later ones alone
    now[0] += 30
    assert rates.error_rate == 0
    rates.count(1, 1)
    assert rates.error_rate == 1
    assert rates.total == 81


def test_the_least_recently_used_key_goes_first() -> None:
    kept: InUse[str] = InUse(2)
    kept.keep("a", "A")
    kept.keep("b", "B")
    assert kept.get("a") == "A"
    kept.keep("c", "C")
    assert [kept.get(handle) for handle in "abc"] == ["A", None, "C"]
    kept.forget(["a", "x"])
    assert kept.get("a") is None
    kept.clear()
    assert kept.get("c") is None
