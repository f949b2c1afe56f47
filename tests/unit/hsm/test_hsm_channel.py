"""The HSM channel and its tokens, both sides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.crypto.channel import (
    WINDOW,
    CallerChannel,
    ChannelOffer,
    HsmChannel,
    TokenError,
    answer_offer,
    parse_token,
)
from servers.crypto.errors import CryptoError
from servers.crypto.provider import provider_named
from servers.hsm.channels import Channels, ReplayError
from servers.mesh.errors import ErrorReason, MeshError

PROVIDER = provider_named("cryptography")
METHOD = "/behaviorguard.hsm.v1.HsmService/Sign"
EMPTY = hashlib.sha256(b"").digest()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def opened(channels: Channels, caller: str = "quantum") -> CallerChannel:
    offer = ChannelOffer(PROVIDER)
    channel_id, answer, _ = channels.open(caller, offer.key_share)
    return offer.accept(caller, channel_id, answer)


def table(clock: Clock | None = None, per_caller: int = 4) -> Channels:
    return Channels(PROVIDER, per_caller=per_caller, seconds=60.0, clock=clock or Clock())


def check(channels: Channels, token: str, caller: str = "quantum", method: str = METHOD, body: bytes = b"") -> None:
    channels.check(caller, token, method, hashlib.sha256(body).digest())


def refused(channels: Channels, token: str, **changes: str | bytes) -> MeshError:
    with pytest.raises(MeshError) as error:
        check(channels, token, **changes)  # type: ignore[arg-type]  # by name
    assert error.value.reason == ErrorReason.ERROR_REASON_HSM_TOKEN_INVALID
    return error.value


def test_both_ends_have_the_contracts_sizes() -> None:
    offer = ChannelOffer(PROVIDER)
    assert len(offer.key_share) == 1216
    channel, answer = answer_offer(PROVIDER, "quantum", offer.key_share)
    assert len(answer) == 1120
    assert len(channel.channel_id) == 22


def test_a_token_proves_one_call() -> None:
    channels = table()
    caller = opened(channels)
    check(channels, caller.token(METHOD, b"body"), body=b"body")
    assert not isinstance(refused(channels, caller.token(METHOD, b"body"), body=b"other"), ReplayError)
    refused(channels, caller.token(METHOD, b""), method=METHOD.replace("Sign", "Seal"))
    refused(channels, caller.token(METHOD, b""), caller="operator")
    check(channels, caller.token(METHOD, b""))


def test_a_token_is_good_once() -> None:
    channels = table()
    caller = opened(channels)
    tokens = [caller.token(METHOD, b"") for _ in range(3)]
    for token in reversed(tokens):  # overtaken on the way is no replay
        check(channels, token)
    for token in tokens:
        assert isinstance(refused(channels, token), ReplayError)
    assert channels.replays == 3


def test_a_wrong_token_uses_no_counter_up() -> None:
    channels = table()
    caller = opened(channels)
    token = caller.token(METHOD, b"body")
    refused(channels, token, body=b"other")
    check(channels, token, body=b"body")


def test_channels_end() -> None:
    clock = Clock()
    channels = table(clock)
    caller = opened(channels)
    clock.now += 59
    check(channels, caller.token(METHOD, b""))
    assert len(channels) == 1
    clock.now += 1
    refused(channels, caller.token(METHOD, b""))
    assert len(channels) == 0


def test_one_channel_too_many_ends_the_callers_oldest() -> None:
    channels = table(per_caller=2)
    operator = opened(channels, "operator")
    oldest, second, newest = opened(channels), opened(channels), opened(channels)
    refused(channels, oldest.token(METHOD, b""))
    for caller in (second, newest):
        check(channels, caller.token(METHOD, b""))
    check(channels, operator.token(METHOD, b""), caller="operator")
    assert len(channels) == 3


def test_a_share_that_is_none_is_refused() -> None:
    channels = table()
    for share in (b"\x00" * 1216, b"\xff" * 1216, b""):
        with pytest.raises(CryptoError):
            channels.open("quantum", share)


def test_who_listens_does_not_have_the_key() -> None:
    """Another caller who sees both shares, and one under another name, get another key."""
    offer = ChannelOffer(PROVIDER)
    channel, answer = answer_offer(PROVIDER, "quantum", offer.key_share)
    for other in (
        ChannelOffer(PROVIDER).accept("quantum", channel.channel_id, answer),
        offer.accept("operator", channel.channel_id, answer),
        offer.accept("quantum", "A" * 22, answer),
    ):
        token = parse_token(other.token(METHOD, b""))
        assert not channel.proves(token, METHOD, EMPTY)
    token = parse_token(offer.accept("quantum", channel.channel_id, answer).token(METHOD, b""))
    assert channel.proves(token, METHOD, EMPTY)


@settings(max_examples=200)
@given(st.lists(st.integers(min_value=1, max_value=3 * WINDOW), max_size=60))
def test_each_counter_is_used_once_in_any_order(counters: list[int]) -> None:
    channel = HsmChannel("A" * 22, "quantum", bytes(32))
    seen: set[int] = set()
    for counter in counters:
        too_old = bool(seen) and counter <= max(seen) - WINDOW
        assert channel.use(counter) == (counter not in seen and not too_old)
        seen.add(counter)


def test_counter_zero_is_never_used() -> None:
    assert not HsmChannel("A" * 22, "quantum", bytes(32)).use(0)


GOOD = CallerChannel("AbCdEfGhIjKlMnOpQrStUv", bytes(32)).token(METHOD, b"")


@settings(max_examples=300)
@given(
    st.text(max_size=100)
    | st.integers(min_value=0, max_value=len(GOOD) - 1).map(lambda i: GOOD[:i] + "!" + GOOD[i + 1 :])
    | st.integers(min_value=0, max_value=len(GOOD) - 1).map(lambda i: GOOD[:i])
    | st.sampled_from([GOOD + "=", GOOD.replace(".1.", ".01."), GOOD.replace(".1.", ".9999999999999999999.")])
)
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with pytest.raises(TokenError):
        parse_token(text)
    refused(table(), text)


def test_a_mac_has_one_spelling() -> None:
    last = GOOD[-1]
    others = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" if letter != last]
    found = 0
    for letter in others:
        try:
            token = parse_token(GOOD[:-1] + letter)
        except TokenError:
            continue
        assert token.mac != parse_token(GOOD).mac
        found += 1
    assert found == 15  # of 64 letters, 16 end a MAC of 32 bytes
