"""`behaviorguard crypto check-vectors`, on small files made here and, where they are, on the published sets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from infra.cli.crypto import crypto
from infra.cli.main import main
from servers.crypto.algorithms import Algorithm
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.crypto.hpke import PRODUCT_SUITES, Schedule

PROVIDER = CryptographyProvider()
SEED = bytes(range(64))
KEM_KEY = PROVIDER.kem_private_key(Algorithm.ML_KEM_768, SEED)
KEM_PUBLIC = PROVIDER.kem_public_key(Algorithm.ML_KEM_768, KEM_KEY.public_bytes)
SECRET, CIPHERTEXT = KEM_PUBLIC.encapsulate()
DSA_KEY = PROVIDER.signing_key(Algorithm.ML_DSA_65, SEED[:32])
SIGNATURE = DSA_KEY.sign(b"message", b"context")
EXPANDED_KEM, EXPANDED_DSA = bytes(2400), bytes(4032)

EK, SIG, PK = KEM_KEY.public_bytes.hex(), SIGNATURE.hex(), DSA_KEY.public_bytes.hex()
MSG, CTX = b"message".hex(), b"context".hex()


def _acvp(algorithm: str, mode: str, tests: list[dict[str, Any]], **group: Any) -> dict[str, Any]:
    tests = [{"tcId": number, "deferred": False, **test} for number, test in enumerate(tests, 1)]
    group = {"tgId": 1, "testType": "AFT", **group, "tests": tests}
    return {"vsId": 42, "algorithm": algorithm, "mode": mode, "revision": "x", "isSample": True, "testGroups": [group]}


def _wycheproof(algorithm: str, kind: str, tests: list[dict[str, Any]], **group: Any) -> dict[str, Any]:
    tests = [{"tcId": number, "flags": [], **test} for number, test in enumerate(tests, 1)]
    return {"algorithm": algorithm, "schema": "x", "testGroups": [{"type": kind, **group, "tests": tests}]}


def _hpke(**changes: Any) -> list[dict[str, Any]]:
    """A vector of the product's own suite, its values by another library as far as that shows them."""
    schedule = Schedule.derive(PRODUCT_SUITES[Algorithm.ML_KEM_768], SECRET, b"info")
    nonce = schedule.base_nonce()
    return [
        {
            "mode": 0,
            "kem_id": 0x41,
            "kdf_id": 1,
            "aead_id": 2,
            "info": b"info".hex(),
            "skRm": SEED.hex(),
            "pkRm": EK,
            "enc": CIPHERTEXT.hex(),
            "shared_secret": SECRET.hex(),
            "key": schedule.expand(b"key", 32).hex(),
            "base_nonce": nonce.hex(),
            "exporter_secret": schedule.expand(b"exp", 32).hex(),
            "encryptions": [
                {
                    "aad": "",
                    "nonce": nonce.hex(),
                    "pt": MSG,
                    "ct": schedule.cipher().encrypt(nonce, b"message", b"").hex(),
                }
            ],
            "exports": [],
            **changes,
        }
    ]


def _run(folder: Path, *options: str) -> tuple[Result, dict[str, Any]]:
    result = CliRunner().invoke(crypto, ["check-vectors", str(folder), "--json", *options])
    return result, json.loads(result.stdout) if result.stdout.startswith("{") else {}


def _check(folder: Path, document: Any) -> tuple[int, dict[str, Any]]:
    (folder / "vectors.json").write_text(json.dumps(document))
    result, report = _run(folder)
    assert report["files"] == 1
    return result.exit_code, report


RIGHT = {
    "acvp ML-KEM keyGen": _acvp(
        "ML-KEM",
        "keyGen",
        [{"d": SEED[:32].hex(), "z": SEED[32:].hex(), "ek": EK, "dk": ""}],
        parameterSet="ML-KEM-768",
    ),
    "acvp ML-KEM encapsulationKeyCheck": _acvp(
        "ML-KEM",
        "encapDecap",
        [{"ek": EK, "testPassed": True}, {"ek": "FF" * 1184, "testPassed": False}],
        parameterSet="ML-KEM-768",
        function="encapsulationKeyCheck",
    ),
    "acvp ML-KEM decapsulation from a seed": _acvp(
        "ML-KEM",
        "encapDecap",
        [{"c": CIPHERTEXT.hex(), "k": SECRET.hex()}],
        parameterSet="ML-KEM-768",
        function="decapsulation",
        d=SEED[:32].hex(),
        z=SEED[32:].hex(),
    ),
    "acvp ML-DSA keyGen": _acvp(
        "ML-DSA", "keyGen", [{"seed": SEED[:32].hex(), "pk": PK, "sk": ""}], parameterSet="ML-DSA-65"
    ),
    "acvp ML-DSA sigGen": _acvp(
        "ML-DSA",
        "sigGen",
        [{"sk": EXPANDED_DSA.hex(), "pk": PK, "message": MSG, "context": CTX, "signature": SIG}],
        parameterSet="ML-DSA-65",
        signatureInterface="external",
        preHash="pure",
        deterministic=False,
        externalMu=False,
    ),
    "acvp ML-DSA sigVer": _acvp(
        "ML-DSA",
        "sigVer",
        [
            {"pk": PK, "message": MSG, "context": CTX, "signature": SIG, "testPassed": True},
            {"pk": PK, "message": MSG + "00", "context": CTX, "signature": SIG, "testPassed": False},
        ],
        parameterSet="ML-DSA-65",
        signatureInterface="external",
        preHash="pure",
    ),
    "wycheproof MLKEMTest": _wycheproof(
        "ML-KEM",
        "MLKEMTest",
        [
            {"seed": SEED.hex(), "ek": EK, "c": CIPHERTEXT.hex(), "K": SECRET.hex(), "result": "valid"},
            {"seed": SEED.hex(), "ek": EK, "c": "00", "K": "", "result": "invalid"},
        ],
        parameterSet="ML-KEM-768",
    ),
    "wycheproof MlDsaSign": _wycheproof(
        "ML-DSA-65",
        "MlDsaSign",
        [{"msg": MSG, "ctx": CTX, "sig": SIG, "result": "valid"}],
        privateSeed=SEED[:32].hex(),
        publicKey=PK,
    ),
    "hpke": _hpke(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_vectors_pass(tmp_path: Path, name: str) -> None:
    code, report = _check(tmp_path, RIGHT[name])
    assert (code, report["failed"], report["skipped"]) == (0, 0, 0)
    assert report["passed"] >= 1


@pytest.mark.parametrize("name", RIGHT)
def test_any_changed_answer_fails(tmp_path: Path, name: str) -> None:
    """Each answer of each format is really compared: one changed digit is one failure, which names the vector."""
    answers = {"ek", "pk", "k", "K", "signature", "sig", "testPassed", "shared_secret", "key", "base_nonce"}
    answers |= {"exporter_secret", "ct", "pt", "pkRm", "publicKey"}
    changed = 0
    for number, document in enumerate(_changes(RIGHT[name], answers)):
        folder = tmp_path / str(number)
        folder.mkdir()
        code, report = _check(folder, document)
        assert (code, report["failed"] >= 1) == (1, True), document
        assert report["by_file"][0]["failures"][0]["reason"]
        changed += 1
    assert changed


def _changes(document: Any, names: set[str]) -> list[Any]:
    """The document with one named value changed, for each of them that is not empty."""
    text = json.dumps(document)
    found = []

    def visit(node: Any) -> None:
        for name, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if isinstance(value, dict | list):
                visit(value)
            elif name in names and value != "" and node.get("result") != "invalid":
                if "testPassed" in node and name != "testPassed":
                    continue
                wrong = not value if isinstance(value, bool) else f"{int(value[:2], 16) ^ 1:02x}{value[2:]}"
                node[name] = wrong
                found.append(json.loads(json.dumps(root)))
                node[name] = value

    root = json.loads(text)
    visit(root)
    return found


SKIPPED = {
    "an expanded key": (
        _acvp(
            "ML-KEM",
            "encapDecap",
            [{"c": CIPHERTEXT.hex(), "k": SECRET.hex()}],
            parameterSet="ML-KEM-768",
            function="decapsulation",
            dk=EXPANDED_KEM.hex(),
        ),
        "refuses by design",
    ),
    "a given randomness": (
        _acvp(
            "ML-KEM",
            "encapDecap",
            [{"ek": EK, "m": "00" * 32, "c": CIPHERTEXT.hex(), "k": SECRET.hex()}],
            parameterSet="ML-KEM-768",
            function="encapsulation",
        ),
        "draws its own",
    ),
    "a pre-hash": (
        _acvp(
            "ML-DSA",
            "sigVer",
            [{"pk": PK, "message": MSG, "signature": SIG, "testPassed": True}],
            parameterSet="ML-DSA-65",
            signatureInterface="external",
            preHash="preHash",
        ),
        "HashML-DSA",
    ),
    "the internal interface": (
        _acvp(
            "ML-DSA",
            "sigVer",
            [{"pk": PK, "message": MSG, "signature": SIG, "testPassed": True}],
            parameterSet="ML-DSA-65",
            signatureInterface="internal",
        ),
        "internal interface",
    ),
    "another parameter set": (
        _acvp("ML-KEM", "keyGen", [{"d": "", "z": "", "ek": "", "dk": ""}], parameterSet="ML-KEM-512"),
        "the product has no ML-KEM-512",
    ),
    "another algorithm": (
        _wycheproof("RSASSA-PSS", "RsassaPssVerify", [{"result": "valid"}]),
        "nothing of the kind RsassaPssVerify",
    ),
    "another mode of ACVP": (
        _acvp("SLH-DSA", "keyGen", [{"pk": ""}], parameterSet="SLH-DSA-SHA2-128s"),
        "nothing of the kind SLH-DSA keyGen",
    ),
    "a prompt": (
        _acvp("ML-DSA", "keyGen", [{"seed": SEED[:32].hex()}], parameterSet="ML-DSA-65"),
        "internalProjection",
    ),
    "expected results": (_acvp("ML-DSA", "keyGen", [{"pk": PK}]), "internalProjection"),
    "another KDF": (_hpke(kem_id=0x20, kdf_id=17), "the KDF is not HKDF"),
    "another JSON": ({"name": "package", "version": 1}, "not a vector file"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_skipped_says_why_and_is_no_success_by_itself(tmp_path: Path, name: str) -> None:
    document, reason = SKIPPED[name]
    code, report = _check(tmp_path, document)
    assert (code, report["passed"], report["failed"], report["skipped"]) == (1, 0, 0, 1)
    assert reason in report["by_file"][0]["reasons"][0]["reason"]


def test_acvp_files_in_their_protocol_envelope(tmp_path: Path) -> None:
    code, report = _check(tmp_path, [{"acvVersion": "1.0"}, RIGHT["acvp ML-DSA keyGen"]])
    assert (code, report["passed"]) == (0, 1)


def test_our_hpke_vector_is_what_another_library_makes() -> None:
    """So that the vector above is not only the product agreeing with itself."""
    vector = _hpke()[0]
    suite = hpke.Suite(hpke.KEM.MLKEM768, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    box = bytes.fromhex(vector["enc"] + vector["encryptions"][0]["ct"])
    assert suite.decrypt(box, MLKEM768PrivateKey.from_seed_bytes(SEED), b"info") == b"message"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"algorithm": "ML-DSA-65", "testGroups": [{"type": "MlDsaVerify"}]}', "lacks a part"),
        (b'{"algorithm": "ML-DSA-65", "testGroups": [1]}', "lacks a part"),
        (b'{"algorithm": "ML-DSA-65", "testGroups": [{"type": "MlDsaVerify", "tests": [{"tcId": 1}]}]}', "publicKey"),
        (
            b'{"algorithm": "ML-KEM", "testGroups": [{"type": "MLKEMKeyGen", "parameterSet": "ML-KEM-768", "tests":'
            b' [{"tcId": 7, "result": "valid", "seed": "no hexadecimal"}]}]}',
            "not hexadecimal",
        ),
        (
            b'{"algorithm": "ML-KEM", "testGroups": [{"type": "MLKEMKeyGen", "parameterSet": "ML-KEM-768", "tests":'
            b' [{"tcId": 7, "result": "valid", "seed": 5}]}]}',
            "wrong type",
        ),
    ],
)
def test_a_bad_file_is_a_failure_that_says_what_is_wrong(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    (tmp_path / "good.json").write_text(json.dumps(RIGHT["acvp ML-DSA keyGen"]))
    result, report = _run(tmp_path)
    assert result.exit_code == 1
    assert (report["passed"], report["failed"], report["files"]) == (1, 1, 2)
    failure = report["by_file"][0]["failures"][0]
    assert reason in failure["reason"]


def test_a_folder_that_is_empty_or_missing(tmp_path: Path) -> None:
    empty = CliRunner().invoke(main, ["crypto", "check-vectors", str(tmp_path)])
    assert empty.exit_code == 1
    assert "no JSON file" in empty.output
    missing = CliRunner().invoke(main, ["crypto", "check-vectors", str(tmp_path / "missing")])
    assert missing.exit_code == 2
    assert "does not exist" in missing.output


def test_a_missing_provider_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OQS_INSTALL_PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["crypto", "check-vectors", str(tmp_path), "--provider", "oqs"])
    assert result.exit_code == 1
    assert "liboqs is not installed" in result.output


def test_people_see_a_table_and_every_reason(tmp_path: Path) -> None:
    (tmp_path / "right.json").write_text(json.dumps(RIGHT["acvp ML-DSA sigGen"]))
    (tmp_path / "skipped.json").write_text(json.dumps(SKIPPED["an expanded key"][0]))
    (tmp_path / "wrong.json").write_text(json.dumps(_hpke(key="00" * 32)))
    result = CliRunner().invoke(crypto, ["check-vectors", str(tmp_path)])
    assert result.exit_code == 1
    shown = " ".join(result.stdout.split())
    assert "right.json: 1 passed in part" in shown
    assert "skipped.json: 1 skipped: the private key is given in expanded form" in shown
    assert "wrong.json: FAILED vector 0, suite 0x41-0x1-0x2, mode 0: content key" in shown


@pytest.mark.skipif("BEHAVIORGUARD_EVAL_DATA" not in os.environ, reason="set BEHAVIORGUARD_EVAL_DATA to the data sets")
def test_the_published_vectors_pass() -> None:
    result, report = _run(Path(os.environ["BEHAVIORGUARD_EVAL_DATA"]) / "vectors")
    assert (result.exit_code, report["failed"]) == (0, 0)
    assert report["passed"] > 1300
    counted = sum(reason["count"] for file in report["by_file"] for reason in file["reasons"])
    assert counted == report["skipped"] + report["passed_in_part"]
