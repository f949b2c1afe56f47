"""The envelope's form: what is written is read, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.quantum.envelope import SUITES, EnvelopeError, Header, join, parse

SOMEBODY = "22222222-0000-4000-8000-000000000000"
UUIDS = st.uuids().map(str)
DEVICES = st.text("ABCxyz019._:-", max_size=255)
HEADERS = st.builds(
    Header, st.sampled_from(list(SUITES.values())), UUIDS, st.integers(1, 1_000_000), UUIDS, UUIDS, DEVICES
)


def envelope_of(header: Header, text: bytes) -> bytes:
    return join(header.encode(), bytes(header.suite.kem_ciphertext_size), bytes(12), text + bytes(16))


@given(HEADERS, st.binary(min_size=1, max_size=200))
def test_what_is_written_is_read(header: Header, text: bytes) -> None:
    found = parse(envelope_of(header, text))
    assert found.header == header
    assert found.header_bytes == header.encode()
    assert found.ciphertext == text + bytes(16)
    assert len(found.kem_ciphertext) == header.suite.kem_ciphertext_size
    assert join(found.header_bytes, found.kem_ciphertext, found.nonce, found.ciphertext) == envelope_of(header, text)


@given(st.binary(max_size=3000))
def test_any_bytes_are_refused_or_an_envelope_that_is_written_the_same(data: bytes) -> None:
    try:
        found = parse(data)
    except EnvelopeError:
        return
    assert join(found.header.encode(), found.kem_ciphertext, found.nonce, found.ciphertext) == data


@given(HEADERS, st.binary(min_size=1, max_size=50), st.data())
def test_a_changed_envelope_is_refused_or_says_something_else(header: Header, text: bytes, data: st.DataObject) -> None:
    whole = envelope_of(header, text)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        found = parse(bytes(changed))
    except EnvelopeError:
        return
    good = parse(whole)
    said = (found.header_bytes, found.kem_ciphertext, found.nonce, found.ciphertext)
    assert said != (good.header_bytes, good.kem_ciphertext, good.nonce, good.ciphertext)


@given(HEADERS, st.integers(0, 400))
def test_a_cut_envelope_never_gives_a_part_of_its_header(header: Header, cut: int) -> None:
    whole = envelope_of(header, b"x")
    try:
        found = parse(whole[: len(whole) - 1 - cut])
    except EnvelopeError:
        return
    pytest.fail(f"opened as {found.header.suite.name}")


def test_a_template_is_64_kib_at_most() -> None:
    header = Header(SUITES["ML-KEM-768"], SOMEBODY, 1, SOMEBODY, SOMEBODY)
    parse(envelope_of(header, bytes(65_536)))
    with pytest.raises(EnvelopeError):
        parse(envelope_of(header, bytes(65_537)))


@pytest.mark.parametrize("device", ["ü", "a b", "x" * 256, "a\n"])
def test_a_device_id_of_other_characters_is_not_written(device: str) -> None:
    with pytest.raises(ValueError, match="device id"):
        Header(SUITES["X-Wing"], SOMEBODY, 1, SOMEBODY, SOMEBODY, device).encode()


def test_nothing_personal_is_shown() -> None:
    header = Header(SUITES["X-Wing"], "11111111-0000-4000-8000-000000000000", 1, "0" * 8, SOMEBODY, "phone")
    assert SOMEBODY not in repr(header)
    assert "phone" not in repr(header)
