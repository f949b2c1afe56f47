"""When an organisation's people work, in its own time zone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DAY: Final = 1440
_WEEK_DAYS: Final = 7
_MOST: Final = 21


@dataclass(frozen=True, slots=True, order=True)
class Stretch:
    """A stretch of working time."""

    weekday: int
    """1 (Monday) to 7, as ISO 8601 counts."""
    start_minute: int
    """Minute of the day on which it begins: 0 to 1,439."""
    end_minute: int
    """Minute of the day before which it ends: 1 to 1,440, after `start_minute`."""


class BusinessHours:
    """An organisation's working times.

    Args:
        time_zone: IANA name; empty means UTC.
        stretches: at most 21; empty: there are no hours outside.

    Raises:
        ValueError: no such time zone, or a stretch is none.
    """

    def __init__(self, time_zone: str, stretches: Sequence[Stretch]) -> None:
        try:
            self._zone = ZoneInfo(time_zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{time_zone!r} is no time zone: give an IANA name such as Europe/Madrid") from error
        if len(stretches) > _MOST or not all(map(_sound, stretches)):
            raise ValueError("give at most 21 stretches with weekday 1 to 7 and 0 <= start_minute < end_minute <= 1440")
        self._stretches = _joined(stretches)
        self.time_zone = self._zone.key

    def closed_since(self, moment: datetime) -> datetime | None:
        """When the closed time began that `moment` lies in, UTC; None when it lies in working time, or there is none.

        Times of day are those that clocks show there: what they skip on a day on which they change is skipped.
        """
        if not self._stretches:
            return None
        local = moment.astimezone(self._zone)
        minute = local.hour * 60 + local.minute
        for back in range(_WEEK_DAYS + 1):
            day = local.date() - timedelta(days=back)
            for stretch in reversed(self._stretches):
                if stretch.weekday != day.isoweekday():
                    continue
                if back == 0 and stretch.start_minute <= minute < stretch.end_minute:
                    return None
                if back > 0 or stretch.end_minute <= minute:
                    midnight = datetime(day.year, day.month, day.day, tzinfo=self._zone)
                    return (midnight + timedelta(minutes=stretch.end_minute)).astimezone(UTC)
        return None


def stretches_of(hours: Sequence[Any]) -> list[Stretch]:
    """The stretches in the database's JSON form.

    Raises:
        ValueError: the form is another one.
    """
    try:
        return [Stretch(each["weekday"], each["start_minute"], each["end_minute"]) for each in hours]
    except (TypeError, KeyError) as error:
        raise ValueError("hours hold objects with weekday, start_minute and end_minute") from error


def _joined(stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """The stretches in order, with those of a day that touch or overlap made one."""
    joined: list[Stretch] = []
    for each in sorted(stretches):
        last = joined[-1] if joined else None
        if last is not None and last.weekday == each.weekday and each.start_minute <= last.end_minute:
            joined[-1] = Stretch(last.weekday, last.start_minute, max(last.end_minute, each.end_minute))
        else:
            joined.append(each)
    return tuple(joined)


def _sound(stretch: Stretch) -> bool:
    whole = all(isinstance(value, int) for value in (stretch.weekday, stretch.start_minute, stretch.end_minute))
    return whole and 1 <= stretch.weekday <= _WEEK_DAYS and 0 <= stretch.start_minute < stretch.end_minute <= _DAY
