"""Tasks: how they are called, checked, named, and taken in by an app."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from taskq import Attempt, TaskQ, task
from taskq.attempt import current
from taskq.errors import ArgumentRefused, ConfigurationError, NotBound
from taskq.retry import RetryPolicy

BROKER = "sqlite:////nowhere/unit.db"


@pytest.fixture
def app() -> TaskQ:
    return TaskQ("unit", broker=BROKER)


@pytest.fixture
def reusable() -> Iterator[ModuleType]:
    """The module, as a fresh process would import it."""
    yield importlib.import_module("tests.apps.reusable")
    del sys.modules["tests.apps.reusable"]


def pay(order: int, /, amount: float, *, currency: str = "EUR", **more: Any) -> str:
    """Takes the money."""
    return f"{order} {amount} {currency} {more}"


def strict(a: int, b: int = 2, *, c: int) -> int:
    return a + b + c


def test_a_plain_call_runs_here(app: TaskQ) -> None:
    assert app.task(pay)(1, 2.5, currency="USD") == "1 2.5 USD {}"


def test_a_task_looks_like_its_function(app: TaskQ) -> None:
    made = app.task(pay)
    assert (made.__name__, made.__doc__, made.__wrapped__) == ("pay", "Takes the money.", pay)  # type: ignore[attr-defined]
    assert inspect.signature(made) == inspect.signature(pay)
    assert made.name == "tests.unit.test_task.pay"
    assert repr(made) == "<Task tests.unit.test_task.pay>"


def test_a_bound_task_called_plainly_gets_an_attempt(app: TaskQ) -> None:
    @app.task(bind=True, name="bound")
    def bound(attempt: Attempt, key: str) -> tuple[str, str, int, bool]:
        return key, attempt.task, attempt.number, attempt.request is attempt

    assert bound("k") == ("k", "bound", 1, True)
    assert bound(key="k") == ("k", "bound", 1, True)


def test_an_attempt_knows_whether_anybody_would_retry_it(app: TaskQ) -> None:
    @app.task(bind=True, name="inner", max_retries=7)
    def inner(attempt: Attempt) -> tuple[str, bool, int | None]:
        return attempt.id, attempt.called_directly, attempt.retry_policy.max_retries

    assert inner()[1:] == (True, 7)
    for running, answer in (("inner", ("id", False, 3)), ("outer", ("id", True, 7))):
        token = current.set(Attempt("id", running))
        try:
            assert inner() == answer
        finally:
            current.reset(token)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2, 3), {"c": 1}),
        ((1,), {"a": 2, "c": 1}),
        ((1,), {"c": 1, "unknown": 2}),
        ((), {"b": 1, "c": 1}),
    ],
)
def test_a_wrong_call_is_refused_as_a_plain_one_would_be(app: TaskQ, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    made: Any = app.task(name="strict")(strict)
    plain: Any = strict
    with pytest.raises(TypeError):
        plain(*args, **kwargs)
    sends: list[Callable[[], Any]] = [
        lambda: made.delay(*args, **kwargs),
        lambda: made.s(*args, **kwargs).delay(),
        lambda: made.si(*args, **kwargs),
        lambda: made.apply_async(args, kwargs),
        lambda: app.send_task("strict", args, kwargs),
    ]
    for send in sends:
        with pytest.raises(TypeError, match=r"^strict\(\): ") as refused:
            send()
        assert not isinstance(refused.value, ArgumentRefused)
        assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (((), {"c": 1}), "missing a required argument: 'a'"),
        (((1, 2, 3), {"c": 1}), "too many positional arguments"),
        (((1,), {"c": 1, "x": 2}), "got an unexpected keyword argument 'x'"),
        (((1,), {"a": 2, "c": 1}), "multiple values for argument 'a'"),
    ],
)
def test_a_wrong_call_says_which_argument(app: TaskQ, call: tuple[Any, Any], says: str) -> None:
    with pytest.raises(TypeError, match=re.escape(says)):
        app.task(strict).signature(*call).delay()


def test_the_attempt_of_a_bound_task_is_not_the_callers_to_give(app: TaskQ) -> None:
    @app.task(bind=True)
    def bound(attempt: Attempt, key: str) -> str:
        return key

    assert bound.s("k").args == ("k",)
    with pytest.raises(TypeError, match="too many positional"):
        bound.s(Attempt("id", "bound"), "k")


def test_an_argument_that_json_cannot_carry_is_named(app: TaskQ) -> None:
    with pytest.raises(ArgumentRefused, match=r"argument 'amount' of task .*pay'.*set"):
        app.task(pay).delay(1, {1, 2})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"bind": True}])
def test_async_functions_are_refused(app: TaskQ, options: dict[str, Any]) -> None:
    async def later(attempt: object = None) -> None:
        """Would need a loop."""

    decorator: Any = app.task
    with pytest.raises(ConfigurationError, match=r"later is async.*asyncio\.run"):
        decorator(**options)(later)
    with pytest.raises(ConfigurationError, match="is async"):
        task(later)


def test_an_unknown_option_is_refused(app: TaskQ) -> None:
    decorator: Any = app.task
    with pytest.raises(ConfigurationError, match=r"unknown task option 'retry'; there are acks_late, "):
        decorator(retry=3)(pay)


def test_options_say_how_attempts_may_end(app: TaskQ) -> None:
    plain = app.task(name="plain")(pay)
    assert plain.retry_policy == RetryPolicy()
    assert (plain.acks_late, plain.time_limit, plain.soft_time_limit) == (True, None, None)
    assert (plain.on_worker_lost, plain.on_timeout) == ("retry", "fail")

    careful = app.task(
        name="careful",
        max_retries=None,
        autoretry_for=(OSError,),
        retry_backoff=True,
        acks_late=False,
        time_limit=30,
        soft_time_limit=20.5,
        on_worker_lost="fail",
    )(pay)
    assert careful.retry_policy == RetryPolicy(max_retries=None, autoretry_for=(OSError,), retry_backoff=1.0)
    assert (careful.acks_late, careful.time_limit, careful.soft_time_limit) == (False, 30, 20.5)
    assert (careful.on_worker_lost, careful.on_timeout) == ("fail", "fail")


def test_a_tasks_time_limits_are_read_where_it_runs_and_not_sent(app: TaskQ) -> None:
    limited = app.task(name="limited", time_limit=30)(pay)
    assert "time_limit" not in limited.s(1, 2.0).options
    assert limited.signature((1, 2.0), time_limit=5).options["time_limit"] == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"autoretry_for": ValueError}, "autoretry_for must be a tuple of exception classes"),
        ({"autoretry_for": (ValueError, "x")}, "autoretry_for must hold exception classes, and 'x' is none"),
        ({"dont_autoretry_for": (int,)}, "dont_autoretry_for must hold exception classes, and <class 'int'> is none"),
        ({"max_retries": -1}, "max_retries must be a whole number from 0 to 2147483647, or None"),
        ({"max_retries": True}, "max_retries must be a whole number"),
        ({"max_retries": 2.0}, "max_retries must be a whole number"),
        ({"default_retry_delay": True}, "default_retry_delay must be a number of seconds from 0, not True"),
        ({"default_retry_delay": None}, "default_retry_delay must be a number"),
        ({"retry_backoff": -1}, "retry_backoff must be a number"),
        ({"retry_backoff": "2"}, "retry_backoff must be a number"),
        ({"retry_backoff_max": float("inf")}, "retry_backoff_max must be a number"),
        ({"retry_jitter": 1}, "retry_jitter must be True or False, not 1"),
        ({"retry_on": "OSError"}, "retry_on must be a function"),
        ({"acks_late": "no"}, "acks_late must be True or False, not 'no'"),
        ({"acks_late": False, "on_worker_lost": "retry"}, "never runs twice, so on_worker_lost cannot be 'retry'"),
        ({"acks_late": False, "on_timeout": "retry"}, "never runs twice, so on_timeout cannot be 'retry'"),
        ({"time_limit": 0}, "time_limit must be a number of seconds above 0, not 0"),
        ({"soft_time_limit": True}, "soft_time_limit must be a number of seconds or a timedelta, not True"),
        ({"time_limit": 5, "soft_time_limit": 6}, "soft_time_limit=6 must be below time_limit=5"),
        ({"on_worker_lost": "retries"}, "on_worker_lost must be one of retry, fail, not 'retries'"),
        ({"on_timeout": None}, "on_timeout must be one of retry, fail, not None"),
    ],
)
def test_options_that_make_no_sense_are_refused(app: TaskQ, options: dict[str, Any], says: str) -> None:
    decorator: Any = app.task
    with pytest.raises(ConfigurationError, match=rf"^task 'odd': .*{re.escape(says)}"):
        decorator(name="odd", **options)(pay)
    assert "odd" not in app.tasks


def test_two_functions_of_one_name_are_refused(app: TaskQ) -> None:
    app.task(name="same")(pay)
    app.task(name="same")(pay)
    with pytest.raises(ConfigurationError, match=rf"two tasks are called 'same', here and at {re.escape(__file__)}:\d+; give"):
        app.task(name="same")(strict)
    assert app.tasks["same"].function is pay


def test_a_task_of_no_app_runs_here_and_cannot_be_sent(reusable: ModuleType) -> None:
    assert reusable.double(4) == 8
    for send in (reusable.double.delay, lambda number: reusable.double.s(number).delay()):
        with pytest.raises(NotBound, match=r"tests\.apps\.reusable\.double\(4\) belongs to no app; .*include"):
            send(4)


def test_include_takes_a_modules_own_tasks(app: TaskQ, reusable: ModuleType) -> None:
    app.include("tests.apps.reusable")
    assert dict(app.tasks) == {"tests.apps.reusable.double": reusable.double, "reusable.named": reusable.named}
    assert app.queue_names() == ("default", "special")
    app.include("tests.apps.reusable")
    assert len(app.tasks) == 2
    with pytest.raises(ModuleNotFoundError):
        app.include("tests.apps.no_such_module")


def test_a_module_belongs_to_one_app(app: TaskQ, reusable: ModuleType) -> None:
    app.include("tests.apps.reusable")
    with pytest.raises(ConfigurationError, match="belongs to another app already"):
        TaskQ("other", broker=BROKER).include("tests.apps.reusable")


def test_two_apps_have_tasks_of_their_own(app: TaskQ) -> None:
    other = TaskQ("other", broker=BROKER)
    app.task(name="same")(pay)
    other.task(name="same")(strict)
    assert (app.tasks["same"].function, other.tasks["same"].function) == (pay, strict)
