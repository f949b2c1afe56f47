"""Writes `envelope_vectors.json`: `python tests/unit/quantum/make_envelope_vectors.py`.

Everything is fixed but the encapsulations, for which FIPS 203 wants fresh randomness that no library here takes from
outside: a new file has new KEM ciphertexts, and with them new secrets, nonces and texts. From the recorded KEM
ciphertext on, every byte follows, and the tests follow it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from servers.crypto.algorithms import Algorithm
from servers.crypto.provider import provider_named
from servers.crypto.sealing import seal
from servers.quantum import envelope
from servers.quantum.envelope import SUITES, Header

FILE = Path(__file__).with_name("envelope_vectors.json")
KEY_ID = "5f0c2c1e-7d1b-4c58-9a3e-2f6d1c0b9a87"
ORGANIZATION = "00000000-0000-4000-8000-000000000001"
USER = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a42"
SOMEBODY_ELSE = "8b6f7f0e-3c1d-4f7e-9a51-2d1c5f0e7a43"
CASES = [
    (Algorithm.ML_KEM_768, 1, "", b"\x00"),
    (Algorithm.ML_KEM_768, 7, "iphone-15.pro:A1_b", b"a template of a face, in clear" * 5),
    (Algorithm.ML_KEM_1024, 1_000_000, "", bytes(range(256))),
    (Algorithm.X_WING, 2, "d" * 255, b"fingerprint"),
]


def vector(algorithm: Algorithm, version: int, device_id: str, template: bytes) -> dict[str, Any]:
    """One envelope with everything that leads to it."""
    seed = hashlib.shake_256(f"behaviorguard envelope vector {algorithm}".encode()).digest(
        algorithm.parameters.seed_size
    )
    key = provider_named("cryptography").kem_private_key(algorithm, seed)
    public = provider_named("cryptography").kem_public_key(algorithm, key.public_bytes)
    suite = SUITES[algorithm.value]
    header = Header(suite, KEY_ID, version, ORGANIZATION, USER, device_id)
    sealed = seal(public, suite.info, header.encode(), template)
    return {
        "suite": suite.name,
        "algorithm": algorithm.value,
        "private_seed": seed.hex(),
        "key_id": KEY_ID,
        "key_version": version,
        "organization_id": ORGANIZATION,
        "user_id": USER,
        "device_id": device_id,
        "template": template.hex(),
        "info": suite.info.decode(),
        "header": header.encode().hex(),
        "kem_ciphertext": sealed.kem_ciphertext.hex(),
        "shared_secret": key.decapsulate(sealed.kem_ciphertext).hex(),
        "nonce": sealed.nonce.hex(),
        "envelope": envelope.join(header.encode(), sealed.kem_ciphertext, sealed.nonce, sealed.ciphertext).hex(),
    }


def refusals(good: dict[str, Any]) -> list[dict[str, str]]:
    """What must not open, made of one that does; `user_id` and `device_id` are what is asked for."""
    whole = bytes.fromhex(good["envelope"])
    size = len(good["header"]) // 2

    def flipped(place: int) -> str:
        return (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]).hex()

    asked = {"user_id": good["user_id"], "device_id": good["device_id"]}
    return [
        {"name": "a bit of the layout's number", "envelope": flipped(4), **asked},
        {"name": "a bit of the suite", "envelope": flipped(5), **asked},
        {"name": "a bit of the key version", "envelope": flipped(25), **asked},
        {"name": "a bit of the subject", "envelope": flipped(57), **asked},
        {"name": "a bit of the device's length", "envelope": flipped(58), **asked},
        {"name": "a bit of the device", "envelope": flipped(size - 1), **asked},
        {"name": "a bit of the KEM ciphertext", "envelope": flipped(size), **asked},
        {"name": "a bit of the nonce", "envelope": flipped(size + 1088), **asked},
        {"name": "a bit of the ciphertext", "envelope": flipped(size + 1088 + 12), **asked},
        {"name": "a bit of the tag", "envelope": flipped(len(whole) - 1), **asked},
        {"name": "a byte short", "envelope": whole[:-1].hex(), **asked},
        {"name": "a byte long", "envelope": whole.hex() + "00", **asked},
        {"name": "another person", "envelope": whole.hex(), **asked, "user_id": SOMEBODY_ELSE},
        {"name": "another device", "envelope": whole.hex(), **asked, "device_id": "pixel"},
        {"name": "no device", "envelope": whole.hex(), **asked, "device_id": ""},
    ]


def main() -> None:
    """Write the file anew."""
    opens = [vector(*case) for case in CASES]
    FILE.write_text(json.dumps({"opens": opens, "refused": refusals(opens[1])}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
