"""HPKE vectors: of RFC 9180, and of draft-ietf-hpke-pq with the post-quantum KEMs.

The KEM is the product's provider where the product has it; the key schedule, the cipher and the exporter are those that
the product seals with, for every suite that is HKDF.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from infra.vectors.outcome import PASSED, Outcome, in_part, octets, require, settle, skipped
from servers.crypto.hpke import PRODUCT_SUITES, Schedule, Suite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from servers.crypto.hpke import Aead
    from servers.crypto.provider import CryptoProvider

_KEMS: Final = {suite.kem_id: algorithm for algorithm, suite in PRODUCT_SUITES.items()}
_HASHES: Final = {1: ("sha256", 32), 2: ("sha384", 48), 3: ("sha512", 64)}
_AEADS: Final[Mapping[int, tuple[Callable[[bytes], Aead], int]]] = {
    1: (AESGCM, 16),
    2: (AESGCM, 32),
    3: (ChaCha20Poly1305, 32),
}
_EXPORT_ONLY: Final = 0xFFFF

OTHER_KEM: Final = "the KEM is not the product's: the shared secret was taken from the vector, all after it compared"
OTHER_KDF: Final = "the KDF is not HKDF, the product's"


def check_document(document: list[dict[str, Any]], provider: CryptoProvider) -> Iterator[Outcome]:
    """Every vector of a file."""
    for index, vector in enumerate(document):
        suite = "-".join(f"{vector.get(name, 0):#x}" for name in ("kem_id", "kdf_id", "aead_id"))
        test = f"vector {index}, suite {suite}, mode {vector.get('mode')}"
        yield settle(test, partial(_check, provider, vector))


def _check(provider: CryptoProvider, vector: dict[str, Any]) -> Outcome:
    ours = vector["kem_id"] in _KEMS
    if ours:
        _check_kem(provider, vector)
    if vector["kdf_id"] not in _HASHES:
        return in_part(f"{OTHER_KDF}; key pair and shared secret were compared") if ours else skipped(OTHER_KDF)
    schedule = _check_schedule(vector)
    _check_messages(schedule, vector)
    return PASSED if ours else in_part(OTHER_KEM)


def _check_kem(provider: CryptoProvider, vector: dict[str, Any]) -> None:
    key = provider.kem_private_key(_KEMS[vector["kem_id"]], octets(vector, "skRm"))
    require(key.public_bytes == octets(vector, "pkRm"), "public key")
    require(key.decapsulate(octets(vector, "enc")) == octets(vector, "shared_secret"), "shared secret")


def _check_schedule(vector: dict[str, Any]) -> Schedule:
    hash_name, hash_size = _HASHES[vector["kdf_id"]]
    aead, key_size = _AEADS.get(vector["aead_id"], (AESGCM, 0))
    suite = Suite(vector["kem_id"], vector["kdf_id"], vector["aead_id"], hash_name, hash_size, key_size, aead)
    schedule = Schedule.derive(
        suite,
        octets(vector, "shared_secret"),
        octets(vector, "info"),
        mode=vector["mode"],
        psk=bytes.fromhex(vector.get("psk", "")),
        psk_id=bytes.fromhex(vector.get("psk_id", "")),
    )
    if "secret" in vector:
        require(schedule.secret == octets(vector, "secret"), "secret of the schedule")
        require(schedule.context == octets(vector, "key_schedule_context"), "context of the schedule")
    if vector["aead_id"] != _EXPORT_ONLY:
        require(schedule.expand(b"key", key_size) == octets(vector, "key"), "content key")
        require(schedule.base_nonce() == octets(vector, "base_nonce"), "base nonce")
    require(schedule.expand(b"exp", hash_size) == octets(vector, "exporter_secret"), "exporter secret")
    return schedule


def _check_messages(schedule: Schedule, vector: dict[str, Any]) -> None:
    for message in vector["encryptions"]:
        cipher = schedule.cipher()
        nonce, aad, plaintext, ciphertext = (octets(message, name) for name in ("nonce", "aad", "pt", "ct"))
        require(cipher.encrypt(nonce, plaintext, aad) == ciphertext, "ciphertext")
        require(cipher.decrypt(nonce, ciphertext, aad) == plaintext, "plaintext")
    exporter = schedule.expand(b"exp", schedule.suite.hash_size)
    for export in vector["exports"]:
        context, size = octets(export, "exporter_context"), export["L"]
        value = schedule.suite.labeled_expand(exporter, b"sec", context, size)
        require(value == octets(export, "exported_value"), "exported value")
