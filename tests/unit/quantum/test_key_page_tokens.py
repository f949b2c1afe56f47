"""Page tokens: only for the list that they were issued for, and never a crash."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.quantum.key_store import PageStart
from servers.quantum.page_tokens import InvalidPageTokenError, page_start, page_token

STARTS = st.builds(PageStart, st.integers(0, 2**52), st.uuids().map(str))


@given(STARTS, st.text(), st.text())
def test_a_token_names_its_place_in_its_list(start: PageStart, organization: str, status: str) -> None:
    assert page_start(page_token(start, organization, status), organization, status) == start


@given(STARTS)
def test_a_token_is_of_no_use_with_another_list(start: PageStart) -> None:
    token = page_token(start, "one", "active")
    for other in (("two", "active"), ("one", "revoked"), ("one",), ("one", "active", "")):
        with pytest.raises(InvalidPageTokenError):
            page_start(token, *other)


@given(st.text(max_size=300))
def test_any_other_text_is_refused(token: str) -> None:
    with suppress(InvalidPageTokenError):
        pytest.fail(f"taken for a token: {page_start(token, 'o')}")


@given(STARTS, st.data())
def test_a_changed_token_is_refused(start: PageStart, data: st.DataObject) -> None:
    token = page_token(start, "o")
    place = data.draw(st.integers(0, len(token) - 2))  # the last character carries bits that are not read
    letter = data.draw(st.sampled_from("ABab01-_").filter(lambda drawn: drawn != token[place]))
    with pytest.raises(InvalidPageTokenError):
        page_start(token[:place] + letter + token[place + 1 :], "o")
