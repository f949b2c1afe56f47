"""The published vectors: what a reader in another language must accept and refuse."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final

import pytest
from behaviorguard.client.tokens import TokenRejectedError, TokenVerifier, VerificationKeys, read_token

from servers.crypto.algorithms import Algorithm
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.quantum import jws

VECTORS: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "token_vectors.json").read_text())


def verifier() -> TokenVerifier:
    keys = VerificationKeys.from_jwks(VECTORS["jwks"])
    return TokenVerifier(keys, VECTORS["audience"], issuer=VECTORS["issuer"], accept_classical=True)


@pytest.mark.parametrize("kind", ["hybrid", "classical"])
def test_the_good_ones_are_accepted(kind: str) -> None:
    found = verifier().verify(VECTORS[kind], now=VECTORS["now"])
    assert found.quantum_secured is (kind == "hybrid")
    payload = jws.claims_payload(found.claims)
    assert json.loads(base64.urlsafe_b64decode(payload + "==")) == VECTORS["claims"]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
def test_the_bad_ones_are_refused(case: dict[str, str]) -> None:
    with pytest.raises(TokenRejectedError) as refusal:
        verifier().verify(case["token"], now=VECTORS["now"])
    assert refusal.value.problem == case["reason"]


def test_the_seeds_give_the_keys_and_the_classical_token() -> None:
    provider = CryptographyProvider()
    for entry, algorithm in zip(VECTORS["jwks"]["keys"], (Algorithm.ED25519, Algorithm.ML_DSA_65), strict=True):
        key = provider.signing_key(algorithm, bytes.fromhex(VECTORS["seeds"][entry["alg"]]))
        public = entry["x"] if algorithm is Algorithm.ED25519 else entry["pub"]
        assert base64.urlsafe_b64decode(public + "==") == key.public_bytes
    (part,) = read_token(VECTORS["classical"]).signatures
    key = provider.signing_key(Algorithm.ED25519, bytes.fromhex(VECTORS["seeds"]["EdDSA"]))
    assert key.sign(part.signing_input) == part.signature  # Ed25519 is deterministic; ML-DSA's signatures are hedged
