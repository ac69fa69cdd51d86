"""Kind 5: what was accepted, and became something else in silence. Now it is what was said, or it is refused in a sentence.

Here: values, from the settings and the schedules to the arguments and the results.
"""

from __future__ import annotations

import enum
import json
import math
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints
from zoneinfo import ZoneInfo

import pytest

from taskq import TaskQ
from taskq.config import NAMES, Settings, Size
from taskq.cron import cron, crontab
from taskq.errors import ConfigurationError
from taskq.sqlite import path_of

BROKER = "sqlite:////nowhere/unit.db"
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


@pytest.fixture
def app() -> TaskQ:
    return TaskQ("silent", broker=BROKER)


class Queue(enum.StrEnum):
    MAIL = "mail"


class OldQueue(str, enum.Enum):  # noqa: UP042  # what Celery's users have
    MAIL = "mail"


@pytest.mark.parametrize("queue", [Queue.MAIL, OldQueue.MAIL])
def test_a_queue_may_be_a_member_of_an_enum(queue: Any) -> None:
    app = TaskQ("silent", broker=BROKER, default_queue=queue, queues=[queue])
    made = app.task(queue=queue)(len)
    assert made.defaults["queue"] == "mail"
    assert type(made.defaults["queue"]) is str
    assert app.queue_names() == app.settings.queue_names == ("mail",)
    assert app._dead_queues(queue) == ("mail",)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("name", [5, "", b"x", "a\x00", "a\udc80"]),
        ("bind", [1, None, "yes"]),
        ("queue", [5, "", b"mail", ["mail"], "a\udc80", enum.Enum("Plain", {"MAIL": "mail"}).MAIL]),  # type: ignore[attr-defined]
        ("priority", ["high", "5", 5.0, True, 10, -1]),
        ("expires", ["5", 0, -1, True, float("nan"), float("inf"), 1e12, 10**400, timedelta(0), date.max, datetime.now(UTC)]),
        ("ignore_result", [1, "yes"]),
        ("time_limit", ["5", 0, -1, True, float("nan"), float("inf"), 1e12, 10**400, timedelta(-1), [5]]),
        ("soft_time_limit", ["5", 1e300, timedelta(0)]),
        ("max_retries", ["3", 3.0, True, -1]),
        ("default_retry_delay", ["3", None, 1e12, timedelta(-1)]),
        ("retry_backoff", ["3", None, 1e12, float("nan")]),
        ("retry_backoff_max", ["3", None, 1e12]),
        ("autoretry_for", [ValueError, "ValueError", ["ValueError"], (ValueError(),)]),
        ("dont_autoretry_for", [ValueError, {ValueError}]),
        ("retry_on", [5, "f"]),
        ("acks_late", [0, None, "no"]),
        ("on_timeout", ["again", 5, ["retry"]]),
        ("on_worker_lost", ["again", None]),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused_at_the_decorator(app: TaskQ, option: str, values: list[Any]) -> None:
    decorator: Any = app.task
    for value in values:
        if option == "name" and value is None:
            continue
        with pytest.raises(ConfigurationError, match=option):
            decorator(**{"name": "odd", option: value})(len)
    assert not app.tasks


def test_a_timedelta_is_as_many_seconds(app: TaskQ) -> None:
    minute = timedelta(minutes=1)
    made = app.task(
        expires=minute,
        time_limit=2 * minute,
        soft_time_limit=minute,
        default_retry_delay=minute,
        retry_backoff=minute,
        retry_backoff_max=minute,
    )(len)
    policy = made.retry_policy
    assert (made.defaults["expires"], made.time_limit, made.soft_time_limit) == (60, 120, 60)
    assert (policy.default_retry_delay, policy.retry_backoff, policy.retry_backoff_max) == (60, 60, 60)


def test_a_relative_sqlite_file_is_the_same_one_wherever_a_task_or_an_import_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKQ_BACKEND", "sqlite:///sub/../results.db")
    app = TaskQ("silent", broker="sqlite:///x.db")
    monkeypatch.chdir("/")
    for command_line in ({}, {"grace": 5}):
        app.configure(command_line)
        assert app.settings.broker == f"sqlite:///{tmp_path}/x.db"
        assert app.settings.backend == f"sqlite:///{tmp_path}/sub/../results.db"
    assert path_of(app.settings.broker) == tmp_path / "x.db"


def test_broker_and_backend_are_one_file_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///x.db", "sqlite:///./x.db", f"sqlite:///{tmp_path}/x.db", f"sqlite:////{tmp_path}/x.db"):
        app = TaskQ("silent", broker=url, backend="sqlite:///x.db")
        assert app.settings.backend == app.settings.broker, url
    monkeypatch.setenv("HOME", "/home/ann")
    assert TaskQ("silent", broker="sqlite:///~/my%20tasks.db").settings.broker == "sqlite:////home/ann/my%20tasks.db"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite://x.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///x.db?mode=ro"])
def test_a_url_that_names_no_file_is_refused_at_once(url: str) -> None:
    for name in ("broker", "backend"):
        with pytest.raises(ConfigurationError, match=f"{name}=.* names no file"):
            TaskQ("silent", **{name: url})


SHOP = """
import os
from taskq import TaskQ
app = TaskQ("shop", broker="sqlite:///x.db")
os.chdir("/")
"""


def test_the_command_line_shows_the_file_and_takes_relative_ones_from_where_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    def broker(*options: str, **environment: str) -> str:
        command = [sys.executable, "-m", "taskq", "config", "--json", "-A", "shop", *options]
        run = subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, check=True)
        return str(json.loads(run.stdout)["broker"]["value"])

    assert broker() == f"sqlite:///{tmp_path}/x.db"
    assert broker("--broker", "sqlite:///y.db") == f"sqlite:///{tmp_path}/y.db"
    assert broker(TASKQ_BROKER="sqlite:///z.db") == f"sqlite:///{tmp_path}/z.db"


def test_a_task_that_goes_elsewhere_sends_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = TaskQ("silent", broker="sqlite:///x.db")
    made = app.task(name="silent.len")(len)
    first = made.delay("a")
    monkeypatch.chdir("/")
    app.close()
    second = made.delay("b")
    assert (first.status, second.status) == ("PENDING", "PENDING")
    assert app.publisher.depth("default") == 2
    app.close()


@pytest.mark.parametrize("name", [None, 5, b"shop", "", "a\x00", "a\udc80", ["shop"]])
def test_an_app_is_called_by_a_text(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"the name of an app (must|is )"):
        TaskQ(name, broker=BROKER)


WRONG: dict[type, list[Any]] = {
    str: [5, 5.0, True, b"x", object(), ["a", 5], {"a": 1}, Path("/x"), "a\x00", "a\udc80"],
    int: [True, "x", "", 1.5, b"5", [1], 10**400, "9" * 5000, 2**40, math.inf, math.nan, -1, timedelta(seconds=5), object()],
    float: [True, "x", "", b"5", [1], 10**400, "9" * 5000, 1e300, 1e30, math.inf, math.nan, "inf", -1, object()],
    bool: [2, "x", "", b"true", [True], None.__class__, 1.5, object()],
    Size: [True, "x", "", 1.5, b"5", 10**400, "9" * 5000, 2**63, "9999999999T", -1, object()],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_of_the_wrong_kind_or_beyond_all_bounds_is_refused(name: str) -> None:
    wanted = get_type_hints(Settings)[name]
    values = WRONG.get(wanted, [5, "x", True, b"fork", object()])
    for value in values:
        if (name, type(value)) == ("http", int):
            continue
        with pytest.raises(ConfigurationError, match=name):
            TaskQ("silent", **{"broker": BROKER, name: value})


def test_an_environment_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_DEFAULT_QUEUE", "caf\udce9")
    with pytest.raises(ConfigurationError, match=r"TASKQ_DEFAULT_QUEUE is .*, which holds what UTF-8 cannot carry"):
        TaskQ("silent", broker=BROKER)


def test_settings_may_say_seconds_by_a_timedelta_and_the_address_by_a_port() -> None:
    settings = TaskQ("silent", broker=BROKER, grace=timedelta(minutes=1), http=9808, queues={"mail"}).settings
    assert (settings.grace, settings.http, settings.queue_names) == (60.0, "9808", ("mail",))


def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.parametrize("options", [{"expires": -1}, {"expires": 0}, {"expires": 5, "countdown": 5}])
def test_a_schedule_whose_ticks_would_all_expire_is_refused(app: TaskQ, options: dict[str, Any]) -> None:
    call = app.task(name="scheduled")(add).s(1, 2)
    for signature in (call.clone().set(**options), call.clone().set(**options) | app.tasks["scheduled"].s(1)):
        with pytest.raises(ConfigurationError, match="schedule 's': expires must be a number of seconds above 0"):
            app.schedule("s", timedelta(hours=1), signature)
    app.schedule("s", timedelta(hours=1), call.set(expires=6, countdown=5))


class Busy(Exception):
    pass


OPTIONS: list[dict[str, Any]] = [
    {"queue": "other"},
    {"priority": 1},
    {"expires": 5},
    {"ignore_result": True},
    {"bind": True},
    {"acks_late": False},
    {"time_limit": 5},
    {"soft_time_limit": 5},
    {"on_worker_lost": "fail"},
    {"on_timeout": "retry"},
    {"max_retries": None},
    {"autoretry_for": (Busy,)},
    {"retry_on": bool},
    {"retry_backoff": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[next(iter(options)) for options in OPTIONS])
def test_one_function_is_no_two_tasks_of_one_name_with_different_options(app: TaskQ, options: dict[str, Any]) -> None:
    def note(value: Any) -> Any:
        return value

    make: Any = app.task
    first = make(name="note")(note)
    with pytest.raises(ConfigurationError, match=f"'note' is made twice, with a different {next(iter(options))};"):
        make(name="note", **options)(note)
    assert app.tasks["note"] is first
    make(name="again", **options)(note)
    make(name="again", **options)(note)


def test_options_of_a_module_that_is_imported_again_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
from taskq import task
class Busy(Exception): pass
@task(autoretry_for=(Busy,), retry_on=lambda error: True, queue="mail", expires=5)
def note(value): return value
"""
    (tmp_path / "silent_again.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    app = TaskQ("silent", broker=BROKER)
    app.include("silent_again")
    first = app.tasks["silent_again.note"]
    monkeypatch.delitem(sys.modules, "silent_again")
    app.include("silent_again")
    assert app.tasks["silent_again.note"] is not first
