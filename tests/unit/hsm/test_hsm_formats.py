"""Sealed files, journal records, backups and shares: what was written is read back, anything else is a typed error."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.crypto.provider import provider_named
from servers.hsm import shares
from servers.hsm.backup import BackupReader, OtherRootError, write_backup
from servers.hsm.journal import FIRST_PREVIOUS, Entry, authentic, make_entry, merge, parse_entry
from servers.hsm.sealed import DamagedError, Header, SealedSeed, parse_header, parse_sealed
from servers.hsm.shares import ShareError
from servers.hsm.vaults import RootSecret, SoftwareMasterKey, SoftwareVault, Unlocked, unlock

PROVIDER = provider_named("cryptography")
KEY = bytes(range(32))
HEADER = Header(
    "11111111-1111-4111-8111-111111111111",
    3,
    "ML-KEM-768",
    "00000000-0000-4000-8000-000000000001",
    17,
    "2026-11-23T00:00:00.000000+00:00",
    "ab" * 32,
    "os:healthy",
)


def sealed_seed(seed: bytes = b"s" * 64, header: Header = HEADER) -> SealedSeed:
    return SealedSeed(header, *SoftwareMasterKey(KEY).seal(seed, header.associated_data()))


def unlocked(root: RootSecret) -> Unlocked:
    return unlock(root, SoftwareVault().open(root, {}), PROVIDER)


def chain(count: int, key: bytes | None = KEY) -> list[Entry]:
    entries: list[Entry] = []
    previous = FIRST_PREVIOUS
    for sequence in range(1, count + 1):
        entries.append(make_entry(sequence, previous, "2026-11-23T00:00:00", "call", {"n": sequence}, key))
        previous = entries[-1].hash
    return entries


def encoded(entries: list[Entry]) -> bytes:
    return b"".join(entry.encode() for entry in entries)


# Sealed files


def test_a_sealed_file_is_read_back() -> None:
    sealed = sealed_seed()
    found = parse_sealed(sealed.encode())
    assert found == sealed
    opened = SoftwareMasterKey(KEY).open(found.nonce, found.ciphertext, found.header.associated_data())
    assert bytes(opened) == b"s" * 64


@pytest.mark.parametrize(
    "change",
    [
        {"key_id": "22222222-2222-4222-8222-222222222222"},
        {"version": 4},
        {"algorithm": "ML-KEM-1024"},
        {"organization_id": "00000000-0000-4000-8000-000000000002"},
        {"generation": 18},
        {"public_key_hash": "cd" * 32},
    ],
)
def test_a_seed_opens_only_as_what_it_was_sealed_as(change: dict[str, object]) -> None:
    sealed = sealed_seed()
    other = replace(sealed.header, **change)  # type: ignore[arg-type]  # fields by name
    with pytest.raises(DamagedError):
        SoftwareMasterKey(KEY).open(sealed.nonce, sealed.ciphertext, other.associated_data())


@settings(max_examples=300)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_every_flipped_byte_of_a_sealed_file_is_seen(place: int, flip: int) -> None:
    content = bytearray(sealed_seed().encode())
    content[place % len(content)] ^= flip
    with pytest.raises(DamagedError):
        parse_sealed(bytes(content))


@given(st.integers(min_value=0, max_value=600))
def test_a_sealed_file_cut_short_is_seen(size: int) -> None:
    content = sealed_seed().encode()
    if size < len(content):
        with pytest.raises(DamagedError):
            parse_sealed(content[:size])


@settings(max_examples=300)
@given(st.binary(max_size=5000) | st.binary(max_size=400).map(lambda rest: b"BGSEAL01" + rest))
def test_any_bytes_are_a_sealed_file_or_damaged(content: bytes) -> None:
    with pytest.raises(DamagedError):
        parse_sealed(content)


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(sorted(Header.__slots__)) | st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.lists(st.integers()),
    )
)
def test_any_json_is_a_header_or_damaged(said: dict[str, object]) -> None:
    honest = json.loads(HEADER.encode())
    for value in (said, honest | said):
        raw = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        try:
            assert parse_header(raw).encode() == raw
        except DamagedError:
            continue


# Journal


def test_a_record_is_read_back() -> None:
    for entry in chain(3):
        assert parse_entry(entry.encode()[:-1]) == entry
        assert authentic(entry, KEY)
        assert not authentic(entry, b"other" * 8)
    assert not authentic(chain(1, None)[0], KEY)


@settings(max_examples=300)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_every_flipped_byte_of_a_record_is_seen(place: int, flip: int) -> None:
    entry = chain(2)[1]
    line = bytearray(entry.encode()[:-1])
    line[place % len(line)] ^= flip
    try:
        found = parse_entry(bytes(line))
    except DamagedError:
        return
    assert (found.hash, found.previous, found.data) == (entry.hash, entry.previous, entry.data)
    assert not authentic(found, KEY)


@settings(max_examples=200)
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_line_is_a_record_or_damaged(line: bytes) -> None:
    with pytest.raises(DamagedError):
        parse_entry(line)


def test_modules_that_agree_give_their_chain() -> None:
    entries = chain(5)
    assert merge([encoded(entries)] * 3) == entries
    assert merge([b"", b"", b""]) == []


def test_one_whole_module_is_enough() -> None:
    entries = chain(5)
    assert merge([b"", b"rubbish\n", encoded(entries)]) == entries
    assert merge([encoded(entries[:2]), encoded(entries[:3]), encoded(entries)]) == entries


def test_damage_at_different_places_is_joined() -> None:
    lines = [entry.encode() for entry in chain(6)]
    contents = [
        b"".join(b"damaged\n" if i % 3 == module else line for i, line in enumerate(lines)) for module in range(3)
    ]
    assert merge(contents) == chain(6)


def test_a_record_that_is_whole_nowhere_is_an_error() -> None:
    lines = [entry.encode() for entry in chain(4)]
    with pytest.raises(DamagedError, match="record 2"):
        merge([lines[0] + lines[2] + lines[3]] * 3)


def test_a_torn_end_is_left_out() -> None:
    content = encoded(chain(4))
    assert merge([content[:-7]] * 3) == chain(3)


def test_what_others_built_on_wins_over_what_one_module_took() -> None:
    entries = chain(3)
    stray = make_entry(3, entries[1].hash, "2026-11-23T00:00:00", "call", {"n": 99}, KEY)
    forked = encoded([*entries[:2], stray])
    assert merge([forked, encoded(entries), encoded(entries)]) == entries
    longer = chain(4)
    assert merge([forked, encoded(longer), b""]) == longer


# Backups


def backup_of(root: RootSecret, count: int = 300) -> bytes:
    seeds = [(replace(HEADER, version=i), bytearray(i.to_bytes(2) * 32)) for i in range(1, count + 1)]
    pieces = list(write_backup(seeds, unlocked(root), "2026-11-23T00:00:00"))
    assert all(len(piece) <= 65_536 for piece in pieces)
    assert all(not any(seed) for _, seed in seeds)
    return b"".join(pieces)


def read(root: RootSecret, content: bytes, size: int = 10_000) -> list[tuple[Header, bytearray]]:
    reader = BackupReader(root, PROVIDER)
    found = [each for i in range(0, len(content), size) for each in reader.feed(content[i : i + size])]
    reader.finish()
    return found


ROOT = bytes(range(100, 132))
BACKUP = backup_of(RootSecret(ROOT))


@pytest.mark.parametrize("size", [1000, 33_000, 10**6])
def test_a_backup_is_read_back(size: int) -> None:
    found = read(RootSecret(ROOT), BACKUP, size)
    assert [(header.version, bytes(seed)) for header, seed in found] == [(i, i.to_bytes(2) * 32) for i in range(1, 301)]


def test_an_empty_backup_is_read_back() -> None:
    assert read(RootSecret(ROOT), backup_of(RootSecret(ROOT), 0)) == []


def test_a_backup_needs_the_same_shares() -> None:
    with pytest.raises(OtherRootError):
        read(RootSecret(KEY), BACKUP)


def test_who_knows_the_recovery_key_alone_cannot_make_a_backup() -> None:
    """Everybody with a backup knows its public key; a backup is believed only from an HSM of the same root."""
    honest = unlocked(RootSecret(ROOT))
    forger = replace(honest, backup_key=bytes(32))
    forged = b"".join(write_backup([(HEADER, bytearray(64))], forger, "2026-11-23T00:00:00"))
    with pytest.raises(DamagedError):
        read(RootSecret(ROOT), forged)


@settings(max_examples=150, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_every_flipped_byte_of_a_backup_is_seen(place: int, flip: int) -> None:
    content = bytearray(BACKUP)
    content[place % len(content)] ^= flip
    with pytest.raises((DamagedError, OtherRootError)):
        read(RootSecret(ROOT), bytes(content))


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0, max_value=len(BACKUP) - 1))
def test_a_backup_cut_short_is_seen(size: int) -> None:
    with pytest.raises(DamagedError):
        read(RootSecret(ROOT), BACKUP[:size], 33_000)


def frames(content: bytes) -> list[bytes]:
    place = 12 + int.from_bytes(content[8:12])
    parts = [content[:place]]
    while place < len(content):
        end = place + 4 + int.from_bytes(content[place : place + 4])
        parts.append(content[place:end])
        place = end
    return parts


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [0, 1, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3, 3], [0, 3]])
def test_frames_cannot_be_moved_doubled_or_dropped(order: list[int]) -> None:
    parts = frames(BACKUP)
    assert len(parts) >= 4
    with pytest.raises(DamagedError):
        read(RootSecret(ROOT), b"".join(parts[i] for i in order))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_backup_or_damaged(content: bytes, led: bool) -> None:
    with pytest.raises((DamagedError, OtherRootError)):
        read(RootSecret(ROOT), (b"BGBACK01\x00\x00\x00\x20" if led else b"") + content)


# Shares


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (3, 1), (5, 3), (16, 16)])
def test_enough_shares_give_the_secret(count: int, threshold: int) -> None:
    words = shares.split(ROOT, count, threshold)
    assert len(set(words)) == count
    parsed = [shares.parse(each) for each in words]
    assert {share.threshold for share in parsed} == {threshold}
    assert len({share.place for share in parsed}) == count
    assert shares.combine(parsed[-threshold:]) == ROOT


def test_fewer_or_foreign_shares_give_nothing() -> None:
    mine = [shares.parse(each) for each in shares.split(ROOT, 3, 2)]
    other = [shares.parse(each) for each in shares.split(KEY, 3, 2)]
    for wrong in ([mine[0]], [mine[0], other[1]], [mine[0], mine[0]], mine):
        with pytest.raises(ShareError):
            shares.combine(wrong)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(shares.split(ROOT, 1, 1)[0].split()), max_size=40) | st.just(["zebra"]))
def test_words_are_a_share_or_an_error_that_repeats_none(words: list[str]) -> None:
    with pytest.raises(ShareError) as refused:
        shares.parse(" ".join(words))
    assert not any(word in str(refused.value).split() for word in words if len(word) > 6)
