"""Kind 5: what was accepted, and became something else in silence. Now it is what was said, or it is refused in a sentence.

Here: values, from the settings and the schedules to the arguments and the results.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from taskq.cron import cron, crontab
from taskq.errors import ConfigurationError

WEEK = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def due_on(day_of_week: str) -> set[int]:
    """The days of the week on which the entry is due, 0 for Sunday."""
    entry, moment, days = crontab(0, 0, day_of_week), datetime(2026, 1, 1, tzinfo=UTC), set()
    while moment < datetime(2026, 1, 15, tzinfo=UTC):
        moment = entry.next_after(moment, ZoneInfo("UTC"))
        days.add(moment.isoweekday() % 7)
    return days


@pytest.mark.parametrize("step", ["", "/1", "/2", "/3", "/7", "/8"])
def test_a_range_of_weekdays_names_the_days_from_its_first_to_its_last(step: str) -> None:
    """Against a calendar: every range of numbers and names, with 0 and 7 both for Sunday."""
    said = [*((str(number), number % 7) for number in range(8)), *((name, number) for number, name in enumerate(WEEK))]
    for (first, start), (last, stop) in product(said, said):
        whole = first in ("0", "sun") and last == "7"
        days = [day % 7 for day in range(start, start + (7 if whole else (stop - start) % 7 + 1))]
        assert due_on(f"{first}-{last}{step}") == set(days[:: int(step[1:] or 1)]), f"{first}-{last}{step}"


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (crontab, "1 5"),
        (crontab, "*/00"),
        (crontab, "5/" + "9" * 5000),
        (crontab, "9" * 5000),
        (crontab, b"5"),
        (crontab, 5.0),
        (crontab, True),
        (crontab, None),
        (crontab, {5: 6}),
        (crontab, [[None]]),
        (cron, 5),
        (cron, None),
        (cron, b"* * * * *"),
    ],
)
def test_an_entry_that_is_none_is_refused(make: Any, given: Any) -> None:
    with pytest.raises(ConfigurationError):
        make(given)
