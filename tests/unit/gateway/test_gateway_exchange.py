"""What is believed of a request: its address, its host, its origin."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.gateway.admission import read_cookie
from servers.gateway.exchange import Exchange, Frontier
from servers.mesh.errors import MeshError

PROXIES = ("10.0.0.0/8", "fd00::/8")


def frontier() -> Frontier:
    return Frontier(
        allowed_hosts=("localhost", "[::1]", "guard.example"),
        allowed_origins=("https://friend.example",),
        trusted_proxies=PROXIES,
        digest_key=b"k",
    )


def exchange(peer: str = "192.0.2.1", scheme: str = "http", **headers: str) -> Exchange:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "scheme": scheme, "client": (peer, 1), "headers": raw}
    return frontier().read(scope)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),  # a stranger's word
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),  # the first may be made up
        ("10.0.0.1", "203.0.113.9, nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("fd00::1", "2001:db8::5", "2001:db8::5"),
    ],
)
def test_addresses_come_from_trusted_proxies_alone(peer: str, forwarded: str, address: str) -> None:
    assert exchange(peer, x_forwarded_for=forwarded).address == address


def test_addresses_of_one_ipv6_network_count_as_one_client() -> None:
    assert exchange("2001:db8::1").client == exchange("2001:db8::2").client
    assert exchange("2001:db8::1").client != exchange("2001:db8:0:1::1").client
    assert exchange("192.0.2.1").client != exchange("192.0.2.2").client
    assert "192.0.2.1" not in exchange("192.0.2.1").client


@pytest.mark.parametrize("host", ["localhost", "localhost:3000", "LOCALHOST:1", "[::1]", "[::1]:3000", "guard.example"])
def test_our_own_names_are_answered(host: str) -> None:
    frontier().check_host(exchange(host=host))


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "evil.example:localhost", "[::2]", "::1"]
)
def test_other_names_are_not(host: str) -> None:
    with pytest.raises(MeshError):
        frontier().check_host(exchange(host=host))


@pytest.mark.parametrize(
    ("scheme", "host", "origin"),
    [
        ("http", "localhost:3000", "http://localhost:3000"),
        ("https", "guard.example", "https://guard.example"),
        ("http", "localhost", "https://friend.example"),
    ],
)
def test_our_own_pages_may_write(scheme: str, host: str, origin: str) -> None:
    frontier().check_origin(exchange(scheme=scheme, host=host, origin=origin))


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://localhost:3000", "http://localhost:3001", "x"]
)
def test_other_pages_may_not(origin: str) -> None:
    with pytest.raises(MeshError):
        frontier().check_origin(exchange(host="localhost:3000", origin=origin))


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.characters(codec="latin-1"), max_size=60))
def test_any_header_is_read_without_breaking(text: str) -> None:
    found = exchange("10.0.0.1", x_forwarded_for=text, x_correlation_id=text, cookie=text, host=text, origin=text)
    assert str(uuid.UUID(found.correlation_id)) == found.correlation_id
    assert isinstance(read_cookie(found), str)
    for check in (frontier().check_host, frontier().check_origin):
        try:
            check(found)
        except MeshError:
            continue
