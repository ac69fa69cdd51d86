"""Schedules as values: what is due, what was missed, what is sent, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq import TaskQ, chain, crontab, group
from taskq.compose import NOBODY
from taskq.errors import ArgumentRefused, ConfigurationError
from taskq.launch import launch
from taskq.message import Publication
from taskq.schedule import LATEST, MOST_MISSED, Misfire, Schedule, State, Tick, due

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)

app = TaskQ("shop")


@app.task(name="report", queue="reports", expires=600)
def report(day: str = "today") -> str:
    return day


@app.task(name="silent", ignore_result=True)
def silent() -> None: ...


def schedule(entry: Any = SECOND, signature: Any = None, **options: Any) -> Schedule:
    return TaskQ("other").schedule("s", entry, report.s("monday") if signature is None else signature, **options)


def sent(schedule: Schedule, nominal: datetime = NOW, copy: str | None = None) -> list[Publication]:
    encoded = msgspec.json.encode(schedule)
    travelled = msgspec.json.decode(encoded, type=Schedule)
    assert msgspec.json.encode(travelled) == encoded
    call = travelled.call(Tick("shop", "s", nominal), copy)
    return list(launch(call, (), NOBODY, lambda _: "default", NOW.timestamp()).publish)


def test_an_interval_counts_from_the_epoch_whenever_one_looks() -> None:
    every = schedule(timedelta(minutes=7))
    found = every.next_after(NOW)
    assert found.timestamp() % 420 == 0
    assert NOW < found <= NOW + 7 * MINUTE
    assert every.next_after(found) == found + 7 * MINUTE
    assert every.next_after(found - timedelta(microseconds=1)) == found


def test_a_crontab_goes_by_its_zone() -> None:
    nightly = schedule(crontab(hour=2, minute=30), timezone=ZoneInfo("Europe/Berlin"))
    assert nightly.next_after(NOW) == datetime(2026, 5, 7, 0, 30, tzinfo=UTC)
    assert schedule("30 2 * * *").next_after(NOW) == datetime(2026, 5, 7, 2, 30, tzinfo=UTC)


@given(st.integers(1, 5000), st.integers(0, 100_000), st.integers(0, 100_000))
def test_the_latest_tick(period: int, after: int, length: int) -> None:
    every = schedule(timedelta(seconds=period))
    begin = NOW + after * SECOND
    found = every.latest(begin, begin + length * SECOND)
    ticks = [begin + n * SECOND for n in range(1, length + 1) if (begin + n * SECOND).timestamp() % period == 0][-1:]
    assert found == (ticks[0] if ticks else None)


def test_the_latest_tick_of_an_uneven_entry() -> None:
    office = schedule("*/5 9-17 * * mon-fri")
    assert office.latest(NOW - timedelta(days=400), datetime(2026, 5, 10, tzinfo=UTC)) == datetime(
        2026, 5, 8, 17, 55, tzinfo=UTC
    )


LATE = [NOW - 2 * SECOND, NOW - SECOND, NOW]


@pytest.mark.parametrize(
    ("misfire", "missed"),
    [("skip", []), ("latest", [NOW - 3 * SECOND]), ("all", [NOW - n * SECOND for n in (6, 5, 4, 3)])],
)
def test_what_was_missed_is_up_to_the_policy_and_what_is_late_is_sent(misfire: Misfire, missed: list[datetime]) -> None:
    every = schedule(misfire=misfire)
    attended = NOW - 2 * SECOND
    assert due(every, NOW - 7 * SECOND, attended, NOW) == missed + LATE
    assert due(every, NOW - 3 * SECOND, attended, NOW) == LATE
    assert due(every, NOW - SECOND, attended, NOW) == [NOW]
    assert due(every, NOW, attended, NOW) == []


def test_what_is_too_late_counts_as_missed_though_somebody_attended() -> None:
    """Another version of the application may have led, without this schedule."""
    for misfire, count in (("skip", 0), ("latest", 1)):
        found = due(schedule(misfire=misfire), NOW - timedelta(days=5), NOW - timedelta(days=9), NOW)
        assert len(found) == count + LATEST // SECOND + 1


def test_there_is_a_limit_to_what_is_made_up_for() -> None:
    year_ago = NOW - timedelta(days=365)
    every = due(schedule(misfire="all"), year_ago, NOW, NOW - SECOND)
    assert every == [NOW - n * SECOND for n in range(MOST_MISSED, 0, -1)]
    assert due(schedule(misfire="latest"), year_ago, NOW, NOW - SECOND) == [NOW - SECOND]


def test_nothing_is_due_while_a_clock_that_was_set_back_catches_up() -> None:
    assert due(schedule(misfire="all"), NOW + HOUR, NOW - HOUR, NOW) == []


@given(st.integers(1, 600), st.lists(st.integers(1, 500), max_size=6), st.sampled_from(["skip", "latest", "all"]))
def test_no_tick_comes_twice_whoever_attends_and_however_often(period: int, steps: list[int], misfire: Misfire) -> None:
    every, last, now, seen = schedule(timedelta(seconds=period), misfire=misfire), NOW, NOW, []
    for number, step in enumerate(steps):
        now += step * SECOND
        for nominal in due(every, last, now if number % 2 else NOW, now):
            assert last < nominal <= now
            last = nominal
            seen.append(nominal)
    assert seen == sorted(set(seen))
    assert all(every.next_after(nominal - SECOND) == nominal for nominal in seen)


def test_a_tick_says_which_it_is() -> None:
    [publication] = sent(schedule(), copy="c1")
    headers = publication.message.headers
    assert publication.queue == "reports"
    assert headers["tq-tick"] == "shop/s@2026-05-06T07:08:09+00:00"
    assert headers["tq-tick-copy"] == "c1"
    assert headers["id"] == publication.message.correlation_id == Tick("shop", "s", NOW).task_id
    assert headers["expires"] == "2026-05-06T07:18:09+00:00"
    assert msgspec.json.decode(publication.message.body)[0] == ["monday"]
    [again] = sent(schedule())
    assert again.message.headers["id"] == headers["id"]
    assert "tq-tick-copy" not in again.message.headers
    [later] = sent(schedule(), NOW + SECOND)
    assert later.message.headers["id"] != headers["id"]


def test_headers_of_the_call_are_kept() -> None:
    [publication] = sent(schedule(signature=report.s().set(headers={"tenant": "a"})))
    assert publication.message.headers["tenant"] == "a"


def test_jitter_is_within_its_bounds_and_the_same_for_every_copy() -> None:
    jittery = schedule(jitter=30)
    delays = [sent(jittery, NOW + n * SECOND)[0].delay for n in range(50)]
    assert all(0 <= delay <= 30 for delay in delays)
    assert len(set(delays)) > 40
    assert sent(jittery, NOW, "a")[0].delay == sent(jittery, NOW, "b")[0].delay


def test_workflows_can_be_scheduled() -> None:
    [first] = sent(schedule(signature=chain(report.s(), report.s())), copy="c")
    assert first.message.headers["tq-tick-copy"] == "c"
    assert len(sent(schedule(signature=report.s() | group(report.si(str(n)) for n in range(3))))) == 1


def test_what_the_ledger_remembers() -> None:
    state = State("rule", NOW)
    claimed = state.begun(NOW + SECOND)
    assert (claimed.last, claimed.pending, claimed.copies) == (NOW + SECOND, NOW + SECOND, 1)
    assert claimed.begun(NOW + SECOND).copies == 2
    done = claimed.done(NOW + SECOND)
    assert (done.last, done.sent, done.pending, done.copies) == (NOW + SECOND, NOW + SECOND, None, 0)
    assert done.passed(NOW + 2 * SECOND) == State("rule", NOW + 2 * SECOND, sent=NOW + SECOND)
    assert msgspec.json.decode(msgspec.json.encode(claimed), type=State) == claimed


def test_another_rule_is_another_schedule_and_another_policy_is_not() -> None:
    rules = {schedule(entry).rule for entry in (SECOND, MINUTE, "* * * * *", "0 0 1 * 1", crontab(0, 0, 1, 1))}
    rules |= {schedule("* * * * *", timezone="Asia/Tokyo").rule}
    assert len(rules) == 6
    assert schedule().rule == schedule(misfire="all", overlap="skip", jitter=3).rule


@pytest.mark.parametrize(
    ("entry", "options", "says"),
    [
        (timedelta(milliseconds=500), {}, "a second at least"),
        (timedelta(), {}, "a second at least"),
        (5, {}, "crontab\\(\\), a timedelta or a text"),
        ("nonsense", {}, "1 parts"),
        (SECOND, {"timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        (SECOND, {"timezone": "../etc/passwd"}, "no time zone"),
        (SECOND, {"timezone": None}, "no time zone"),
        (SECOND, {"misfire": "some"}, "skip, latest, all"),
        (SECOND, {"overlap": "maybe"}, "allow, skip"),
        (SECOND, {"jitter": -1}, "jitter must be"),
        (SECOND, {"jitter": float("nan")}, "jitter must be"),
        (SECOND, {"signature": report.s().set(task_id="x")}, "task_id is for a single call"),
        (SECOND, {"signature": report.s().set(eta=NOW)}, "eta is for a single call"),
        (SECOND, {"signature": report.s().set(expires=NOW)}, "number of seconds"),
        (SECOND, {"signature": silent.s(), "overlap": "skip"}, "ignore_result"),
        (SECOND, {"signature": chain(report.s(), report.s()), "overlap": "skip"}, "single task"),
        (SECOND, {"signature": group(report.s(), report.s())}, "put a task before them"),
        (SECOND, {"signature": chain(group(report.s(), report.s()), report.s())}, "put a task before them"),
    ],
)
def test_what_makes_no_sense_is_refused_naming_the_schedule(entry: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"schedule 's': .*{says}"):
        schedule(entry, **options)


def test_a_call_that_could_not_be_sent_is_refused_at_once() -> None:
    with pytest.raises(ArgumentRefused, match="argument 'day'"):
        schedule(signature=report.signature([{1, 2}]))
    with pytest.raises(TypeError, match="report"):
        schedule(signature=report.signature([1, 2, 3]))


def test_names_are_taken_once() -> None:
    shop = TaskQ("shop")
    made = shop.schedule("nightly", "@daily", report.s())
    assert shop.schedules == {"nightly": made}
    with pytest.raises(ConfigurationError, match="two schedules are called 'nightly'"):
        shop.schedule("nightly", "@hourly", report.s())
    with pytest.raises(ConfigurationError, match="printable"):
        shop.schedule("a\nb", "@hourly", report.s())


def test_settings_say_whether_a_worker_sees_to_schedules() -> None:
    assert TaskQ("shop").settings.scheduler
    assert not TaskQ("shop", scheduler=False).settings.scheduler
    assert not TaskQ("shop", scheduler="no").settings.scheduler
    with pytest.raises(ConfigurationError, match="scheduler= must be true or false, not 'maybe'"):
        TaskQ("shop", scheduler="maybe")
