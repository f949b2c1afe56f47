"""Both providers do what the Protocol says, and the same: where liboqs is installed each is run against the other."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.crypto.algorithms import SHARED_SECRET_SIZE, Algorithm, Kind
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.crypto.errors import (
    CiphertextError,
    ContextError,
    CryptoError,
    KeyMaterialError,
    ProviderUnavailableError,
    UnsupportedAlgorithmError,
)
from servers.crypto.oqs_provider import INSTALL_PATH, OqsProvider, find_library
from servers.crypto.provider import provider_named

if TYPE_CHECKING:
    from servers.crypto.provider import CryptoProvider

KEMS = [algorithm for algorithm in Algorithm if algorithm.kind is Kind.KEM]
SIGNATURES = [algorithm for algorithm in Algorithm if algorithm.kind is Kind.SIGNATURE]
NAMES = ["cryptography", "oqs"]


@pytest.fixture(scope="session")
def providers() -> dict[str, CryptoProvider]:
    """Those that this machine has."""
    there: dict[str, CryptoProvider] = {"cryptography": CryptographyProvider()}
    if find_library() is not None:
        with suppress(ProviderUnavailableError):
            there["oqs"] = OqsProvider()
    return there


def _take(providers: dict[str, CryptoProvider], name: str) -> CryptoProvider:
    if name not in providers:
        pytest.skip(f"liboqs 0.16 or newer is not installed: set {INSTALL_PATH} to its folder")
    return providers[name]


@pytest.fixture(params=NAMES)
def provider(request: pytest.FixtureRequest, providers: dict[str, CryptoProvider]) -> CryptoProvider:
    return _take(providers, request.param)


@pytest.fixture(params=list(product(NAMES, NAMES)), ids="-to-".join)
def pair(request: pytest.FixtureRequest, providers: dict[str, CryptoProvider]) -> tuple[CryptoProvider, CryptoProvider]:
    one, other = request.param
    return _take(providers, one), _take(providers, other)


@pytest.mark.parametrize("algorithm", KEMS)
def test_what_one_encapsulates_the_other_decapsulates(
    pair: tuple[CryptoProvider, CryptoProvider], algorithm: Algorithm
) -> None:
    one, other = pair
    seed = os.urandom(algorithm.parameters.seed_size)
    ours, theirs = one.kem_private_key(algorithm, seed), other.kem_private_key(algorithm, seed)
    assert ours.public_bytes == theirs.public_bytes
    assert len(ours.public_bytes) == algorithm.parameters.public_key_size

    public = one.kem_public_key(algorithm, ours.public_bytes)
    assert public.public_bytes == ours.public_bytes
    secret, ciphertext = public.encapsulate()
    assert (len(secret), len(ciphertext)) == (SHARED_SECRET_SIZE, algorithm.parameters.output_size)
    assert theirs.decapsulate(ciphertext) == secret
    assert public.encapsulate() != (secret, ciphertext)

    damaged = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    assert theirs.decapsulate(damaged) == ours.decapsulate(damaged) != secret


@pytest.mark.parametrize("algorithm", SIGNATURES)
def test_what_one_signs_the_other_verifies(pair: tuple[CryptoProvider, CryptoProvider], algorithm: Algorithm) -> None:
    one, other = pair
    seed = os.urandom(algorithm.parameters.seed_size)
    ours, theirs = one.signing_key(algorithm, seed), other.signing_key(algorithm, seed)
    assert ours.public_bytes == theirs.public_bytes
    assert len(ours.public_bytes) == algorithm.parameters.public_key_size
    context = b"" if algorithm is Algorithm.ED25519 else b"context"

    key = other.verifying_key(algorithm, ours.public_bytes)
    signature = ours.sign(b"message", context)
    assert len(signature) == algorithm.parameters.output_size
    assert key.verify(b"message", signature, context)
    assert not key.verify(b"massage", signature, context)
    assert not key.verify(b"message", signature, b"another context")
    assert not key.verify(b"message", signature[:-1], context)
    assert not key.verify(b"message", signature + b"\0", context)
    assert not key.verify(b"message", b"", context)
    damaged = bytes([signature[0] ^ 1]) + signature[1:]
    assert not key.verify(b"message", damaged, context)
    assert key.verify(b"", ours.sign(b""))


def test_signatures_are_hedged(provider: CryptoProvider) -> None:
    for algorithm in (Algorithm.ML_DSA_65, Algorithm.ML_DSA_87):
        key = provider.signing_key(algorithm, bytes(32))
        assert key.sign(b"message") != key.sign(b"message")


def test_contexts_have_a_limit(provider: CryptoProvider) -> None:
    for algorithm in (Algorithm.ML_DSA_65, Algorithm.ML_DSA_87):
        key = provider.signing_key(algorithm, bytes(32))
        verifying = provider.verifying_key(algorithm, key.public_bytes)
        assert verifying.verify(b"m", key.sign(b"m", bytes(255)), bytes(255))
        with pytest.raises(ContextError, match="at most 255"):
            key.sign(b"m", bytes(256))
        assert not verifying.verify(b"m", key.sign(b"m"), bytes(256))
    with pytest.raises(ContextError, match="takes no context"):
        provider.signing_key(Algorithm.ED25519, bytes(32)).sign(b"m", b"context")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_wrong_sizes_are_refused(provider: CryptoProvider, algorithm: Algorithm) -> None:
    sizes = algorithm.parameters
    for size in {0, 1, sizes.seed_size - 1, sizes.seed_size + 1, 96, 2400, 4032}:
        with pytest.raises(KeyMaterialError, match=f"{sizes.seed_size} bytes, not {size}"):
            provider.private_key(algorithm, bytes(size))
    for size in {0, sizes.public_key_size - 1, sizes.public_key_size + 1}:
        with pytest.raises(KeyMaterialError, match=f"{sizes.public_key_size} bytes, not {size}"):
            provider.public_key(algorithm, bytes(size))
    if algorithm.kind is Kind.KEM:
        key = provider.kem_private_key(algorithm, bytes(sizes.seed_size))
        for size in {0, sizes.output_size - 1, sizes.output_size + 1}:
            with pytest.raises(CiphertextError, match=f"{sizes.output_size} bytes, not {size}"):
                key.decapsulate(bytes(size))


def test_an_encapsulation_key_over_the_modulus_is_refused(provider: CryptoProvider) -> None:
    for algorithm in KEMS:
        with pytest.raises(KeyMaterialError, match="not a public key"):
            provider.kem_public_key(algorithm, b"\xff" * algorithm.parameters.public_key_size)


def test_shares_of_small_order_are_refused(provider: CryptoProvider) -> None:
    key = provider.kem_private_key(Algorithm.X_WING, bytes(32))
    with pytest.raises(KeyMaterialError, match="small order"):
        provider.kem_public_key(Algorithm.X_WING, key.public_bytes[:-32] + bytes(32)).encapsulate()
    with pytest.raises(CiphertextError, match="small order"):
        key.decapsulate(bytes(1120))


def test_the_other_kind_is_refused(provider: CryptoProvider) -> None:
    for kem in KEMS:
        for make in (provider.signing_key, provider.verifying_key):
            with pytest.raises(UnsupportedAlgorithmError, match="does not sign"):
                make(kem, bytes(64))
    for signature in SIGNATURES:
        for make_kem in (provider.kem_private_key, provider.kem_public_key):
            with pytest.raises(UnsupportedAlgorithmError, match="does not encapsulate"):
                make_kem(signature, bytes(32))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_no_secret_is_shown(provider: CryptoProvider, algorithm: Algorithm) -> None:
    seed = b"\x5a" * algorithm.parameters.seed_size
    private = provider.private_key(algorithm, seed)
    shown = repr(private) + str(private) + repr(provider)
    assert seed.hex() not in shown
    assert repr(seed)[2:12] not in shown
    with pytest.raises(CryptoError) as refusal:
        provider.private_key(algorithm, seed + b"\x5a")
    assert seed.hex() not in str(refusal.value)
    assert "ZZ" not in str(refusal.value)


@settings(max_examples=30, deadline=None)
@given(position=st.integers(min_value=0, max_value=3308), bit=st.integers(min_value=0, max_value=7))
def test_no_flipped_bit_of_a_signature_verifies(position: int, bit: int) -> None:
    provider = CryptographyProvider()
    key = provider.signing_key(Algorithm.ML_DSA_65, bytes(32))
    signature = bytearray(key.sign(b"message"))
    signature[position] ^= 1 << bit
    assert not provider.verifying_key(Algorithm.ML_DSA_65, key.public_bytes).verify(b"message", bytes(signature))


def test_many_threads_make_keys_from_their_own_seeds(provider: CryptoProvider) -> None:
    seeds = [os.urandom(32) for _ in range(64)]

    def make(seed: bytes) -> bytes:
        key = provider.signing_key(Algorithm.ML_DSA_65, seed)
        assert key.sign(b"m") != key.sign(b"m")
        return key.public_bytes

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, seeds))
    reference = CryptographyProvider()
    assert made == [reference.signing_key(Algorithm.ML_DSA_65, seed).public_bytes for seed in seeds]


def test_providers_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert provider_named("cryptography").name == "cryptography"
    with pytest.raises(ProviderUnavailableError, match="choose one of cryptography, oqs"):
        provider_named("openssl")
    monkeypatch.setenv(INSTALL_PATH, str(tmp_path))
    with pytest.raises(ProviderUnavailableError, match=f"install it and set {INSTALL_PATH}"):
        provider_named("oqs")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "liboqs.so").write_bytes(b"not a library")
    with pytest.raises(ProviderUnavailableError, match="cannot be loaded"):
        provider_named("oqs")


@pytest.mark.parametrize("version", [b"0.15.0", b"0.9.12", b"0.15.0-rc1", b"unknown"])
def test_an_old_liboqs_is_refused(version: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("OQS_init", "OQS_KEM_new", "OQS_SIG_new", "OQS_MEM_cleanse")
    library = SimpleNamespace(**{name: Mock() for name in names}, OQS_version=Mock(return_value=version))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    with pytest.raises(ProviderUnavailableError, match="is too old"):
        OqsProvider(tmp_path / "liboqs.so")


def test_choosing_a_provider_never_imports_the_package_that_would_build_liboqs() -> None:
    code = """
import sys
from servers.crypto.provider import provider_named
provider_named("cryptography")
assert not {"oqs", "servers.crypto.oqs_provider"} & set(sys.modules)
try:
    provider_named("oqs")
except ValueError:
    pass
assert "oqs" not in sys.modules
"""
    env = {"PATH": os.environ["PATH"], INSTALL_PATH: "/nonexistent"}
    folder = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


fuzz = settings(max_examples=40, deadline=None)
algorithms = st.sampled_from(list(Algorithm))


def _bytes_near(data: st.DataObject, size: int) -> bytes:
    """Any bytes, mostly of the right size or next to it."""
    return data.draw(st.one_of(st.binary(max_size=64), st.integers(-1, 1).map(lambda more: os.urandom(size + more))))


@fuzz
@given(algorithm=algorithms, data=st.data())
def test_any_bytes_are_a_key_or_a_typed_error(algorithm: Algorithm, data: st.DataObject) -> None:
    provider, sizes = CryptographyProvider(), algorithm.parameters
    seed, raw = _bytes_near(data, sizes.seed_size), _bytes_near(data, sizes.public_key_size)
    try:
        assert len(provider.private_key(algorithm, seed).public_bytes) == sizes.public_key_size
    except KeyMaterialError:
        assert len(seed) != sizes.seed_size
    with suppress(KeyMaterialError):
        assert provider.public_key(algorithm, raw).public_bytes == raw


@fuzz
@given(algorithm=st.sampled_from(KEMS), data=st.data())
def test_any_ciphertext_is_a_secret_or_a_typed_error(algorithm: Algorithm, data: st.DataObject) -> None:
    ciphertext = _bytes_near(data, algorithm.parameters.output_size)
    key = CryptographyProvider().kem_private_key(algorithm, bytes(algorithm.parameters.seed_size))
    try:
        assert len(key.decapsulate(ciphertext)) == SHARED_SECRET_SIZE
    except CiphertextError:
        assert len(ciphertext) != algorithm.parameters.output_size


@fuzz
@given(algorithm=st.sampled_from(SIGNATURES), message=st.binary(max_size=100), data=st.data())
def test_any_signature_is_true_or_false(algorithm: Algorithm, message: bytes, data: st.DataObject) -> None:
    provider = CryptographyProvider()
    key = provider.signing_key(algorithm, bytes(32))
    context = b"" if algorithm is Algorithm.ED25519 else data.draw(st.binary(max_size=300))
    signature = _bytes_near(data, algorithm.parameters.output_size)
    assert provider.verifying_key(algorithm, key.public_bytes).verify(message, signature, context) is False
