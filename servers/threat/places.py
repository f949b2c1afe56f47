"""Where a person is, and whether it can be them: addresses that say nothing, distances, and travel that is not
possible.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.threat.observations import Place

NEUTRAL: Final = 0.5

_EARTH_RADIUS_KM: Final = 6371.0088  # IUGG mean radius R1
_EASY_SPEED_KMH: Final = 500.0  # door to door by air, with the ways to and from the airports
_IMPOSSIBLE_SPEED_KMH: Final = 1000.0  # faster than airliners cruise
_LEAST_HOURS: Final = 5.0 / 60.0  # two timestamps of one sender may be this far wrong (clock skew)
_LEAST_RADIUS_KM: Final = 25.0  # places found from addresses are no better than a city
_USELESS_RADIUS_KM: Final = 1000.0  # "somewhere on this continent" neither fits nor contradicts anything
_SAME_PLACE_KM: Final = 100.0
_MAX_PLACES: Final = 12
_REMEMBERED_ADDRESSES: Final = 4096

_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598, carrier-grade NAT


class AddressKind(Enum):
    """What an address can say about where its user is."""

    UNKNOWN = "unknown"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link_local"
    PRIVATE = "private"
    CARRIER_NAT = "carrier_nat"
    RESERVED = "reserved"
    ANONYMIZER = "anonymizer"
    PUBLIC = "public"


class Addresses:
    """Tells kinds of addresses apart and names the network that an address belongs to.

    Remembers the answers for the last few thousand addresses, because parsing one costs more than all else that is
    done with it.
    """

    def __init__(self, anonymizers: Sequence[str] = ()) -> None:
        """`anonymizers`: networks of known VPN and proxy exits, in CIDR form.

        Raises:
            ValueError: one of them is not a network.
        """
        self._anonymizers = [ipaddress.ip_network(network) for network in anonymizers]
        self._known: OrderedDict[str, tuple[AddressKind, str]] = OrderedDict()

    def kind(self, address: str) -> AddressKind:
        """The kind of an IPv4 or IPv6 address; UNKNOWN when it is empty or none."""
        return self._look_up(address)[0]

    def network(self, address: str) -> str:
        """The /24 or /48 that a public address lies in; empty for all others, whose networks are everywhere."""
        return self._look_up(address)[1]

    def _look_up(self, address: str) -> tuple[AddressKind, str]:
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._read(address)
            if len(self._known) > _REMEMBERED_ADDRESSES:
                self._known.popitem(last=False)
        return found

    def _read(self, address: str) -> tuple[AddressKind, str]:
        try:
            # A zone ("%eth0") names an interface of the sender's machine.
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return AddressKind.UNKNOWN, ""
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        kind = self._kind_of(ip)
        if kind is not AddressKind.PUBLIC:
            return kind, ""
        prefix = 24 if ip.version == 4 else 48
        return kind, str(ipaddress.ip_network((ip, prefix), strict=False))

    def _kind_of(self, ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> AddressKind:
        if ip.is_loopback:
            return AddressKind.LOOPBACK
        if ip.is_link_local:
            return AddressKind.LINK_LOCAL
        if ip.version == 4 and ip in _SHARED:
            return AddressKind.CARRIER_NAT
        if ip.is_multicast or ip.is_unspecified or ip.is_reserved:
            return AddressKind.RESERVED
        if any(ip.version == network.version and ip in network for network in self._anonymizers):
            return AddressKind.ANONYMIZER
        return AddressKind.PUBLIC if ip.is_global else AddressKind.PRIVATE


@dataclass(frozen=True, slots=True)
class Visit:
    """A place where a person was when their behaviour was their own."""

    latitude: float
    longitude: float
    radius_km: float
    country: str
    last_seen_s: float
    """Seconds since the Unix epoch, by the server's clock."""
    visits: int


def distance_km(latitude_a: float, longitude_a: float, latitude_b: float, longitude_b: float) -> float:
    """Great-circle distance between two places in degrees (haversine)."""
    phi_a, phi_b = math.radians(latitude_a), math.radians(latitude_b)
    half = math.sin((phi_b - phi_a) / 2) ** 2
    half += math.cos(phi_a) * math.cos(phi_b) * math.sin(math.radians(longitude_b - longitude_a) / 2) ** 2
    return 2 * _EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


def is_informative(place: Place | None, kind: AddressKind) -> bool:
    """Whether a place says anything about where the person is.

    A private or shared address is the same everywhere, an anonymizer's place is its exit's, and a radius of a
    continent fits anybody. An unknown address does not speak against a place that a device measured itself.
    """
    if place is None or place.anonymizer or place.accuracy_km > _USELESS_RADIUS_KM:
        return False
    return kind in (AddressKind.PUBLIC, AddressKind.UNKNOWN)


@dataclass(slots=True)
class PlaceHistory:
    """The last places of a person, newest last; at most a dozen."""

    visits: list[Visit] = field(default_factory=list)

    def consistency(self, place: Place | None, kind: AddressKind, at_s: float) -> float:
        """How well a place fits: 1 usual, 0 cannot be reached from the last trusted one, 0.5 nothing can be said.

        A country that is new but could be reached is unusual, not impossible: people travel.
        """
        if place is None or not is_informative(place, kind) or not self.visits:
            return NEUTRAL
        reach = min(self._reachability(visit, place, at_s) for visit in self.visits[-2:])
        return reach * self._familiarity(place)

    def learn(self, place: Place | None, kind: AddressKind, at_s: float) -> None:
        """Remember a place of an event that was judged the person's own."""
        if place is None or not is_informative(place, kind):
            return
        visit = Visit(place.latitude, place.longitude, _radius(place), place.country, at_s, 1)
        for index, known in enumerate(self.visits):
            if _gap_km(known, place) <= 0.0:
                seen = max(known.last_seen_s, at_s)
                visit = replace(
                    known, last_seen_s=seen, visits=known.visits + 1, country=place.country or known.country
                )
                del self.visits[index]
                break
        self.visits.append(visit)
        self.visits.sort(key=lambda known: known.last_seen_s)
        del self.visits[:-_MAX_PLACES]

    def to_json(self) -> list[list[Any]]:
        """Plain lists, for storage."""
        return [[v.latitude, v.longitude, v.radius_km, v.country, v.last_seen_s, v.visits] for v in self.visits]

    @classmethod
    def from_json(cls, stored: Sequence[Sequence[Any]]) -> PlaceHistory:
        """What `to_json` wrote."""
        return cls([Visit(*row) for row in stored][-_MAX_PLACES:])

    def _familiarity(self, place: Place) -> float:
        nearest = min(distance_km(v.latitude, v.longitude, place.latitude, place.longitude) for v in self.visits)
        if nearest <= _SAME_PLACE_KM + _radius(place):
            return 1.0
        countries = {visit.country for visit in self.visits if visit.country}
        if not place.country or not countries:
            return 0.6
        return 0.75 if place.country in countries else 0.45

    def _reachability(self, visit: Visit, place: Place, at_s: float) -> float:
        """1 when there was time enough to travel, falling to 0 at a speed that nobody travels at."""
        gap = _gap_km(visit, place)
        if gap <= _SAME_PLACE_KM:
            return 1.0
        hours = max(abs(at_s - visit.last_seen_s) / 3600.0, _LEAST_HOURS)
        speed = gap / hours
        return min(1.0, max(0.0, (_IMPOSSIBLE_SPEED_KMH - speed) / (_IMPOSSIBLE_SPEED_KMH - _EASY_SPEED_KMH)))


def _radius(place: Place) -> float:
    return max(place.accuracy_km, _LEAST_RADIUS_KM)


def _gap_km(visit: Visit, place: Place) -> float:
    """How far two places are apart at least, given how well each is known."""
    apart = distance_km(visit.latitude, visit.longitude, place.latitude, place.longitude)
    return max(0.0, apart - visit.radius_km - _radius(place))
