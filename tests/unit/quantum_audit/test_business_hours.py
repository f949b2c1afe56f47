"""Working times in an organisation's own zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.quantum.business_hours import BusinessHours, Stretch, stretches_of

WEEK = [Stretch(day, 9 * 60, 18 * 60) for day in range(1, 6)]
MADRID = BusinessHours("Europe/Madrid", WEEK)


def madrid(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Madrid"))


@pytest.mark.parametrize(
    ("moment", "closed_since"),
    [
        ("2026-11-23T09:00", None),  # a Monday
        ("2026-11-23T17:59:59", None),
        ("2026-11-23T18:00", "2026-11-23T18:00"),
        ("2026-11-23T08:59:59", "2026-11-20T18:00"),
        ("2026-11-22T12:00", "2026-11-20T18:00"),
        ("2026-11-24T00:00", "2026-11-23T18:00"),
    ],
)
def test_open_from_the_first_minute_and_closed_from_the_last(moment: str, closed_since: str | None) -> None:
    since = MADRID.closed_since(madrid(moment).astimezone(UTC))
    assert since == (None if closed_since is None else madrid(closed_since).astimezone(UTC))


def test_the_zone_decides_and_its_summer_time() -> None:
    # 07:30 UTC is 08:30 in Madrid's winter and 09:30 in its summer.
    assert MADRID.closed_since(datetime(2026, 1, 12, 7, 30, tzinfo=UTC)) is not None
    assert MADRID.closed_since(datetime(2026, 7, 13, 7, 30, tzinfo=UTC)) is None
    assert BusinessHours("UTC", WEEK).closed_since(datetime(2026, 7, 13, 7, 30, tzinfo=UTC)) is not None
    assert BusinessHours("", WEEK).time_zone == "UTC"


def test_the_night_on_which_clocks_go_back_is_one_closed_time() -> None:
    night = BusinessHours("Europe/Madrid", [Stretch(6, 0, 1440)])
    before, after = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert night.closed_since(before) == night.closed_since(after) == datetime(2026, 10, 24, 22, 0, tzinfo=UTC)


def test_stretches_that_overlap_or_touch_are_one() -> None:
    hours = BusinessHours("UTC", [Stretch(1, 540, 720), Stretch(1, 600, 660), Stretch(1, 720, 1080)])
    assert hours.closed_since(datetime(2026, 11, 23, 12, 0, tzinfo=UTC)) is None
    evening = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
    assert hours.closed_since(evening) == datetime(2026, 11, 23, 18, 0, tzinfo=UTC)


def test_no_hours_are_never_outside() -> None:
    assert BusinessHours("UTC", []).closed_since(datetime(2026, 11, 22, 3, 0, tzinfo=UTC)) is None


stretches = st.lists(
    st.builds(
        lambda day, start, length: Stretch(day, start, min(1440, start + length)),
        st.integers(1, 7),
        st.integers(0, 1439),
        st.integers(1, 1440),
    ),
    max_size=8,
)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)).map(  # noqa: DTZ001 -- the zone is put in below
    lambda moment: moment.replace(tzinfo=UTC)
)


@given(stretches=stretches, moment=moments)
def test_a_moment_is_open_exactly_inside_a_stretch(stretches: list[Stretch], moment: datetime) -> None:
    minute = moment.hour * 60 + moment.minute
    inside = any(
        each.weekday == moment.isoweekday() and each.start_minute <= minute < each.end_minute for each in stretches
    )
    since = BusinessHours("UTC", stretches).closed_since(moment)
    if inside or not stretches:
        assert since is None
    else:
        assert since is not None
        assert since <= moment
        assert moment - since <= timedelta(days=7)


@given(stretches=stretches, moment=moments, later=st.integers(0, 10_080))
def test_one_closed_time_has_one_beginning(stretches: list[Stretch], moment: datetime, later: int) -> None:
    hours = BusinessHours("UTC", stretches)
    first, second = hours.closed_since(moment), hours.closed_since(moment + timedelta(minutes=later))
    if first is not None and second is not None and second <= moment:
        assert first == second


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", "\0", "Europe"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        BusinessHours(zone, [])


@pytest.mark.parametrize(
    "hours",
    [
        [{}],
        [1],
        [{"weekday": 8, "start_minute": 0, "end_minute": 1}],
        [{"weekday": 1, "start_minute": 5, "end_minute": 5}],
    ],
)
def test_hours_of_another_form_are_refused(hours: list[object]) -> None:
    with pytest.raises(ValueError, match="weekday"):
        BusinessHours("UTC", stretches_of(hours))
