"""Cron: what an entry names, and which moments that are where clocks are set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.cron import Crontab, Part, cron, crontab
from taskq.errors import ConfigurationError

BEGIN, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
UTC_ZONE = ZoneInfo("UTC")
ZONES = sorted(available_timezones())


def ticks(entry: Crontab, zone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """Every moment from ``begin`` on and before ``end`` at which the entry is due."""
    moment = entry.next_after(begin - timedelta(microseconds=1), zone)
    while moment < end:
        yield moment
        moment = entry.next_after(moment, zone)


def local(entry: Crontab, zone: str, begin: str, count: int) -> list[str]:
    """The first ticks after a local time, as local times with their offsets."""
    moment, shown = datetime.fromisoformat(begin).replace(tzinfo=ZoneInfo(zone)), []
    for _ in range(count):
        moment = entry.next_after(moment, ZoneInfo(zone)).astimezone(ZoneInfo(zone))
        shown.append(moment.strftime("%d. %H:%M %z"))
    return shown


def changes(zone: ZoneInfo) -> list[datetime]:
    """The moments of these ten years at which the zone's clock is set, to the minute."""
    found, week = [], timedelta(days=7)
    before, moment = BEGIN, BEGIN + week
    while moment < END:
        if offset(before, zone) != offset(moment, zone):
            early, late = before, moment
            while late - early > MINUTE:
                middle = early + (late - early) // 2
                early, late = (middle, late) if offset(middle, zone) == offset(before, zone) else (early, middle)
            found.append(late.replace(second=0, microsecond=0))
        before, moment = moment, moment + week
    return found


def offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


#: The distinct behaviours: names that share all their changes are the same clock.
CLOCKS = list({(*(found := changes(ZoneInfo(name))), *(offset(m, ZoneInfo(name)) for m in [BEGIN, *found])): name
               for name in ZONES}.values())  # fmt: skip


def test_every_zone_is_covered() -> None:
    assert len(ZONES) > 400
    assert "Australia/Lord_Howe" in CLOCKS
    assert len(CLOCKS) > 60


@pytest.mark.parametrize("time", ["00:00", "00:30", "01:30", "02:00", "02:30", "03:00", "12:00", "23:00", "23:30", "23:59"])
def test_a_daily_entry_is_due_once_on_each_local_day_in_every_zone(time: str) -> None:
    hour, minute = map(int, time.split(":"))
    entry = crontab(minute, hour)
    for name in CLOCKS:
        zone = ZoneInfo(name)
        for change in changes(zone):
            first = (change - 3 * DAY).astimezone(zone).date()
            begin, end = change - 6 * DAY, change + 6 * DAY
            on = Counter(tick.astimezone(zone).date() for tick in ticks(entry, zone, begin, end))
            days = [first + n * DAY for n in range(7)]
            assert [on[day] for day in days] == [1] * 7, (name, change)


@pytest.mark.parametrize(
    "name", ["Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Africa/Casablanca", "America/Nuuk"]
)
def test_a_daily_entry_is_due_on_every_day_of_ten_years(name: str) -> None:
    zone = ZoneInfo(name)
    on = Counter(tick.astimezone(zone).date() for tick in ticks(crontab(30, 2), zone, BEGIN, END))
    first, last = date(2020, 1, 2), date(2029, 12, 30)
    days = [first + n * DAY for n in range((last - first).days + 1)]
    assert [on[day] for day in days] == [1] * len(days)


@pytest.mark.parametrize("minute", [0, 15, 30, 59])
def test_an_hourly_entry_is_due_every_real_hour_in_every_zone(minute: int) -> None:
    """No two ticks are more than an hour apart; where the clock is set by whole hours, they are exactly one apart."""
    entry = crontab(minute)
    for name in CLOCKS:
        zone = ZoneInfo(name)
        for change in changes(zone):
            due = list(ticks(entry, zone, change - 5 * HOUR, change + 5 * HOUR))
            apart = [later - earlier for earlier, later in pairwise(due)]
            by = offset(change + HOUR, zone) - offset(change - HOUR, zone)
            expected = {HOUR} if by % HOUR == timedelta() else {HOUR, by % HOUR}
            assert set(apart) <= expected, (name, change)
            assert len(due) in (10, 11)
            odd = [tick for tick in due if tick.astimezone(zone).minute != minute]
            assert all(change <= tick < change + HOUR for tick in odd), (name, change)


@given(st.sampled_from(CLOCKS), st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), st.data())
def test_the_next_tick_is_what_the_clock_shows(name: str, moment: datetime, data: st.DataObject) -> None:
    """Against a clock that is watched minute by minute, away from the hours in which it is set."""
    zone, moment = ZoneInfo(name), moment.replace(tzinfo=UTC, microsecond=0)
    minutes = data.draw(st.sets(st.integers(0, 59), min_size=1, max_size=5))
    hours = data.draw(st.sets(st.integers(0, 23), min_size=1))
    found = crontab(minutes, hours).next_after(moment, zone)
    if offset(moment - 4 * HOUR, zone) == offset(found + 4 * HOUR, zone):
        watched = moment.replace(second=0) + MINUTE
        while (shown := watched.astimezone(zone)).minute not in minutes or shown.hour not in hours:
            watched += MINUTE
        assert found == watched


@given(st.sampled_from(CLOCKS), st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)))
def test_the_next_tick_of_any_moment_before_it_is_the_same(name: str, begin: datetime) -> None:
    zone, begin = ZoneInfo(name), begin.replace(tzinfo=UTC)
    entry = cron("*/20 * * * *")
    found = entry.next_after(begin, zone)
    for part in (0.1, 0.5, 0.99):
        assert entry.next_after(begin + (found - begin) * part, zone) == found


def test_a_local_time_that_is_skipped_is_due_after_the_gap() -> None:
    assert local(crontab(30, 2), "Europe/Berlin", "2026-03-28", 3) == ["28. 02:30 +0100", "29. 03:00 +0200", "30. 02:30 +0200"]


def test_a_local_time_that_comes_twice_is_due_the_first_time() -> None:
    assert local(crontab(30, 2), "Europe/Berlin", "2026-10-24", 3) == ["24. 02:30 +0200", "25. 02:30 +0200", "26. 02:30 +0100"]


def test_local_times_in_one_gap_are_due_once() -> None:
    shown = local(crontab("*/10", "2,3"), "Europe/Berlin", "2026-03-29", 3)
    assert shown == ["29. 03:00 +0200", "29. 03:10 +0200", "29. 03:20 +0200"]


def test_a_gap_that_ends_on_the_next_day_is_no_reason_to_be_due_twice_there() -> None:
    assert local(crontab(30, 23), "America/Nuuk", "2026-03-27", 3) == ["27. 23:30 -0200", "28. 22:59 -0200", "29. 23:30 -0100"]


def test_a_day_that_is_skipped_has_no_ticks() -> None:
    """Samoa went from the 29th to the 31st of December 2011."""
    assert local(crontab(0, 9), "Pacific/Apia", "2011-12-29", 3) == ["29. 09:00 -1000", "31. 09:00 +1400", "01. 09:00 +1400"]
    hourly = local(crontab(0), "Pacific/Apia", "2011-12-29T22:30", 3)
    assert hourly == ["29. 23:00 -1000", "31. 00:00 +1400", "31. 01:00 +1400"]


def test_where_the_clock_is_set_by_half_an_hour_no_wait_is_over_an_hour() -> None:
    on = local(crontab(0), "Australia/Lord_Howe", "2026-10-04T00:30", 3)
    assert on == ["04. 01:00 +1030", "04. 02:30 +1100", "04. 03:00 +1100"]
    off = local(crontab(0), "Australia/Lord_Howe", "2026-04-05T00:30", 3)
    assert off == ["05. 01:00 +1100", "05. 01:30 +1030", "05. 02:00 +1030"]


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("*", list(range(24))),
        (5, [5]),
        ("*/6", [0, 6, 12, 18]),
        ("1-4", [1, 2, 3, 4]),
        ("22-2", [0, 1, 2, 22, 23]),
        ("8-18/5", [8, 13, 18]),
        ("20/2", [20, 22]),
        ([1, "3-4", "*/12"], [0, 1, 3, 4, 12]),
    ],
)
def test_what_a_part_names(part: Part, named: list[int]) -> None:
    begin = datetime(2026, 5, 1, tzinfo=UTC)
    assert [tick.hour for tick in ticks(crontab(0, part), UTC_ZONE, begin, begin + DAY)] == named


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("mon-fri", [1, 2, 3, 4, 5]),
        ("sun", [7]),
        ("0", [7]),
        ("7", [7]),
        ("5-7", [5, 6, 7]),
        ("0-1", [1, 7]),
        ("sat-mon", [1, 6, 7]),
        ("Wednesday,fri", [3, 5]),
        ("*/2", [2, 4, 6, 7]),
        ("mon-sun", [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_days_of_the_week(part: str, named: list[int]) -> None:
    monday = datetime(2026, 6, 1, tzinfo=UTC)
    due = ticks(crontab(0, 0, day_of_week=part), UTC_ZONE, monday, monday + 7 * DAY)
    assert [tick.isoweekday() for tick in due] == named


def test_both_kinds_of_days_must_match_in_a_crontab_and_one_is_enough_in_cron() -> None:
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
    celery = ticks(crontab(0, 0, day_of_month=13, day_of_week="fri"), UTC_ZONE, begin, end)
    assert [tick.date() for tick in celery] == [date(2026, 2, 13), date(2026, 3, 13)]
    classic = ticks(cron("0 0 13 * fri"), UTC_ZONE, begin, begin + 31 * DAY)
    assert [tick.day for tick in classic] == [2, 9, 13, 16, 23, 30]
    starred = ticks(cron("0 0 */10 * fri"), UTC_ZONE, begin, end)
    assert all(tick.isoweekday() == 5 and tick.day in (1, 11, 21, 31) for tick in starred)


def test_rare_days_are_found() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert crontab(0, 0, "mon", 29, 2).next_after(moment, UTC_ZONE) == datetime(2044, 2, 29, tzinfo=UTC)
    assert cron("@yearly").next_after(moment, UTC_ZONE) == datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("* * * *", "4 parts"),
        ("60 * * * *", "from 0 to 59"),
        ("* 24 * * *", "from 0 to 23"),
        ("* * 0 * *", "from 1 to 31"),
        ("* * * 13 *", "from 1 to 12"),
        ("* * * * 8", "from 0 to 6"),
        ("* * * * mo", "'mo'"),
        ("*/0 * * * *", "'\\*/0'"),
        ("*-5 * * * *", "like 5"),
        ("1,,2 * * * *", "like 5"),
        ("0 0 31 2 *", "never due"),
        ("0 0 30,31 feb *", "day 30"),
        ("@often", "1 parts"),
    ],
)
def test_nonsense_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        cron(text)


def test_entries_are_values() -> None:
    assert crontab(5, "2") == crontab("5", 2)
    assert str(crontab(5, [1, 2], day_of_week="Mon - Fri")) == "5 1,2 * * mon-fri"
    assert len({cron("0 0 * * *"), cron("@daily")}) == 1
