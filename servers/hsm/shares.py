"""The root secret in shares that people can write down: SLIP-39 words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shamir_mnemonic import (  # type: ignore[import-untyped]  # ships no types
    MnemonicError,
    combine_mnemonics,
    generate_mnemonics,
)
from shamir_mnemonic.share import Share  # type: ignore[import-untyped]  # ships no types

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_STRETCHING: Final = 0
"""SLIP-39's iterations stretch a passphrase; there is none, and the secret is random."""


class ShareError(ValueError):
    """Words that are no share, or no share of this set; the text says which and never repeats a word."""


@dataclass(frozen=True, slots=True)
class ParsedShare:
    """A share whose checksum is right."""

    set_id: int
    """Which set it belongs to, 15 bits."""
    place: tuple[int, int]
    """Which share of the set it is."""
    threshold: int
    """Shares of the set that give the secret."""
    words: str = field(repr=False)


def split(secret: bytes, shares: int, threshold: int) -> tuple[str, ...]:
    """Split a secret: any `threshold` of the shares give it, fewer tell nothing about it.

    Args:
        secret: 32 B.
        shares: 1 to 16.
        threshold: 1 to `shares`.
    """
    if threshold == 1:  # SLIP-39 makes no several members of one, but several groups of one
        groups = generate_mnemonics(1, [(1, 1)] * shares, secret, iteration_exponent=_NO_STRETCHING)
    else:
        groups = generate_mnemonics(1, [(threshold, shares)], secret, iteration_exponent=_NO_STRETCHING)
    return tuple(words for group in groups for words in group)


def parse(words: str) -> ParsedShare:
    """Read a share and check its checksum.

    Raises:
        ShareError: the words are none.
    """
    try:
        share = Share.from_mnemonic(words)
    except (MnemonicError, ValueError, KeyError):
        raise ShareError("the words are no SLIP-39 share: one is mistyped, missing or out of order") from None
    return ParsedShare(share.identifier, (share.group_index, share.index), share.member_threshold, words)


def combine(shares: Sequence[ParsedShare]) -> bytes:
    """The secret, from exactly as many shares as the threshold says; takes some 10 ms.

    Raises:
        ShareError: the shares do not belong together.
    """
    try:
        secret: bytes = combine_mnemonics([share.words for share in shares])
    except (MnemonicError, ValueError):
        raise ShareError("the shares do not belong together") from None
    return secret
