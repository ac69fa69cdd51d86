"""Cron: an entry that names minutes, hours and days, and when it is due in a time zone. Pure values; no clock is read here.

How an entry meets a clock that is set (daylight saving, a zone that moves):

* An entry that names every hour is due in real time: whenever the clock shows its minute, both times an hour comes twice. Where
  the clock is set by no whole number of hours, the tick that was next by the old clock is kept: no wait is over an hour.
* Every other entry names local times, and each is due once per local day. A time that comes twice is due the first time only.
  A time that the clock skips is due at the first moment after the gap; where that is another day already, in the last minute
  before the gap. A day that the clock skips as a whole has no ticks.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from taskq.errors import ConfigurationError

_HOUR = 3600
_DAY = timedelta(days=1)


class _Field(NamedTuple):
    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()


_MINUTE = _Field("minute", 0, 59)
_HOURS = _Field("hour", 0, 23)
_DAY_OF_MONTH = _Field("day_of_month", 1, 31)
_MONTH = _Field(
    "month_of_year",
    1,
    12,
    (
        *("january", "february", "march", "april", "may", "june"),
        *("july", "august", "september", "october", "november", "december"),
    ),
)
_WEEKDAY = _Field("day_of_week", 0, 6, ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"))
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(\*|\w{1,9})(?:-(\w{1,9}))?(?:/(\d{1,9}))?", re.ASCII)
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class Crontab(msgspec.Struct, frozen=True, tag="cron"):
    """Minutes, hours and days, each as cron writes them; made by ``crontab`` and ``cron``. Raises ``ConfigurationError``.

    Where both kinds of days are restricted, both must match, as in Celery; with ``either`` one is enough, as in cron.
    """

    minute: str = "*"
    hour: str = "*"
    day_of_month: str = "*"
    month_of_year: str = "*"
    day_of_week: str = "*"
    either: bool = False

    def __post_init__(self) -> None:
        for field, text in ((_MINUTE, self.minute), (_HOURS, self.hour), (_WEEKDAY, self.day_of_week)):
            _parse(field, text)
        days, months = _parse(_DAY_OF_MONTH, self.day_of_month), _parse(_MONTH, self.month_of_year)
        if not self._one_is_enough and min(days) > max(_LONGEST_MONTH[month - 1] for month in months):
            raise ConfigurationError(f"{self} is never due: none of these months has day {min(days)}")

    def __str__(self) -> str:
        return f"{self.minute} {self.hour} {self.day_of_month} {self.month_of_year} {self.day_of_week}"

    def next_after(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """The first moment later than this one at which the entry is due in the zone, in UTC."""
        seconds = moment.timestamp()
        for day in self._days_from(moment.astimezone(zone).date() - _DAY):
            # Where the clock was set back over midnight, the next day began before this one ended.
            both = self._ticks(day, zone), self._ticks(day + _DAY, zone)
            if later := [ticks[index] for ticks in both if (index := bisect_right(ticks, seconds)) < len(ticks)]:
                return datetime.fromtimestamp(min(later), UTC)
        raise AssertionError(f"{self} has no end")

    @property
    def _one_is_enough(self) -> bool:
        return self.either and not self.day_of_month.startswith("*") and not self.day_of_week.startswith("*")

    def _days_from(self, day: date) -> Iterator[date]:
        """The days that the entry names, from this one on."""
        months = _parse(_MONTH, self.month_of_year)
        while True:
            if day.month not in months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
                continue
            if self._names(day):
                yield day
            day += _DAY

    def _names(self, day: date) -> bool:
        if day.month not in _parse(_MONTH, self.month_of_year):
            return False
        in_month = day.day in _parse(_DAY_OF_MONTH, self.day_of_month)
        in_week = day.isoweekday() % 7 in _parse(_WEEKDAY, self.day_of_week)
        return in_month or in_week if self._one_is_enough else in_month and in_week

    def _ticks(self, day: date, zone: ZoneInfo) -> tuple[int, ...]:
        if not self._names(day):
            return ()
        minutes, hours = _parse(_MINUTE, self.minute), _parse(_HOURS, self.hour)
        return _in_real_time(minutes, day, zone) if len(hours) == 24 else _at_local_times(hours, minutes, day, zone)


Part = int | str | Iterable[int | str]


def crontab(
    minute: Part = "*", hour: Part = "*", day_of_week: Part = "*", day_of_month: Part = "*", month_of_year: Part = "*"
) -> Crontab:
    """An entry in Celery's words: ``crontab(minute=30, hour="8-18/2", day_of_week="mon-fri")``.

    Each part is a number, a text as cron writes it, or several of either. Raises ``ConfigurationError``.
    """
    return Crontab(_text(minute), _text(hour), _text(day_of_month), _text(month_of_year), _text(day_of_week))


def cron(text: str) -> Crontab:
    """An entry as cron writes it: minute, hour, day of month, month, day of week; ``@daily`` and the like too.

    Raises ``ConfigurationError``.
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"an entry of cron's is a text, such as '30 8 * * mon-fri', not {text!r}")
    parts = _NICKNAMES.get(text.strip().lower(), text).split()
    if len(parts) != 5:
        nicknames = ", ".join(_NICKNAMES)
        raise ConfigurationError(
            f"{text!r} has {len(parts)} parts; write minute, hour, day of month, month and day of week, or one of {nicknames}"
        )
    minute, hour, day_of_month, month_of_year, day_of_week = parts
    return Crontab(minute, hour, day_of_month, month_of_year, day_of_week, either=True)


def _text(part: Part) -> str:
    if isinstance(part, str):
        return re.sub(r"\s*([,/-])\s*", r"\1", part.strip().lower())
    if type(part) is int:
        return str(part)
    # Bytes and mappings can be iterated over as well, but say something else then.
    if isinstance(part, Iterable) and not isinstance(part, (bytes, bytearray, Mapping)):
        return ",".join(_text(one) for one in part)
    raise ConfigurationError(f"a part of an entry is a number, a text such as '*/15' or several of these, not {part!r}")


@functools.lru_cache(maxsize=1024)
def _parse(field: _Field, text: str) -> frozenset[int]:
    """The numbers that this part of an entry names."""
    named: set[int] = set()
    for part in text.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None or (match[1] == "*" and match[2]) or (match[3] and int(match[3]) == 0):
            raise ConfigurationError(f"{field.name} {text!r}: {part!r} is not like 5, 1-5, */15 or 8-18/2")
        first, last, step = match.groups()
        start = field.lowest if first == "*" else _number(field, first, text)
        stop = _number(field, last, text) if last else field.highest if step or first == "*" else start
        if field is _WEEKDAY and start == 7 > stop:
            start = 0  # Sunday is both
        span = field.highest - field.lowest + 1
        around = range(start, (stop if start <= stop else stop + span) + 1, int(step or 1))
        named.update((number - field.lowest) % span + field.lowest for number in around)
    return frozenset(named)


def _number(field: _Field, text: str, whole: str) -> int:
    if text.isdigit() and len(text) < 10:
        number = int(text)
    else:
        matching = [index for index, name in enumerate(field.names) if len(text) >= 3 and name.startswith(text)]
        number = matching[0] + (field is _MONTH) if matching else -1
    if not field.lowest <= number <= field.highest + (field is _WEEKDAY):
        raise ConfigurationError(f"{field.name} {whole!r}: {text!r} is not from {field.lowest} to {field.highest}")
    return number


@functools.lru_cache(maxsize=256)
def _at_local_times(hours: frozenset[int], minutes: frozenset[int], day: date, zone: ZoneInfo) -> tuple[int, ...]:
    """The local times of the day, as seconds since the epoch."""
    times = (_moment_of(datetime(day.year, day.month, day.day, h, m, tzinfo=zone)) for h in hours for m in minutes)
    return tuple(sorted({moment for moment in times if moment is not None}))


def _moment_of(wall: datetime) -> int | None:
    """When the clock first shows this, or the moment that stands for it; None where its whole day does not exist."""
    zone, late = wall.tzinfo, int(wall.timestamp())
    if datetime.fromtimestamp(late, zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return late
    # Skipped: by the clock before the gap it would be late, by the one after it early, and the gap lies between.
    early = int(wall.replace(fold=1).timestamp())
    before = _offset(early, zone)
    while late - early > 1:
        middle = (early + late) // 2
        early, late = (middle, late) if _offset(middle, zone) == before else (early, middle)
    return next((moment for moment in (late, late - 60) if datetime.fromtimestamp(moment, zone).date() == wall.date()), None)


@functools.lru_cache(maxsize=256)
def _in_real_time(minutes: frozenset[int], day: date, zone: ZoneInfo) -> tuple[int, ...]:
    """Whenever the clock shows one of these minutes on the day, as seconds since the epoch."""
    midnights = [datetime(d.year, d.month, d.day, tzinfo=zone, fold=fold) for d in (day, day + _DAY) for fold in (0, 1)]
    moments = [int(midnight.timestamp()) for midnight in midnights]
    hours = range(min(moments) // _HOUR * _HOUR, max(moments), _HOUR)
    ticks = (tick for hour in hours for tick in _within(hour, minutes, zone))
    return tuple(sorted(tick for tick in ticks if datetime.fromtimestamp(tick, zone).date() == day))


def _within(hour: int, minutes: frozenset[int], zone: ZoneInfo) -> Iterator[int]:
    """The ticks of this hour of UTC."""
    offset = _offset(hour, zone)
    if _offset(hour - _HOUR, zone) == offset == _offset(hour + _HOUR - 1, zone):
        yield from (hour + (minute * 60 - offset) % _HOUR for minute in minutes)
        return
    # The clock is set in this hour, or was in the last one. The old clock's next tick is owed until there is one.
    old, owed = _offset(hour - _HOUR, zone), None
    for moment in range(hour - _HOUR, hour + _HOUR, 60):
        offset = _offset(moment, zone)
        if offset != old:
            old, owed = offset, old
        if _minute(moment, offset) in minutes or (owed is not None and _minute(moment, owed) in minutes):
            owed = None
            if moment >= hour:
                yield moment


def _minute(moment: int, offset: int) -> int:
    return (moment + offset) % _HOUR // 60


def _offset(moment: int, zone: object) -> int:
    """How far the zone's clock is ahead of UTC at this moment, in seconds."""
    offset = datetime.fromtimestamp(moment, zone).utcoffset()  # type: ignore[arg-type]
    return int(offset.total_seconds()) if offset is not None else 0
