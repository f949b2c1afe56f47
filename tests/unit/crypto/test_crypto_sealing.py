"""The sealed box: what it opens, what it refuses, and that other HPKE libraries read it."""

from __future__ import annotations

import hashlib
import os

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers.crypto.algorithms import Algorithm, Kind
from servers.crypto.cryptography_provider import CryptographyProvider
from servers.crypto.errors import OpenError
from servers.crypto.hpke import NONCE_SIZE, PRODUCT_SUITES, TAG_SIZE, Schedule
from servers.crypto.sealing import Sealed, open_sealed, seal

HpkeKey = MLKEM768PrivateKey | MLKEM1024PrivateKey | hpke.MLKEM768X25519PrivateKey
PROVIDER = CryptographyProvider()
KEMS = [algorithm for algorithm in Algorithm if algorithm.kind is Kind.KEM]
KEYS = {kem: PROVIDER.kem_private_key(kem, os.urandom(kem.parameters.seed_size)) for kem in KEMS}
PUBLIC_KEYS = {kem: PROVIDER.kem_public_key(kem, KEYS[kem].public_bytes) for kem in KEMS}
kems = st.sampled_from(KEMS)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(kem=kems, info=st.binary(max_size=200), aad=st.binary(max_size=200), plaintext=st.binary(max_size=3000))
def test_what_is_sealed_opens(kem: Algorithm, info: bytes, aad: bytes, plaintext: bytes) -> None:
    sealed = seal(PUBLIC_KEYS[kem], info, aad, plaintext)
    assert len(sealed.kem_ciphertext) == kem.parameters.output_size
    assert len(sealed.nonce) == NONCE_SIZE
    assert len(sealed.ciphertext) == len(plaintext) + TAG_SIZE
    assert open_sealed(KEYS[kem], sealed, info, aad) == plaintext


@quick
@given(kem=kems, position=st.integers(min_value=0, max_value=10**6), bit=st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_anywhere_never_opens(kem: Algorithm, position: int, bit: int) -> None:
    parts = [b"info", b"associated", *_parts(seal(PUBLIC_KEYS[kem], b"info", b"associated", b"a template"))]
    position %= sum(map(len, parts))
    for index, part in enumerate(parts):
        if position < len(part):
            changed = bytearray(part)
            changed[position] ^= 1 << bit
            parts[index] = bytes(changed)
            break
        position -= len(part)
    with pytest.raises(OpenError):
        open_sealed(KEYS[kem], Sealed(*parts[2:]), parts[0], parts[1])


@quick
@given(kem=kems, sizes=st.tuples(*[st.integers(min_value=0, max_value=2000)] * 3))
def test_any_sizes_are_refused_alike(kem: Algorithm, sizes: tuple[int, int, int]) -> None:
    with pytest.raises(OpenError) as refusal:
        open_sealed(KEYS[kem], Sealed(*map(os.urandom, sizes)), b"info", b"")
    assert str(refusal.value) == str(OpenError())
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize("kem", KEMS)
def test_another_key_does_not_open(kem: Algorithm) -> None:
    sealed = seal(PUBLIC_KEYS[kem], b"info", b"", b"secret")
    other = PROVIDER.kem_private_key(kem, os.urandom(kem.parameters.seed_size))
    with pytest.raises(OpenError):
        open_sealed(other, sealed, b"info", b"")


@pytest.mark.parametrize("kem", KEMS)
def test_nothing_repeats_between_two_boxes(kem: Algorithm) -> None:
    one, other = (seal(PUBLIC_KEYS[kem], b"info", b"", b"the same") for _ in range(2))
    assert all(left != right for left, right in zip(_parts(one), _parts(other), strict=True))


@pytest.mark.parametrize("kem", KEMS)
def test_a_box_shows_nothing_of_itself(kem: Algorithm) -> None:
    assert repr(seal(PUBLIC_KEYS[kem], b"info", b"", b"plain")) == "Sealed()"


@pytest.mark.parametrize("kem", KEMS)
def test_another_hpke_library_opens_and_seals(kem: Algorithm) -> None:
    """`cryptography`'s HPKE is another implementation; its public interface has no associated data."""
    seed = os.urandom(96)
    libraries: dict[Algorithm, tuple[hpke.KEM, HpkeKey]] = {
        Algorithm.ML_KEM_768: (hpke.KEM.MLKEM768, MLKEM768PrivateKey.from_seed_bytes(seed[:64])),
        Algorithm.ML_KEM_1024: (hpke.KEM.MLKEM1024, MLKEM1024PrivateKey.from_seed_bytes(seed[:64])),
        Algorithm.X_WING: (hpke.KEM.MLKEM768_X25519, _x_wing(seed[:32])),
    }
    number, theirs = libraries[kem]
    suite = hpke.Suite(number, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    ours = PROVIDER.kem_private_key(kem, seed[: kem.parameters.seed_size])

    sealed = seal(PROVIDER.kem_public_key(kem, ours.public_bytes), b"info", b"", b"from us")
    assert suite.decrypt(sealed.kem_ciphertext + sealed.ciphertext, theirs, b"info") == b"from us"

    box = suite.encrypt(b"from them", theirs.public_key(), b"info")
    size = kem.parameters.output_size
    opened = Sealed(box[:size], _nonce(kem, ours.decapsulate(box[:size])), box[size:])
    assert open_sealed(ours, opened, b"info", b"") == b"from them"


def _x_wing(seed: bytes) -> hpke.MLKEM768X25519PrivateKey:

    expanded = hashlib.shake_256(seed).digest(96)
    return hpke.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    )


def _nonce(kem: Algorithm, shared_secret: bytes) -> bytes:
    return Schedule.derive(PRODUCT_SUITES[kem], shared_secret, b"info").base_nonce()


def _parts(sealed: Sealed) -> list[bytes]:
    return [sealed.kem_ciphertext, sealed.nonce, sealed.ciphertext]
