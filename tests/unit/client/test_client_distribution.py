"""The client's wheel stands alone: stubs inside, few dependencies, nothing of the application."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

from infra.contracts.compiler import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import behaviorguard.client, behaviorguard.client.tokens, behaviorguard.threat.v1.threat_service_pb2 as stubs
assert behaviorguard.client.__file__.startswith(sys.argv[1]), behaviorguard.client.__file__
assert stubs.__file__.startswith(sys.argv[1]), stubs.__file__
heavy = {"numpy", "servers", "infra", "pipeline", "protovalidate", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_wheel_stands_alone(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT / "clients" / "python",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        stated = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    always = [re.split(r"[^\w-]", each, maxsplit=1)[0] for each in stated if "extra ==" not in each]
    assert sorted(always) == ["googleapis-common-protos", "grpcio", "protobuf"]
    assert [each.partition("<")[0] for each in stated if "extra ==" in each] == ["cryptography"]
    assert "behaviorguard/client/py.typed" in names
    assert "behaviorguard/__init__.py" not in names
    run = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", PROGRAM, str(unpacked)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
