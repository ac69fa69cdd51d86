"""Kind 5: what was accepted, and became something else in silence. Now it is what was said, or it is refused in a sentence.

Here: what a call comes to, from the retry to the result, and what operators say of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from taskq import Attempt, TaskQ, chain, chord, config, group
from taskq.broker.interface import Delivery
from taskq.broker.sqlite.properties import decode as read
from taskq.broker.sqlite.properties import encode as written
from taskq.dead import Filter
from taskq.errors import ArgumentRefused, BackendError, ConfigurationError, DatabaseError, ResultsDisabled, ResultTimeout, Retry
from taskq.message import SENT
from taskq.results.group import GroupResult
from taskq.results.handle import AsyncResult, Source
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record, Status
from taskq.retry import RetryPolicy
from taskq.serialization import decode, plain_result
from taskq.testing import in_memory
from taskq.workers.execute import Executor

BROKER = "sqlite:////nowhere/unit.db"
ZONES = sorted(available_timezones())
DAY = 86_400.0


def add(a: int, b: int) -> int:
    return a + b


def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture
def app() -> TaskQ:
    """An app whose broker is not there: what is refused must be refused before it is asked."""
    return TaskQ("silent", broker=BROKER)


# Times


@given(
    st.datetimes(timezones=st.none() | st.just(UTC) | st.sampled_from(ZONES).map(ZoneInfo), allow_imaginary=False)
    | st.times(timezones=st.none() | st.just(UTC) | st.sampled_from(ZONES).map(ZoneInfo)),
    st.booleans(),
)
def test_a_time_comes_back_as_it_was_or_is_refused(value: datetime | time, fold: bool) -> None:
    value = value.replace(fold=fold)
    try:
        encoded = msgspec.json.encode(plain_result([value]))
    except ArgumentRefused:
        assert fold or not isinstance(value.tzinfo, (timezone, type(None)))
        return
    for back in (decode(encoded)[0], kombu_json.loads(encoded.decode())[0]):
        assert (back, back.fold, back.utcoffset(), back.tzname()) == (value, fold, value.utcoffset(), value.tzname())


@pytest.mark.parametrize(
    "value",
    [
        time(12, tzinfo=ZoneInfo("Europe/Berlin")),
        time(12, fold=1),
        datetime(2026, 10, 25, 2, 30, fold=1),
        datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    ],
)
def test_a_zone_or_a_fold_is_not_dropped(app: TaskQ, value: Any) -> None:
    with pytest.raises(ArgumentRefused, match=r"argument 'text' of task .*: JSON would"):
        app.task(name="silent.shout")(lambda text: text).delay(value)
    with pytest.raises(ArgumentRefused, match="the return value"):
        plain_result(value)


# Retries


def put_off(attempt: Attempt, days: float) -> None:
    attempt.retry(countdown=timedelta(days=days))


def delivery(**headers: Any) -> Delivery:
    known = {"lang": "py", "task": "put_off", "id": "id-1", "retries": 0, **headers}
    envelope = {
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": known,
        "properties": {"correlation_id": "id-1"},
    }
    return Delivery("mail", 1, written(envelope), json.dumps([[60.0], {}, {}]).encode(), redelivered=False)


def test_a_retry_in_60_days_runs_in_60_days(app: TaskQ) -> None:
    """No broker is asked to hold it for longer than 30: it comes by then, is not due, and is put off again."""
    app.task(name="put_off", bind=True)(put_off)
    run = Executor(app.tasks, config.load({"broker": BROKER}, environment={}), read, "1@host")
    outcome = run(delivery())
    assert outcome is not None
    (again,) = outcome.publish
    due = datetime.fromisoformat(again.message.headers["eta"]).timestamp() - datetime.now(UTC).timestamp()
    assert (outcome.event, again.delay) == ("retried", 30 * DAY)
    assert 60 * DAY - 60 < due <= 60 * DAY
    assert again.message.headers[SENT] == pytest.approx(datetime.now(UTC).timestamp() + 60 * DAY, abs=60)
    later = run(delivery(**again.message.headers))
    assert later is not None
    assert (later.event, later.publish[0].delay) == ("delayed", 30 * DAY)
    assert later.publish[0].message.headers["eta"] == again.message.headers["eta"]


@pytest.mark.parametrize("countdown", ["5", True, [5], float("nan"), float("inf"), float("-inf"), 1e12, timedelta.max])
def test_a_countdown_that_is_none_is_refused_where_it_is_given(countdown: Any) -> None:
    attempt = Attempt("id", "task", retry_policy=RetryPolicy(max_retries=0))
    for ask in (attempt.retry, msgspec.structs.replace(attempt, called_directly=True).retry, Retry):
        with pytest.raises(ConfigurationError, match="countdown of a retry must be a number of seconds"):
            ask(countdown=countdown)


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": "3"},
        {"max_retries": -1},
        {"max_retries": 2.0},
        {"max_retries": 2**31},
        {"max_retries": 10**5000},
        {"eta": date(2026, 1, 1)},
        {"eta": "tomorrow"},
        {"eta": 5},
    ],
)
def test_options_of_a_retry_are_refused_where_they_are_given(options: dict[str, Any]) -> None:
    for directly in (True, False):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            Attempt("id", "task", called_directly=directly).retry(**options)


def test_a_retry_that_is_due_already_is_due_at_once() -> None:
    assert Retry(countdown=-5).countdown == 0
    assert Retry(countdown=timedelta(minutes=1)).countdown == 60


class Plain(Retry):
    def __init__(self) -> None:
        """Calls no constructor but its own."""


@pytest.mark.parametrize(
    ("kind", "changes", "event", "says"),
    [
        (Plain, {}, "retried", ""),
        (Plain, {"countdown": timedelta(seconds=5)}, "retried", ""),
        (Plain, {"max_retries": 0}, "dead-lettered", ""),
        (Retry, {"countdown": "zzz"}, "failed", "the countdown of a retry must be a number of seconds, .* not 'zzz'"),
        (Retry, {"countdown": float("nan")}, "failed", "the countdown of a retry must be a number of seconds"),
        (Retry, {"max_retries": "q"}, "failed", "max_retries must be a whole number from 0 to 2147483647, .* not 'q'"),
        (Retry, {"exc": 5}, "failed", "the exc of a retry must be an exception or None, not 5"),
    ],
)
def test_what_is_set_on_a_retry_is_taken_or_said_to_be_wrong(
    app: TaskQ, kind: type[Retry], changes: dict[str, Any], event: str, says: str
) -> None:
    def ask(*_: Any) -> None:
        verdict = kind()
        vars(verdict).update(changes)
        raise verdict

    app.task(name="put_off")(ask)
    run = Executor(app.tasks, config.load({"broker": BROKER}, environment={}), read, "1@host")
    outcome = run(delivery())
    assert outcome is not None
    assert outcome.event == event
    if event == "failed":
        assert outcome.record is not None
        assert re.search(says, decode(outcome.record.meta)["result"]["exc_message"][0])


# Results


def test_waiting_for_a_result_that_is_not_kept_says_so_at_once() -> None:
    app = TaskQ("silent", broker=BROKER)
    plain = app.task(name="add")(add)
    mute = app.task(name="mute", ignore_result=True)(add)
    gather = app.task(name="total")(total)
    with in_memory(app):
        unheard: list[Any] = [
            mute.delay(1, 1),
            mute.s(1, 1).delay(),
            plain.apply_async((1, 1), ignore_result=True),
            plain.signature((1, 1), ignore_result=True, link=plain.s(1)).delay(),
            app.send_task("mute", (1, 1)),
            app.send_many([mute.s(1, 1)])[0],
            chain(plain.s(1, 1), mute.s(1)).delay(),
            chain(plain.s(1, 1), plain.s(1)).set(ignore_result=True).delay(),
            group(plain.s(1, 1), mute.s(1, 1)).delay()[1],
            group(plain.s(1, 1)).set(ignore_result=True).delay()[0],
            chord([plain.s(1, 1)], gather.s().set(ignore_result=True)).delay(),
        ]
        for result in unheard:
            for ask in (result.get, result.wait):
                with pytest.raises(ResultsDisabled, match="was sent with ignore_result"):
                    ask()
            assert not result.ready()
        for propagate in (True, False):
            with pytest.raises(ResultsDisabled):
                group(mute.s(1, 1), plain.s(1, 1)).delay().get(propagate=propagate)
        heard: list[AsyncResult[Any]] = [
            mute.apply_async((1, 1), ignore_result=False),
            chain(mute.s(1, 1), plain.s(1)).delay(),
            app.result(unheard[0].id),
        ]
        for result in heard:
            assert not result.wait(0)


class Away(SqliteResults):
    """A store whose server goes away after it has told of so many ends."""

    left = 1

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        if not self.left:
            raise BackendError("the backend is away")
        self.left -= 1
        return super().wait(task_id, timeout)


def failure(kind: type[Exception]) -> bytes:
    result = {"exc_type": kind.__name__, "exc_module": kind.__module__, "exc_message": ["mine"]}
    return json.dumps({"status": "FAILURE", "result": result, "traceback": None}).encode()


@pytest.mark.parametrize("propagate", [False, True])
def test_a_backend_that_is_away_is_no_member_that_failed(tmp_path: Path, propagate: bool) -> None:
    store = Away(f"sqlite:///{tmp_path}/taskq.db", 60.0)
    status: Status = "SUCCESS"
    store.store([Record(name, status, b'{"status": "SUCCESS", "result": 1}') for name in "ab"])
    source = Source(lambda: store, lambda *_: None, lambda _: None)
    members = GroupResult[int]("group", [AsyncResult(name, source) for name in "ab"])
    with pytest.raises(BackendError, match="is away"):
        members.get(5, propagate=propagate)
    store.close()


def test_a_member_that_failed_with_a_backend_error_of_its_own_is_one(tmp_path: Path) -> None:
    store = SqliteResults(f"sqlite:///{tmp_path}/taskq.db", 60.0)
    for name, kind in (("a", BackendError), ("b", DatabaseError), ("c", TimeoutError)):
        store.store([Record(name, "FAILURE", failure(kind))])
    source = Source(lambda: store, lambda *_: None, lambda _: None)
    members = GroupResult[int]("group", [AsyncResult(name, source) for name in "abc"])
    assert [type(error) for error in members.get(5, propagate=False)] == [BackendError, DatabaseError, TimeoutError]
    store.close()


@pytest.mark.parametrize("ask", ["get", "wait"])
@pytest.mark.parametrize("timeout", [float("nan"), -1, float("-inf"), "1", True, [1], timedelta(seconds=-1)])
def test_a_timeout_that_is_none_is_refused_at_once(tmp_path: Path, ask: str, timeout: Any) -> None:
    store = SqliteResults(f"sqlite:///{tmp_path}/taskq.db", 60.0)
    result = AsyncResult[int]("a", Source(lambda: store, lambda *_: None, lambda _: None))
    for asked in (result, GroupResult("group", [result]), GroupResult[int]("empty", [])):
        with pytest.raises(ConfigurationError, match="a timeout must be a number of seconds"):
            getattr(asked, ask)(timeout)
    store.close()


def test_a_timeout_may_be_a_timedelta_and_have_no_end(tmp_path: Path) -> None:
    store = SqliteResults(f"sqlite:///{tmp_path}/taskq.db", 60.0)
    source = Source(lambda: store, lambda *_: None, lambda _: None)
    missing, there = AsyncResult[int]("a", source), AsyncResult[int]("b", source)
    store.store([Record("b", "SUCCESS", b'{"status": "SUCCESS", "result": 1}')])
    for result in (missing, GroupResult("group", [missing])):
        assert not result.wait(timedelta(milliseconds=1))
        with pytest.raises(ResultTimeout, match=r"within 0\.001 s"):
            result.get(timedelta(milliseconds=1))
    for endless in (float("inf"), 10**400, 1e300, timedelta.max):
        assert there.get(endless) == 1
    store.close()


# What operators say

NO_TEXT: list[Any] = [None, 5, b"id", ["id"], ("id",), {"id"}, object(), "", "a\x00", "a\udc80"]


@pytest.mark.parametrize("value", NO_TEXT)
def test_what_is_revoked_paused_and_asked_for_has_a_name(app: TaskQ, value: Any) -> None:
    asks: list[Callable[[Any], Any]] = [
        app.revoke,
        app.pause,
        app.resume,
        app.result,
        app.group_result,
        app.workflow,
        app.send_task,
        lambda value: app.schedule(value, "@daily", app.task(name="add")(add).s(1, 1)),
    ]
    if value is not None:
        asks += [app.dead_letters, app.replay, app.purge_dead]
    for ask in asks:
        with pytest.raises(ConfigurationError, match=r"must be a str|must not be empty|what UTF-8 cannot carry") as refused:
            ask(value)
        assert isinstance(refused.value, TypeError) is not isinstance(value, str)


@pytest.mark.parametrize(
    "selection",
    [
        *({"task": value} for value in NO_TEXT[1:]),
        *({"reason": value} for value in NO_TEXT[1:]),
        *({"ids": [value]} for value in NO_TEXT),
        *({"ids": value} for value in ("id", b"id", 5, {"id": 1})),
        *({"since": value} for value in ("2h", 5, date(2026, 1, 1), timedelta(hours=2), datetime(2026, 1, 1))),
    ],
)
def test_which_dead_letters_are_meant_is_said_in_the_right_types(app: TaskQ, selection: Any) -> None:
    asks: list[Callable[..., Any]] = [app.dead_letters, app.replay, app.purge_dead, lambda **given: Filter.of(given)]  # type: ignore[arg-type]
    for ask in asks:
        with pytest.raises(ConfigurationError):
            ask(**selection)


def test_other_arguments_of_the_wrong_type_are_refused(app: TaskQ) -> None:
    made = app.task(name="add")(add)
    wrong: list[Callable[[], Any]] = [
        lambda: app.revoke("id", "yes"),  # type: ignore[arg-type]
        lambda: app.replay(rate="5"),  # type: ignore[arg-type]
        lambda: app.replay(rate=True),
        lambda: app.schedule("a", "@daily", made),  # type: ignore[arg-type]
        lambda: app.schedule("a", "@daily", None),  # type: ignore[arg-type]
        lambda: app.schedule("a", 5, made.s(1, 1)),  # type: ignore[arg-type]
        lambda: app.schedule("a", timedelta(0), made.s(1, 1)),
        lambda: app.schedule("a", timedelta(-1), made.s(1, 1)),
        lambda: app.schedule("a", "@daily", made.s(1, 1), jitter="5"),  # type: ignore[arg-type]
        lambda: app.schedule("a", "@daily", made.s(1, 1), timezone=5),  # type: ignore[arg-type]
        lambda: app.schedule("a", "@daily", made.s(1, 1), misfire=["skip"]),  # type: ignore[arg-type]
    ]
    for call in wrong:
        with pytest.raises(ConfigurationError):
            call()
    assert not app.schedules
