"""Windows of days in the site's time zone, and the day of a moment as the databases tell it."""

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import connection
from django.db.models import Case, CharField, Func, Value, When
from django.db.models.functions import Substr, TruncDate

DEFAULT_DAYS = 7
MAX_DAYS = 365


class Window(NamedTuple):
    """The `days` days that end with `today`; `start` and `end` are their bounds in time."""

    days: int
    first: date
    today: date
    start: datetime
    end: datetime


def zone() -> ZoneInfo:
    """Return the site's time zone, in which days begin and end."""
    return ZoneInfo(settings.TIME_ZONE)


def wanted_days(text: str, default: int = DEFAULT_DAYS) -> int:
    """Read a number of days: 1 to 365, more is 365, anything else the default."""
    text = text.strip()
    if not (text.isascii() and text.isdigit()):
        return default
    # More than nine digits are not converted.
    days = int(text) if len(text) < 10 else MAX_DAYS
    return min(days, MAX_DAYS) or default


def window(days: int, now: datetime) -> Window:
    """Return the window of `days` days that includes today."""
    today = now.astimezone(zone()).date()
    first = today - timedelta(days=days - 1)
    return Window(days, first, today, _midnight(first), _midnight(today + timedelta(days=1)))


def read_day(value: Any) -> date:
    """Return the value of `day_of` as a date: the databases give it as one, or as text."""
    return date.fromisoformat(str(value))


def day_of(span: Window, field: str) -> Any:
    """Return the expression of the day in which a field's moment lies.

    SQLite asks Python for each row's zone, which takes seconds a million.
    There the offsets of the window are told by its changes of the clock, two a year.
    """
    if connection.vendor != "sqlite":
        return TruncDate(field, tzinfo=zone())
    changes = [When(**{f"{field}__lt": until, "then": _shifted(field, offset)}) for until, offset in _offsets(span)]
    return Case(*changes, output_field=CharField())


def _shifted(field: str, offset: timedelta) -> Func:
    # To the second: `date` would round the last half millisecond of a day up into the next.
    moment = Substr(field, 1, 19)
    return Func(moment, Value(f"{offset.total_seconds():+.0f} seconds"), function="date", output_field=CharField())


def _offsets(span: Window) -> Iterator[tuple[datetime, timedelta]]:
    """Yield (until, offset from UTC) for the window, in order."""
    here, utc = zone(), ZoneInfo("UTC")
    moment = span.start.astimezone(utc)
    end = span.end.astimezone(utc)
    offset = _offset(moment, here)
    while moment < end:
        later = min(moment + timedelta(days=1), end)
        if _offset(later, here) != offset:
            low, high = moment, later
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                low, high = (middle, high) if _offset(middle, here) == offset else (low, middle)
            until = high.replace(microsecond=0)
            yield until, offset
            offset = _offset(later, here)
        moment = later
    yield end, offset


def _offset(moment: datetime, here: ZoneInfo) -> timedelta:
    return moment.astimezone(here).utcoffset() or timedelta(0)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, tzinfo=zone())
