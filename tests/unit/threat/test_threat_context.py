"""Places, habits and context scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.threat.baseline import Deviations
from servers.threat.context import ContextState
from servers.threat.features import FEATURES, features_of, preliminary_risk
from servers.threat.observations import Access, Authentication, Context, Observation, Operation, Place
from servers.threat.places import Addresses, AddressKind, PlaceHistory, distance_km

HOUR = 3600.0
BERLIN = Place(52.52, 13.40, 10.0, "DE", False)
POTSDAM = Place(52.39, 13.06, 10.0, "DE", False)
MUNICH = Place(48.14, 11.58, 10.0, "DE", False)
PARIS = Place(48.86, 2.35, 10.0, "FR", False)
SYDNEY = Place(-33.87, 151.21, 10.0, "AU", False)


def seen(**changes: Any) -> Observation:
    base = Observation(
        event_id="e",
        user_id="u",
        session_id="s",
        correlation_id="c",
        source="behavioral",
        occurred_at_s=0.0,
        runs=(),
        paths=(),
        views=(),
        session_seconds=60,
        calls_per_minute=10.0,
        accesses=(),
        context=Context(),
    )
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("", AddressKind.UNKNOWN),
        ("no address", AddressKind.UNKNOWN),
        ("127.0.0.1", AddressKind.LOOPBACK),
        ("::1", AddressKind.LOOPBACK),
        ("169.254.7.7", AddressKind.LINK_LOCAL),
        ("fe80::1%eth0", AddressKind.LINK_LOCAL),
        ("10.1.2.3", AddressKind.PRIVATE),
        ("192.168.0.9", AddressKind.PRIVATE),
        ("fd00::1", AddressKind.PRIVATE),
        ("100.64.0.1", AddressKind.CARRIER_NAT),
        ("100.127.255.254", AddressKind.CARRIER_NAT),
        ("224.0.0.1", AddressKind.RESERVED),
        ("0.0.0.0", AddressKind.RESERVED),  # noqa: S104 - an address to look at, not to listen on
        ("::ffff:192.168.0.9", AddressKind.PRIVATE),
        ("::ffff:8.8.8.8", AddressKind.PUBLIC),
        ("8.8.8.8", AddressKind.PUBLIC),
        ("9.9.9.9", AddressKind.ANONYMIZER),
        ("2606:4700::1111", AddressKind.PUBLIC),
    ],
)
def test_kinds_of_addresses(address: str, kind: AddressKind) -> None:
    assert Addresses(["9.9.9.0/24"]).kind(address) is kind


def test_an_addresss_network_is_named_only_where_it_is_one_place() -> None:
    addresses = Addresses()
    assert addresses.network("8.8.8.8") == addresses.network("8.8.8.200") == "8.8.8.0/24"
    assert addresses.network("192.168.0.1") == ""


def test_distances() -> None:
    assert distance_km(52.52, 13.40, 48.86, 2.35) == pytest.approx(878, abs=3)
    assert distance_km(0, 0, 0, 180) == pytest.approx(20015, abs=3)


@pytest.mark.parametrize(
    ("place", "kind", "hours", "least", "most"),
    [
        (None, AddressKind.PUBLIC, 1, 0.5, 0.5),
        (BERLIN, AddressKind.PRIVATE, 1, 0.5, 0.5),
        (SYDNEY, AddressKind.LOOPBACK, 1, 0.5, 0.5),
        (SYDNEY, AddressKind.CARRIER_NAT, 1, 0.5, 0.5),
        (SYDNEY, AddressKind.ANONYMIZER, 1, 0.5, 0.5),
        (replace(SYDNEY, anonymizer=True), AddressKind.PUBLIC, 1, 0.5, 0.5),
        (replace(SYDNEY, accuracy_km=5000), AddressKind.PUBLIC, 1, 0.5, 0.5),
        (BERLIN, AddressKind.PUBLIC, 0, 1.0, 1.0),
        (POTSDAM, AddressKind.PUBLIC, 0, 1.0, 1.0),
        (MUNICH, AddressKind.PUBLIC, 5, 0.7, 0.8),
        (PARIS, AddressKind.PUBLIC, 12, 0.4, 0.5),
        (PARIS, AddressKind.PUBLIC, 0.1, 0.0, 0.0),
        (SYDNEY, AddressKind.PUBLIC, 2, 0.0, 0.0),
        (SYDNEY, AddressKind.PUBLIC, 48, 0.4, 0.5),
        (SYDNEY, AddressKind.UNKNOWN, 2, 0.0, 0.0),
    ],
)
def test_location_consistency(place: Place | None, kind: AddressKind, hours: float, least: float, most: float) -> None:
    history = PlaceHistory()
    assert history.consistency(place, kind, 0.0) == 0.5, "without a past nothing can be said"
    history.learn(BERLIN, AddressKind.PUBLIC, 0.0)
    assert least <= history.consistency(place, kind, hours * HOUR) <= most


def test_places_are_bounded_and_come_back_from_storage() -> None:
    history = PlaceHistory()
    for number in range(100):
        history.learn(Place(number * 0.8 - 40, 0, 5, "XX", False), AddressKind.PUBLIC, number)
    assert len(history.visits) <= 12
    assert PlaceHistory.from_json(history.to_json()) == history


def test_what_was_never_seen_is_news_and_what_is_usual_is_not() -> None:
    state, addresses = ContextState(), Addresses()
    home = Context(ip_address="8.8.8.8", device="mine", authentication=Authentication(0, 2, None, None))
    usual = seen(
        context=home, views=("inbox", "mail", "inbox", "mail"), accesses=[Access("mail", Operation.READ, 5, False)]
    )
    for _ in range(30):
        state.learn(usual, addresses, 0.0)
    calm = state.score(usual, addresses, 0.0)
    assert calm.network_activity < 0.05
    assert calm.device_novelty < 0.05
    assert calm.navigation_anomaly < 0.2
    assert calm.api_usage_anomaly < 0.2
    strange = seen(
        context=Context(ip_address="1.1.1.1", device="other", authentication=Authentication(18, 20, 0.1, None)),
        views=("admin", "export", "users"),
        calls_per_minute=5000.0,
        accesses=[Access("payroll", Operation.EXPORT, 900, True), Access("roles", Operation.PRIVILEGE, 3, True)],
    )
    news = state.score(strange, addresses, 0.0)
    for name in (
        "network_activity",
        "device_novelty",
        "authentication_patterns",
        "api_usage_anomaly",
        "data_access_risk",
        "navigation_anomaly",
        "privilege_escalation_attempt",
        "failed_auth_ratio",
    ):
        assert getattr(news, name) > 0.7, name
    assert news.biometric_confidence == pytest.approx(0.1)
    assert ContextState.from_json(state.to_json()) == state


def test_simulated_fields_mark_their_features_carry_no_risk_and_teach_nothing() -> None:
    state, addresses = ContextState(), Addresses()
    state.learn(seen(context=Context(place=BERLIN, ip_address="8.8.8.8")), addresses, 0.0)
    real = seen(context=Context(place=SYDNEY, ip_address="1.1.1.1"))
    fake = seen(context=real.context._replace(simulated=frozenset({"location", "ip_address"})))
    risks = []
    for event in (real, fake):
        features = features_of(event, Deviations(), state.score(event, addresses, HOUR))
        assert features.value("location_consistency") == 0.0
        risks.append(preliminary_risk(features, behavior_known=1.0))
    assert set(features.simulated) == {"location_consistency", "network_activity"}
    assert risks[0] > 0.3
    assert risks[1] < 0.05
    before = state.to_json()["places"], dict(state.networks.counts)
    state.learn(fake, addresses, HOUR)
    assert (state.to_json()["places"], dict(state.networks.counts)) == before


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=4)
OBSERVATIONS = st.builds(
    seen,
    views=st.lists(TEXT, max_size=5),
    session_seconds=st.integers(0, 604_800),
    calls_per_minute=st.floats(0, 100_000),
    accesses=st.lists(
        st.builds(Access, TEXT, st.sampled_from(Operation), st.integers(0, 1_000_000), st.booleans()), max_size=3
    ),
    context=st.builds(
        Context,
        ip_address=st.sampled_from(["", "8.8.8.8", "::1", "10.0.0.1", "1.1.1.1"]),
        place=st.none()
        | st.builds(
            Place,
            st.floats(-90, 90),
            st.floats(-180, 180),
            st.floats(0, 20_100),
            st.sampled_from(["", "DE", "FR"]),
            st.booleans(),
        ),
        device=TEXT,
        network=TEXT,
        authentication=st.none()
        | st.builds(
            Authentication,
            st.integers(0, 10_000),
            st.integers(0, 10_000),
            st.none() | st.floats(0, 1),
            st.none() | FINITE,
        ),
        simulated=st.frozensets(st.sampled_from(["location", "ip_address", "authentication", "nothing"])),
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OBSERVATIONS, max_size=3), OBSERVATIONS)
def test_features_keep_their_ranges_whatever_was_learnt(past: list[Observation], event: Observation) -> None:
    state, addresses = ContextState(), Addresses()
    for number, one in enumerate(past):
        state.learn(one, addresses, number * HOUR)
    features = features_of(event, Deviations(), state.score(event, addresses, len(past) * HOUR))
    for name, value in zip(FEATURES, features.values, strict=True):
        if name == "threat_indicators":
            assert 0 <= value <= 10
        elif name == "session_duration":
            assert value == event.session_seconds
        else:
            assert 0.0 <= value <= 1.0, name
    assert 0.0 <= preliminary_risk(features, behavior_known=1.0) <= 1.0
    assert ContextState.from_json(state.to_json()) == state
