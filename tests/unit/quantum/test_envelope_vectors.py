"""The checked-in envelopes: the product writes them byte for byte, and they open with nothing but the standards."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from servers.crypto.algorithms import Algorithm
from servers.crypto.errors import OpenError
from servers.crypto.provider import provider_named
from servers.crypto.sealing import Sealed, open_sealed, seal
from servers.quantum.envelope import SUITES, EnvelopeError, Header, join, parse
from tests.unit.quantum.make_envelope_vectors import FILE

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))
OPENS = VECTORS["opens"]
REFUSED = VECTORS["refused"]


class Recorded:
    """A public key whose encapsulation is the vector's: the one deterministic path, and it is a test's."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self.algorithm = Algorithm(vector["algorithm"])
        self.public_bytes = b""
        self._pair = bytes.fromhex(vector["shared_secret"]), bytes.fromhex(vector["kem_ciphertext"])

    def encapsulate(self) -> tuple[bytes, bytes]:
        return self._pair


def opened(vector: dict[str, Any], data: bytes, user_id: str, device_id: str) -> bytes:
    """What a reader in another language does."""
    found = parse(data)
    header = Header(
        found.header.suite, vector["key_id"], vector["key_version"], vector["organization_id"], user_id, device_id
    )
    if header.encode() != found.header_bytes:
        raise OpenError
    key = provider_named("cryptography").kem_private_key(
        Algorithm(vector["algorithm"]), bytes.fromhex(vector["private_seed"])
    )
    sealed = Sealed(found.kem_ciphertext, found.nonce, found.ciphertext)
    return open_sealed(key, sealed, found.header.suite.info, found.header_bytes)


@pytest.mark.parametrize("vector", OPENS, ids=lambda vector: vector["suite"])
def test_the_product_writes_the_vector(vector: dict[str, Any]) -> None:
    suite = SUITES[vector["algorithm"]]
    assert (suite.name, suite.info.decode()) == (vector["suite"], vector["info"])
    header = Header(
        suite,
        vector["key_id"],
        vector["key_version"],
        vector["organization_id"],
        vector["user_id"],
        vector["device_id"],
    ).encode()
    assert header.hex() == vector["header"]
    sealed = seal(Recorded(vector), suite.info, header, bytes.fromhex(vector["template"]))
    assert sealed.nonce.hex() == vector["nonce"]
    assert join(header, sealed.kem_ciphertext, sealed.nonce, sealed.ciphertext).hex() == vector["envelope"]


@pytest.mark.parametrize("vector", OPENS, ids=lambda vector: vector["suite"])
def test_the_vector_opens(vector: dict[str, Any]) -> None:
    envelope = bytes.fromhex(vector["envelope"])
    assert opened(vector, envelope, vector["user_id"], vector["device_id"]).hex() == vector["template"]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_what_must_not_open_does_not(case: dict[str, str]) -> None:
    with pytest.raises((OpenError, EnvelopeError)):
        opened(OPENS[1], bytes.fromhex(case["envelope"]), case["user_id"], case["device_id"])


def test_the_offsets_of_the_document() -> None:
    """docs/envelope.md, read as it is written."""
    vector = OPENS[1]
    raw = bytes.fromhex(vector["envelope"])
    assert raw[:6] == b"BGEV\x01\x01"
    assert str(uuid.UUID(bytes=raw[6:22])) == vector["key_id"]
    assert int.from_bytes(raw[22:26], "big") == vector["key_version"]
    assert str(uuid.UUID(bytes=raw[26:42])) == vector["organization_id"]
    assert str(uuid.UUID(bytes=raw[42:58])) == vector["user_id"]
    assert raw[59 : 59 + raw[58]].decode() == vector["device_id"]


@pytest.mark.parametrize("vector", OPENS, ids=lambda vector: vector["suite"])
def test_the_vector_opens_by_the_document_alone(vector: dict[str, Any]) -> None:
    """docs/envelope.md's steps with a library's HKDF and AES-GCM, and none of the product's code."""
    raw = bytes.fromhex(vector["envelope"])
    number, size = {1: (0x0041, 1088), 2: (0x0042, 1568), 3: (0x647A, 1120)}[raw[5]]
    suite_id = b"HPKE" + b"".join(part.to_bytes(2) for part in (number, 1, 2))

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return HKDF.extract(hashes.SHA256(), salt, b"HPKE-v1" + suite_id + label + material)

    def expand(secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
        said = length.to_bytes(2) + b"HPKE-v1" + suite_id + label + info
        return HKDFExpand(hashes.SHA256(), length, said).derive(secret)

    header = raw[: 59 + raw[58]]
    nonce_at = len(header) + size
    assert raw[len(header) : nonce_at].hex() == vector["kem_ciphertext"]
    info = b"behaviorguard envelope 1 " + vector["suite"].encode()
    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(bytes.fromhex(vector["shared_secret"]), b"secret", b"")
    nonce = expand(secret, b"base_nonce", context, 12)
    assert raw[nonce_at : nonce_at + 12] == nonce
    content = AESGCM(expand(secret, b"key", context, 32)).decrypt(nonce, raw[nonce_at + 12 :], header)
    assert content.hex() == vector["template"]
