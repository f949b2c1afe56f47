"""Vectors of NIST's Automated Cryptographic Validation Protocol, as `internalProjection.json` holds them: questions and
answers in one (draft-celi-acvp-ml-kem, draft-celi-acvp-ml-dsa)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from infra.vectors.outcome import PASSED, Outcome, in_part, octets, require, require_refusal, settle, skipped
from infra.vectors.wycheproof import (
    EXPANDED_KEYS,
    NO_MESSAGE,
    check_encapsulation,
    check_kem_key,
    product_algorithm,
)
from servers.crypto.errors import KeyMaterialError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from servers.crypto.algorithms import Algorithm
    from servers.crypto.provider import CryptoProvider

    Check = Callable[[CryptoProvider, Algorithm, dict[str, Any], dict[str, Any]], Outcome]

HALF: Final = "the file holds questions or answers alone; internalProjection.json holds both"
PRE_HASH: Final = "HashML-DSA is not the product's: it signs messages (pure ML-DSA)"
INTERNAL: Final = "the internal interface is asked for; the product has the external one, with its context"


def check_document(document: dict[str, Any], provider: CryptoProvider) -> Iterator[Outcome]:
    """Every vector of a file."""
    kind = (document["algorithm"], document["mode"])
    check, answers = _CHECKS.get(kind, (None, ()))
    for group in document["testGroups"]:
        for test in group["tests"]:
            number = f"tcId {test['tcId']}"
            if check is None:
                yield settle(number, partial(skipped, f"the product does nothing of the kind {' '.join(kind)}"))
            elif not any(answer in test for answer in answers) or "parameterSet" not in group:
                yield settle(number, partial(skipped, HALF))
            else:
                yield settle(number, partial(_with_algorithm, check, provider, group, test))


def _with_algorithm(check: Check, provider: CryptoProvider, group: dict[str, Any], test: dict[str, Any]) -> Outcome:
    name = group["parameterSet"]
    algorithm = product_algorithm(name)
    # Fields that all tests of a group share stand in the group.
    return check(provider, algorithm, group, {**group, **test}) if algorithm else skipped(f"the product has no {name}")


def _make_kem_key(provider: CryptoProvider, algorithm: Algorithm, _: dict[str, Any], test: dict[str, Any]) -> Outcome:
    check_kem_key(provider, algorithm, octets(test, "d") + octets(test, "z"), octets(test, "ek"))
    return PASSED


def _encapsulate_or_decapsulate(
    provider: CryptoProvider, algorithm: Algorithm, group: dict[str, Any], test: dict[str, Any]
) -> Outcome:
    function = group["function"]
    if function == "encapsulation":
        public = provider.kem_public_key(algorithm, octets(test, "ek"))
        return check_encapsulation(public, octets(test, "m"), octets(test, "k"), octets(test, "c"))
    if function == "encapsulationKeyCheck":
        return _check_public_key(provider, algorithm, test)
    if function == "decapsulation" and "d" in test:
        key = provider.kem_private_key(algorithm, octets(test, "d") + octets(test, "z"))
        require(key.decapsulate(octets(test, "c")) == octets(test, "k"), "shared secret")
        return PASSED
    if function in {"decapsulation", "decapsulationKeyCheck"}:
        private = octets(test, "dk")
        require_refusal(lambda: provider.kem_private_key(algorithm, private), "an expanded private key")
        refused = function == "decapsulationKeyCheck" and test["testPassed"] is False
        return PASSED if refused else skipped(EXPANDED_KEYS)
    return skipped(f"the product has no function {function}")


def _check_public_key(provider: CryptoProvider, algorithm: Algorithm, test: dict[str, Any]) -> Outcome:
    accepted = True
    try:
        provider.kem_public_key(algorithm, octets(test, "ek"))
    except KeyMaterialError:
        accepted = False
    require(accepted is test["testPassed"], f"the public key was {'accepted' if accepted else 'refused'}")
    return PASSED


def _make_signing_key(
    provider: CryptoProvider, algorithm: Algorithm, _: dict[str, Any], test: dict[str, Any]
) -> Outcome:
    key = provider.signing_key(algorithm, octets(test, "seed"))
    require(key.public_bytes == octets(test, "pk"), "public key")
    return PASSED


def _sign(provider: CryptoProvider, algorithm: Algorithm, group: dict[str, Any], test: dict[str, Any]) -> Outcome:
    if "seed" not in test:
        private = octets(test, "sk")
        require_refusal(lambda: provider.signing_key(algorithm, private), "an expanded private key")
    if reason := _other_interface(group):
        return skipped(reason)
    message, context = octets(test, "message"), octets(test, "context")
    verifying = provider.verifying_key(algorithm, octets(test, "pk"))
    require(verifying.verify(message, octets(test, "signature"), context), "the vector's signature was refused")
    if "seed" not in test:
        return in_part(f"{EXPANDED_KEYS}; the vector's signature was verified")
    key = provider.signing_key(algorithm, octets(test, "seed"))
    require(verifying.verify(message, key.sign(message, context), context), "the product's own signature was refused")
    return PASSED


def _verify(provider: CryptoProvider, algorithm: Algorithm, group: dict[str, Any], test: dict[str, Any]) -> Outcome:
    if reason := _other_interface(group):
        return skipped(reason)
    try:
        key = provider.verifying_key(algorithm, octets(test, "pk"))
        accepted = key.verify(octets(test, "message"), octets(test, "signature"), octets(test, "context"))
    except KeyMaterialError:
        accepted = False
    require(accepted is test["testPassed"], f"the signature was {'accepted' if accepted else 'refused'}")
    return PASSED


def _other_interface(group: dict[str, Any]) -> str:
    """Why the group's interface is not the product's; empty when it is."""
    if group.get("externalMu"):
        return NO_MESSAGE
    if group.get("signatureInterface", "external") != "external":
        return INTERNAL
    return "" if group.get("preHash", "pure") == "pure" else PRE_HASH


_CHECKS: Final[Mapping[tuple[str, str], tuple[Check, tuple[str, ...]]]] = {
    ("ML-KEM", "keyGen"): (_make_kem_key, ("ek",)),
    ("ML-KEM", "encapDecap"): (_encapsulate_or_decapsulate, ("k", "testPassed")),
    ("ML-DSA", "keyGen"): (_make_signing_key, ("pk",)),
    ("ML-DSA", "sigGen"): (_sign, ("signature",)),
    ("ML-DSA", "sigVer"): (_verify, ("testPassed",)),
}
"""How each kind is checked, and the fields one of which every test with answers has."""
