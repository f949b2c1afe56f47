"""Vectors of the project Wycheproof (C2SP), by the `type` of their groups."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from infra.vectors.outcome import PASSED, Outcome, in_part, octets, require, require_refusal, settle, skipped
from servers.crypto.algorithms import Algorithm
from servers.crypto.errors import KeyMaterialError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from servers.crypto.provider import CryptoProvider, KemPublicKey

    Check = Callable[[CryptoProvider, Algorithm, dict[str, Any], dict[str, Any]], Outcome]

EXPANDED_KEYS: Final = "the private key is given in expanded form, which the product refuses by design: it takes seeds"
OWN_RANDOMNESS: Final = (
    "the randomness `m` is given, but this provider draws its own (oqs takes it); the public key was accepted and used"
)
NO_MESSAGE: Final = "only `mu` is given; the product signs and verifies messages"


@runtime_checkable
class _KnownAnswers(Protocol):
    """A public key that can be given the randomness of an encapsulation."""

    def encapsulate_from(self, randomness: bytes) -> tuple[bytes, bytes]:
        """Shared secret and ciphertext."""


def check_document(document: dict[str, Any], provider: CryptoProvider) -> Iterator[Outcome]:
    """Every vector of a file."""
    for group in document["testGroups"]:
        check = _CHECKS.get(group.get("type", ""))
        name = group.get("parameterSet") or document["algorithm"]
        for test in group["tests"]:
            number = f"tcId {test['tcId']}"
            if check is None:
                yield settle(number, partial(skipped, f"the product does nothing of the kind {group.get('type')}"))
            else:
                yield settle(number, partial(_with_algorithm, check, provider, name, group, test))


def _with_algorithm(
    check: Check, provider: CryptoProvider, name: str, group: dict[str, Any], test: dict[str, Any]
) -> Outcome:
    algorithm = product_algorithm(name)
    return check(provider, algorithm, group, test) if algorithm else skipped(f"the product has no {name}")


def product_algorithm(name: str) -> Algorithm | None:
    """The product's algorithm of that name; None when it has none. Aliases are no names of vectors."""
    try:
        return Algorithm(name)
    except ValueError:
        return None


def _decapsulate(provider: CryptoProvider, algorithm: Algorithm, _: dict[str, Any], test: dict[str, Any]) -> Outcome:
    seed, ciphertext = octets(test, "seed"), octets(test, "c")
    if test["result"] != "valid":
        require_refusal(lambda: provider.kem_private_key(algorithm, seed).decapsulate(ciphertext), "an invalid input")
        return PASSED
    key = provider.kem_private_key(algorithm, seed)
    require(key.public_bytes == octets(test, "ek"), "public key")
    require(key.decapsulate(ciphertext) == octets(test, "K"), "shared secret")
    return PASSED


def _decapsulate_expanded(
    provider: CryptoProvider, algorithm: Algorithm, _: dict[str, Any], test: dict[str, Any]
) -> Outcome:
    private, ciphertext = octets(test, "dk"), octets(test, "c")
    require_refusal(lambda: provider.kem_private_key(algorithm, private), "an expanded private key")
    if test["result"] == "valid":
        return skipped(EXPANDED_KEYS)
    if "IncorrectCiphertextLength" in test.get("flags", ()):
        key = provider.kem_private_key(algorithm, bytes(algorithm.parameters.seed_size))
        require_refusal(lambda: key.decapsulate(ciphertext), "a ciphertext of the wrong size")
    return PASSED


def _encapsulate(provider: CryptoProvider, algorithm: Algorithm, _: dict[str, Any], test: dict[str, Any]) -> Outcome:
    raw = octets(test, "ek")
    if test["result"] != "valid":
        require_refusal(lambda: provider.kem_public_key(algorithm, raw), "an invalid public key")
        return PASSED
    public = provider.kem_public_key(algorithm, raw)
    return check_encapsulation(public, octets(test, "m"), octets(test, "K"), octets(test, "c"))


def check_encapsulation(public: KemPublicKey, randomness: bytes, secret: bytes, ciphertext: bytes) -> Outcome:
    """The randomness gives the shared secret and its ciphertext, where the provider can be given it."""
    if isinstance(public, _KnownAnswers):
        require(public.encapsulate_from(randomness) == (secret, ciphertext), "shared secret or ciphertext")
        return PASSED
    own_secret, own_ciphertext = public.encapsulate()
    require((len(own_secret), len(own_ciphertext)) == (len(secret), len(ciphertext)), "sizes")
    return skipped(OWN_RANDOMNESS)


def _make_kem_key(provider: CryptoProvider, algorithm: Algorithm, _: dict[str, Any], test: dict[str, Any]) -> Outcome:
    seed = octets(test, "seed")
    if test["result"] != "valid":
        require_refusal(lambda: provider.kem_private_key(algorithm, seed), "an invalid seed")
        return PASSED
    check_kem_key(provider, algorithm, seed, octets(test, "ek"))
    return PASSED


def check_kem_key(provider: CryptoProvider, algorithm: Algorithm, seed: bytes, public: bytes) -> None:
    """The seed gives the public key, and what is encapsulated to it comes back."""
    key = provider.kem_private_key(algorithm, seed)
    require(key.public_bytes == public, "public key")
    secret, ciphertext = provider.kem_public_key(algorithm, public).encapsulate()
    require(key.decapsulate(ciphertext) == secret, "shared secret of a round trip")


def _verify(provider: CryptoProvider, algorithm: Algorithm, group: dict[str, Any], test: dict[str, Any]) -> Outcome:
    try:
        key = provider.verifying_key(algorithm, octets(group, "publicKey"))
    except KeyMaterialError:
        require(test["result"] != "valid", "a valid public key was refused")
        return PASSED
    accepted = key.verify(octets(test, "msg"), octets(test, "sig"), bytes.fromhex(test.get("ctx", "")))
    require(accepted is (test["result"] == "valid"), f"the signature was {'accepted' if accepted else 'refused'}")
    return PASSED


def _sign(provider: CryptoProvider, algorithm: Algorithm, group: dict[str, Any], test: dict[str, Any]) -> Outcome:
    if "privateSeed" not in group:
        return _sign_expanded(provider, algorithm, group, test)
    seed, context = octets(group, "privateSeed"), bytes.fromhex(test.get("ctx", ""))
    if test["result"] != "valid":
        require_refusal(
            lambda: provider.signing_key(algorithm, seed).sign(octets(test, "msg"), context), "an invalid input"
        )
        return PASSED
    key = provider.signing_key(algorithm, seed)
    require(key.public_bytes == octets(group, "publicKey"), "public key")
    if "msg" not in test:
        return in_part(f"{NO_MESSAGE}; the key made of the seed was compared")
    message, verifying = octets(test, "msg"), provider.verifying_key(algorithm, key.public_bytes)
    require(verifying.verify(message, octets(test, "sig"), context), "the vector's signature was refused")
    require(verifying.verify(message, key.sign(message, context), context), "the product's own signature was refused")
    return PASSED


def _sign_expanded(
    provider: CryptoProvider, algorithm: Algorithm, group: dict[str, Any], test: dict[str, Any]
) -> Outcome:
    private, context = octets(group, "privateKey"), bytes.fromhex(test.get("ctx", ""))
    require_refusal(lambda: provider.signing_key(algorithm, private), "an expanded private key")
    if test["result"] != "valid":
        return PASSED
    if "msg" not in test:
        return skipped(NO_MESSAGE)
    key = provider.verifying_key(algorithm, octets(group, "publicKey"))
    require(key.verify(octets(test, "msg"), octets(test, "sig"), context), "the vector's signature was refused")
    return in_part(f"{EXPANDED_KEYS}; the vector's signature was verified")


_CHECKS: Final[Mapping[str, Check]] = {
    "MLKEMTest": _decapsulate,
    "MLKEMDecapsValidationTest": _decapsulate_expanded,
    "MLKEMEncapsTest": _encapsulate,
    "MLKEMKeyGen": _make_kem_key,
    "MlDsaVerify": _verify,
    "MlDsaSign": _sign,
}
