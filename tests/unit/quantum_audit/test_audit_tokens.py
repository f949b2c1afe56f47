"""Tokens for places: good for what they were issued for, and for nothing else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from servers.quantum.audit_tokens import InvalidTokenError, place_of, place_token

places = st.integers(0, 2**63 - 1)
purposes = st.lists(st.text(max_size=5), max_size=3)


@given(place=places, purpose=purposes)
def test_a_token_names_its_place(place: int, purpose: list[str]) -> None:
    token = place_token(place, *purpose)
    assert place_of(token, *purpose) == place
    assert len(token) <= 128


@given(place=places, purpose=purposes, other=purposes)
def test_a_token_is_good_for_one_thing(place: int, purpose: list[str], other: list[str]) -> None:
    assume("\x1f".join(purpose) != "\x1f".join(other) or len(purpose) != len(other))
    assume("\x1f".join((str(place), *purpose)) != "\x1f".join((str(place), *other)))
    with pytest.raises(InvalidTokenError):
        place_of(place_token(place, *purpose), *other)


@given(place=places, at=st.integers(0, 22), letter=st.sampled_from("ABCabc019-_=+/ \n\u2603"))
def test_a_changed_token_is_none(place: int, at: int, letter: str) -> None:
    token = place_token(place, "list")
    assume(token[at] != letter)
    with pytest.raises(InvalidTokenError):
        place_of(token[:at] + letter + token[at + 1 :], "list")


@given(st.text(max_size=130))
def test_any_text_is_no_token(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        place_of(text, "list")
