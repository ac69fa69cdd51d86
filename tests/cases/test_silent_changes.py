"""Kind 5: what was accepted, and became something else in silence. Now it is what was said, or it is refused in a sentence.

Here: tasks, from the function and its decorator to the app.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from taskq import Attempt, TaskQ, task
from taskq.errors import ConfigurationError
from taskq.function import same

BROKER = "sqlite:////nowhere/unit.db"


@pytest.fixture
def app() -> TaskQ:
    return TaskQ("silent", broker=BROKER)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Write modules that can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    written: set[str] = set()

    def write(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            written.add(name)
        importlib.invalidate_caches()

    yield write
    for name in written:
        sys.modules.pop(name, None)


def unnamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that lacks functools.wraps."""

    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def test_two_tasks_under_one_decorator_without_wraps_are_refused(app: TaskQ) -> None:
    @app.task
    @unnamed
    def charge() -> None:
        """The first."""

    with pytest.raises(ConfigurationError, match=r"two tasks are called .*unnamed\.wrapper', .*functools\.wraps"):

        @app.task
        @unnamed
        def refund() -> None:
            """Would have run in its place."""

    app.task(name="refund")(unnamed(charge.function))


@pytest.mark.parametrize("kind", ["closure", "default", "keyword default", "mutable", "method", "globals"])
def test_two_tasks_out_of_one_factory_are_refused(app: TaskQ, kind: str) -> None:
    class Shop:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def times(self, number: int) -> int:
            return number * self.factor

    def made(factor: int) -> Callable[..., int]:
        shop = Shop(factor)

        def closing(number: int) -> int:
            return number * factor

        def over_an_object(number: int) -> int:
            return shop.times(number)

        def defaulted(number: int, factor: int = factor) -> int:
            return number * factor

        def keyword(number: int, *, factor: int = factor) -> int:
            return number * factor

        plain = test_two_tasks_out_of_one_factory_are_refused
        ways: dict[str, Callable[..., int]] = {
            "closure": closing,
            "mutable": over_an_object,
            "default": defaulted,
            "keyword default": keyword,
            "method": shop.times,
            "globals": FunctionType(plain.__code__, {"__name__": __name__, "factor": factor}),
        }
        return ways[kind]

    app.task(name="double")(made(2))
    with pytest.raises(ConfigurationError, match="two tasks are called 'double'"):
        app.task(name="double")(made(3))


def test_a_factory_may_make_one_task_twice(app: TaskQ) -> None:
    def made(factor: int) -> Any:
        @app.task(name="countdown")
        def again(number: int) -> int:
            return again(number - factor) if number > 0 else number

        return again

    assert made(2)(5) == made(2)(5) == -1


def test_what_a_factory_keeps_is_compared_without_trusting_its_equality() -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]  # as the objects of many a library

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

    def made(*kept: Any) -> Callable[..., Any]:
        return lambda: kept

    one = Odd()
    assert same(made([one], {"a": one}, (1, "b")), made([one], {"a": one}, (1, "b")))
    assert not same(made([Odd()]), made([Odd()]))
    assert not same(made({"a": 1}), made({"b": 1}))


def test_a_module_that_is_imported_again_makes_the_same_tasks(modules: Callable[..., None]) -> None:
    text = """
import functools
from silent_base import app
def logged(function):
    @functools.wraps(function)
    def wrapper(*args, times=1):
        return function(*args)
    return wrapper
@app.task
def plain(number): return number
@app.task
@logged
@logged
def wrapped(number): return number
@app.task
@functools.lru_cache
def cached(number): return number
"""
    modules(silent_base=f"from taskq import TaskQ\napp = TaskQ('base', broker={BROKER!r})", silent_again=text)
    first = importlib.import_module("silent_again")
    assert importlib.reload(first).plain(1) == 1
    assert set(first.app.tasks) == {"silent_again.plain", "silent_again.wrapped", "silent_again.cached"}


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from silent_base import app
@app.task
def add(a, b): return a + b
if __name__ in ("__main__", "__mp_main__"):
    import {name}
    print(*app.tasks)
"""


@pytest.mark.parametrize(
    ("file", "started", "name"),
    [
        ("tasks.py", ["tasks.py"], "tasks"),
        ("tasks.py", ["-m", "tasks"], "tasks"),
        ("shop/jobs.py", ["-m", "shop.jobs"], "shop.jobs"),
        ("shop/jobs.py", ["shop/jobs.py"], "shop.jobs"),
        ("shop/__main__.py", ["-m", "shop"], "shop.__main__"),
    ],
)
def test_a_task_of_a_script_is_called_as_a_worker_calls_it(tmp_path: Path, file: str, started: list[str], name: str) -> None:
    """Also where the module is imported once more under its own name."""
    (tmp_path / "silent_base.py").write_text(f"from taskq import TaskQ\napp = TaskQ('another', broker={BROKER!r})")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / file).write_text(SCRIPT.format(folder=str(tmp_path), name=name))
    run = subprocess.run([sys.executable, *started], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.split() == [f"{name}.add"], run.stderr


def generator(number: int) -> Iterator[int]:
    yield number


async def async_generator() -> AsyncIterator[int]:
    yield 1


async def later() -> None:
    """Would need a loop."""


@functools.wraps(later)
def wraps_later() -> Any:
    return later()


@contextlib.contextmanager
def lent() -> Iterator[int]:
    yield 1


class Kind:
    def __call__(self) -> None:
        """An object that can be called."""

    def method(self, number: int) -> int:
        return number

    def of_class(cls, number: int) -> int:  # noqa: N805  # what is under a decorator @classmethod
        return number

    @staticmethod
    def static(number: int) -> int:
        return number


class Named:
    """An object that has all that a function has."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = self.__name__ = name


class Later(Named):
    async def __call__(self) -> None:
        """Would need a loop."""


class Generating(Named):
    def __call__(self) -> Iterator[int]:
        yield 1


@task
def made_already() -> None:
    """A task."""


@pytest.mark.parametrize("bind", [False, True])
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (generator, "generator is a generator; .*return a list"),
        (lent, "it wraps a function that is a generator"),
        (async_generator, "async_generator is an async generator"),
        (later, r"later is async; .*asyncio\.run"),
        (wraps_later, r"it wraps a function that is async.*del wrapper\.__wrapped__"),
        (Later("called"), r"called is async; .*asyncio\.run"),
        (Generating("called"), "called is a generator; .*return a list"),
        (functools.update_wrapper(Later("called"), unnamed), "unnamed is async"),
        ("shop.add", "it is a text; a task's name is given as name='shop.add'"),
        (made_already, "<Task .*made_already> is a task already"),
        (functools.partial(later), "it is a partial; write a function"),
        (functools.partial(int, base=2), "it is a partial; write a function"),
        (Kind(), "it is no function"),
        (Kind, "it is a class"),
        (Kind.__dict__["static"], "it is a staticmethod"),
        (classmethod(lambda _: None), "it is a classmethod"),
        (property(lambda _: None), "it is a property"),
        (None, "it is no function"),
        (5, "it is no function"),
        (max, "Python does not know what it takes"),
    ],
)
def test_what_can_be_no_task_is_refused_at_the_decorator(app: TaskQ, function: Any, says: str, bind: bool) -> None:
    makers: list[Any] = [app.task, task]
    for make in makers:
        for decorate in (make, make(bind=bind)) if not bind else (make(bind=bind),):
            with pytest.raises(ConfigurationError, match=says):
                decorate(function)
    assert not app.tasks


def test_a_method_is_refused_and_a_bound_task_may_call_its_attempt_self(app: TaskQ) -> None:
    for function, says in ((Kind.method, "parameter called 'self'.*bind=True"), (Kind.of_class, "it is a method")):
        with pytest.raises(ConfigurationError, match=says):
            app.task(function)
    decorator: Any = app.task
    with pytest.raises(ConfigurationError, match="the attempt is its first argument, and it takes none"):
        decorator(bind=True)(lambda: None)

    @app.task(bind=True)
    def as_in_celery(self: Attempt, number: int) -> int:
        return number

    @app.task
    def open_to_all(**named: int) -> dict[str, int]:
        return named

    assert as_in_celery(5) == 5
    assert as_in_celery.s(5).args == (5,)
    assert open_to_all(self=1) == open_to_all.s(self=1).kwargs == {"self": 1}


def test_functions_that_are_not_written_in_python_can_be_tasks(app: TaskQ) -> None:
    @app.task
    @functools.lru_cache
    def cached(number: int) -> int:
        return number

    assert cached.s(number=1).kwargs == {"number": 1}
    with pytest.raises(TypeError, match="too many"):
        cached.s(1, 2)
    for _ in range(2):
        assert app.task(len)([1]) == 1
        assert app.task(math.sqrt)(4) == 2


def supplies_its_first(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return wrapper


def takes_one(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(order: int) -> Any:
        return function("session", order)

    return wrapper


def test_a_call_is_checked_against_what_the_wrapper_takes(app: TaskQ) -> None:
    def pay(session: str, order: int) -> str:
        return f"{session} {order}"

    made = app.task(name="open")(supplies_its_first(pay))
    assert made.s(1).args == (1,)
    made.s(1).check(0)
    assert made(1) == "session 1"
    exact = app.task(name="exact")(takes_one(pay))
    exact.s(order=1).check(0)
    with pytest.raises(TypeError, match="too many positional"):
        exact.s(1, 2)
    assert [exact.takes(count) for count in (1, 2)] == [True, False]
    assert [made.takes(count) for count in (2, 3)] == [True, False], "an errback of two arguments is not given three"


def test_including_a_module_takes_in_what_it_re_exports(app: TaskQ, modules: Callable[..., None]) -> None:
    modules(
        silent_inner="from taskq import task\n@task\ndef inner(): pass\nsame = inner",
        silent_outer="from silent_inner import inner, same",
        silent_alien=f"from taskq import TaskQ\nalien = TaskQ('alien', broker={BROKER!r})\n@alien.task\ndef foreign(): pass",
        silent_both="from silent_alien import foreign\nfrom taskq import task\n@task\ndef own(): pass",
    )
    app.include("silent_outer", "silent_both")
    app.include("silent_outer", "silent_inner")
    assert set(app.tasks) == {"silent_inner.inner", "silent_both.own"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 5", "no tasks in the module 'silent_bad'"),
        ("from silent_alien import foreign", "no tasks in the module 'silent_bad'"),
        ("import os", "no tasks"),
        (
            "import tests.cases.test_silent_changes as t\nfrom taskq import task\n@t.takes_one\n@task\ndef hidden(): pass",
            r"silent_bad\.hidden is a task within another decorator; put @task on top",
        ),
        ("import silent_app\nfrom taskq import task\n@task\ndef tardy(): pass", "'silent_bad' is being imported right now"),
    ],
)
def test_including_a_module_that_shows_no_task_says_why(modules: Callable[..., None], text: str, says: str) -> None:
    modules(
        silent_bad=text,
        silent_app=f"from taskq import TaskQ\napp = TaskQ('app', broker={BROKER!r})\napp.include('silent_bad')",
        silent_alien=f"from taskq import TaskQ\nalien = TaskQ('alien', broker={BROKER!r})\n@alien.task\ndef foreign(): pass",
    )
    with pytest.raises(ConfigurationError, match=says):
        importlib.import_module("silent_bad" if "silent_app" in text else "silent_app")


@pytest.mark.parametrize("module", [5, None, ["silent_bad"], os])
def test_a_module_is_included_by_its_name(app: TaskQ, module: Any) -> None:
    with pytest.raises(ConfigurationError, match="the name of a module must be a str"):
        app.include(module)
