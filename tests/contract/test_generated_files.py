"""What is derived from the contracts is current and says what the contracts say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from infra.contracts import compiler, generate
from infra.contracts.compiler import GENERATED, ROOT, ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infra.contracts.model import Contracts


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GENERATED / "openapi.json").read_text(encoding="utf-8"))
    return loaded


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_generated_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_lint_passes() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "infra.contracts.lint"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_contract_that_does_not_compile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(compiler.PROTOS, protos)
    broken = protos / "behaviorguard" / "threat" / "v1" / "threat.proto"
    broken.write_text(broken.read_text(encoding="utf-8") + "message {", encoding="utf-8")
    monkeypatch.setattr(compiler, "PROTOS", protos)
    with pytest.raises(ContractError, match=r"threat/v1/threat\.proto"):
        compiler.compile_descriptors(tmp_path)


def test_namespace_packages_have_no_init() -> None:
    assert list((GENERATED / "behaviorguard").rglob("__init__.py")) == []


def test_openapi_has_every_path_of_people(contracts: Contracts, document: dict[str, Any]) -> None:
    served = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    expected = {
        f"{service.name}_{method.name}"
        for service in contracts.services()
        for method in service.methods
        if any(contracts.routes(method))
    }
    assert served == expected


def test_openapi_references_lead_somewhere(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


def test_openapi_path_variables_are_declared(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        wanted = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for operation in operations.values():
            declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert declared == wanted, path


def test_openapi_says_the_rules(document: dict[str, Any]) -> None:
    typed = document["components"]["schemas"]["threat.v1.KeystrokePattern"]
    assert typed["additionalProperties"] is False
    assert typed["required"] == ["keyClasses", "holdMs", "flightMs"]
    hold = typed["properties"]["holdMs"]
    assert (hold["minItems"], hold["maxItems"]) == (1, 256)
    assert hold["items"] == {"type": "number", "minimum": 0, "maximum": 10000}
    assert hold["x-sensitivity"] == "personal"
    level = document["components"]["schemas"]["threat.v1.ThreatLevel"]
    assert level["enum"] == ["unspecified", "normal", "suspicious", "threat", "critical"]


def test_openapi_keygen_is_the_documents(document: dict[str, Any]) -> None:
    keygen = document["paths"]["/api/quantum/keygen"]["post"]
    assert {"X-Key-ID", "X-Security-Level", "X-Correlation-ID"} <= set(keygen["responses"]["201"]["headers"])
    answer = document["components"]["schemas"]["quantum.v1.GenerateKeyResponse"]["properties"]
    documented = {"keyId", "publicKey", "algorithm", "securityLevel", "expiresAt", "keyHandle", "quantumSecured"}
    assert documented <= set(answer)
    error = document["components"]["schemas"]["Error"]
    assert error["required"] == ["error", "errorCode", "correlationId", "suggestedAction"]


def test_openapi_keeps_the_session_handle_out_of_bodies(document: dict[str, Any]) -> None:
    login = document["paths"]["/api/auth/login"]["post"]["responses"]["200"]
    assert "sessionHandle" not in login["content"]["application/json"]["schema"]["properties"]
    assert "auth_token" in login["headers"]["Set-Cookie"]["description"]


def test_the_reference_names_every_rpc(contracts: Contracts) -> None:
    page = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    for service in contracts.services():
        for method in service.methods:
            assert f"</a>{method.name}\n" in page, method.full_name
