"""A task: a function that can also be sent away. It knows how to be sent, but no app and no broker."""

from __future__ import annotations

import functools
import importlib
import inspect
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from types import FunctionType
from typing import Any, Concatenate, Generic, Literal, Never, ParamSpec, TypeVar, Unpack, get_args, overload

import msgspec

from taskq import checks
from taskq.attempt import Attempt, current_attempt
from taskq.checks import shown
from taskq.errors import ConfigurationError, WrongType
from taskq.function import check as check_function
from taskq.function import default_name, most_positional, positional, same, takes
from taskq.options import SendOptions, checked, time_limits
from taskq.options import positional as positional_arguments
from taskq.results.handle import AsyncResult
from taskq.retry import RetryOptions, policy_of
from taskq.signature import FlowOptions, Partial, Send, Signature, no_canvas
from taskq.step import Step
from taskq.workflow import Group

P = ParamSpec("P")
R = TypeVar("R")


#: Whether a task whose process died, or was killed at the time limit, runs again or ends as failed.
Afterwards = Literal["retry", "fail"]


class TaskOptions(RetryOptions, total=False):
    """What a task's decorator may say: its name, how its calls are sent unless the call says otherwise, and how they may end.

    ``acks_late=False``: never run it twice; what becomes of it when its process dies is then unknown, and it ends as lost.
    ``expires``: seconds, from the call on, after which it does not begin any more.
    ``time_limit`` and ``soft_time_limit``: seconds until its process is killed, or ``SoftTimeLimitExceeded`` is raised in it.
    ``on_worker_lost`` and ``on_timeout``: whether it runs again after a crash and after its time limit.
    """

    name: str | None
    queue: str | None
    priority: int | None
    expires: float | timedelta | None
    ignore_result: bool | None
    acks_late: bool
    time_limit: float | timedelta | None
    soft_time_limit: float | timedelta | None
    on_worker_lost: Afterwards
    on_timeout: Afterwards


OPTION_NAMES = frozenset({"bind", *TaskOptions.__annotations__})


class Task(Generic[P, R]):
    """A function that runs here when called and elsewhere when sent.

    Made by ``@app.task`` or ``@task``. ``delay`` and ``apply_async`` need an app: tasks made by ``@task`` get theirs when
    ``app.include`` takes their module in.
    """

    def __init__(self, function: Callable[..., R], options: Mapping[str, Any]) -> None:
        if unknown := options.keys() - OPTION_NAMES:
            raise ConfigurationError(f"unknown task option {min(unknown)!r}; there are {', '.join(sorted(OPTION_NAMES))}")
        if isinstance(function, Task):
            raise ConfigurationError(f"{function!r} is a task already; decorate it once")
        self.bind = checks.truth("bind", options.get("bind", False))
        check_function(function, bind=self.bind)
        functools.update_wrapper(self, function)
        self.function = function
        name = options.get("name")
        self.name = default_name(function) if name is None else checks.text("the name of a task", name)
        self._read_options(options)
        self.send: Send | None = None
        self._signature = takes(function, bind=self.bind)
        self._parameters = positional(self._signature.parameters.values())

    def _read_options(self, options: Mapping[str, Any]) -> None:
        """Take in how calls are sent and, for the worker that runs them, how attempts may end."""
        try:
            if options.get("expires") is not None:
                checks.seconds("expires", options["expires"], above=0.0)
            sent: Any = checked({name: options.get(name) for name in ("queue", "priority", "expires", "ignore_result")})
            self.defaults: SendOptions = sent
            self.retry_policy = policy_of(options)
            self.time_limit, self.soft_time_limit = time_limits(options)
            self.on_worker_lost = _afterwards(options, "on_worker_lost", "retry")
            self.on_timeout = _afterwards(options, "on_timeout", "fail")
            self.acks_late = _acks_late(options)
        except ConfigurationError as error:
            raise ConfigurationError(f"task {self.name!r}: {error}") from None

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        if not self.bind:
            return self.function(*args, **kwargs)
        return self.function(self._attempt(), *args, **kwargs)

    def _attempt(self) -> Attempt:
        attempt = current_attempt()
        if attempt is None:
            return Attempt(id=str(uuid.uuid4()), task=self.name, retry_policy=self.retry_policy, called_directly=True)
        if attempt.task != self.name:
            # Called by another task that runs: what it raises is for that one to handle.
            return msgspec.structs.replace(attempt, retry_policy=self.retry_policy, called_directly=True)
        return attempt

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send the call; returns once the broker has taken responsibility for it.

        Raises ``TypeError`` for arguments that the function does not take or JSON cannot carry, ``BrokerError`` if the broker
        did not confirm within ``publish_timeout`` seconds.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[FlowOptions]
    ) -> AsyncResult[R]:
        """``delay`` with options: see ``FlowOptions`` for what they mean."""
        return self._call(args, kwargs, options).delay()

    @overload
    def s(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
    @overload
    def s(self, /, *args: Any, **kwargs: Any) -> Partial[R]: ...
    def s(self, /, *args: Any, **kwargs: Any) -> Any:
        """The call as a value, to be sent later, or to be a step of a workflow, where results come before these arguments.

        Raises ``TypeError`` for arguments that the function can't take, whatever comes before them.
        """
        return self.signature(args, kwargs)

    def si(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """The call as a value that takes no results of what comes before it in a workflow."""
        return self.signature(args, kwargs, immutable=True)

    def signature(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Unpack[FlowOptions],
    ) -> Signature[R]:
        """``s`` and ``si`` with options."""
        signature = self._call(args, kwargs, options, immutable=immutable)
        try:
            (self._signature.bind if immutable else self._signature.bind_partial)(*signature.args, **signature.kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None
        return signature

    def map(self, items: Iterable[Any]) -> Signature[list[R]]:
        """One task that calls this one with each item in turn, and returns the list of the results."""
        return self._mapped("celery.map", list(_iterable(f"the items for task {self.name!r}", items)))

    def starmap(self, items: Iterable[Iterable[Any]]) -> Signature[list[R]]:
        """As ``map``; each item holds all arguments of a call."""
        return self._mapped("celery.starmap", self._rows(items))

    def chunks(self, items: Iterable[Iterable[Any]], size: int) -> Group[list[R]]:
        """A group of ``starmap``, each with ``size`` items."""
        if type(size) is not int or size < 1:
            raise ConfigurationError(f"the size of a chunk must be a whole number from 1, not {shown(size)}")
        rows = self._rows(items)
        return Group([self.starmap(rows[start : start + size]) for start in range(0, len(rows), size)])

    def __or__(self, _: Any) -> Never:
        """Refused: a task is no signature."""
        raise no_canvas(self)

    def takes(self, count: int) -> bool:
        """Whether the function can take so many positional arguments."""
        return count <= most_positional(self.function, bind=self.bind)

    def differs_in(self, other: Task[..., Any]) -> list[str]:
        """The options of which the two say different things. Of a module that was imported twice, they say the same."""
        mine, theirs = self._said(), other._said()
        return sorted(name for name in mine.keys() | theirs.keys() if not same(mine.get(name), theirs.get(name)))

    def _said(self) -> dict[str, Any]:
        """The options as they were understood; classes by their names, since each import of a module makes its own."""
        policy = {field.name: getattr(self.retry_policy, field.name) for field in fields(self.retry_policy)}
        for name in ("autoretry_for", "dont_autoretry_for"):
            policy[name] = [f"{kind.__module__}.{kind.__qualname__}" for kind in policy[name]]
        own = ("bind", "acks_late", "time_limit", "soft_time_limit", "on_worker_lost", "on_timeout")
        return {**self.defaults, **policy, **{name: getattr(self, name) for name in own}}

    def _rows(self, items: Any) -> list[list[Any]]:
        """The arguments of each call."""
        what = f"the arguments of each call of task {self.name!r}"
        given = _iterable(f"the items for task {self.name!r}", items)
        return [list(positional_arguments(self.name, _iterable(what, item))) for item in given]

    def _mapped(self, by: str, items: list[Any]) -> Signature[list[R]]:
        called = msgspec.to_builtins(Step(task=self.name))
        return Signature(by, (), {"task": called, "it": items}, self._defaults(), send=self.send)

    def _defaults(self) -> dict[str, Any]:
        return {**self.defaults}

    def _call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: Mapping[str, Any], *, immutable: bool = False
    ) -> Signature[R]:
        given = {name: value for name, value in options.items() if value is not None}
        return Signature(
            self.name,
            args,
            kwargs,
            {**self._defaults(), **given},
            immutable=immutable,
            parameters=self._parameters,
            accepts=self._signature.bind,
            send=self.send,
        )


def router(tasks: Mapping[str, Task[..., Any]], default_queue: str) -> Callable[[str], str]:
    """Tells the queue of a task by its name, where the call names none."""

    def route(name: str) -> str:
        task = tasks.get(name)
        return (task.defaults.get("queue") if task is not None else None) or default_queue

    return route


def tasks_in(name: str) -> list[Task[..., Any]]:
    """Import the module and return the tasks that it holds, wherever they were made.

    Raises ``ConfigurationError`` where it can't hold them all yet, and for tasks that another decorator hides.
    """
    module = importlib.import_module(name)
    if getattr(module.__spec__, "_initializing", False):
        raise ConfigurationError(
            f"the module {name!r} is being imported right now, and that has led here, so its tasks are not made yet; import the"
            " application's module first, or have this one not import the application: @taskq.task needs none"
        )
    values = list(vars(module).items())
    for attribute, value in values:
        inner = inspect.unwrap(value, stop=_is_task) if isinstance(value, FunctionType) else None
        if isinstance(inner, Task) and inner.send is None:
            raise ConfigurationError(f"{name}.{attribute} is a task within another decorator; put @task on top of the others")
    return [value for _, value in values if isinstance(value, Task)]


def decorated(decorate: Callable[[Callable[..., Any]], Task[..., Any]], given: tuple[Any, ...]) -> Any:
    """The task, or the decorator that makes it where only options were given."""
    if len(given) > 1:
        raise WrongType(f"one function is made a task at a time, not {len(given)}; options have names, such as queue='mail'")
    return decorate(*given) if given else decorate


def _iterable(what: str, value: Any) -> Iterable[Any]:
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(value, Iterable):
        raise WrongType(f"{what} must be a list, not {shown(value)}")
    return value


def _is_task(value: Any) -> bool:
    return isinstance(value, Task)


def _acks_late(options: Mapping[str, Any]) -> bool:
    value = checks.truth("acks_late", options.get("acks_late", True))
    for name in ("on_worker_lost", "on_timeout"):
        if not value and options.get(name) == "retry":
            raise ConfigurationError(f"acks_late=False means that it never runs twice, so {name} cannot be 'retry'")
    return value


def _afterwards(options: Mapping[str, Any], name: str, default: Afterwards) -> Afterwards:
    value: Afterwards = options.get(name, default)
    if value not in (choices := get_args(Afterwards)):
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(*, bind: Literal[False] = False, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...
@overload
def task(
    *, bind: Literal[True], **options: Unpack[TaskOptions]
) -> Callable[[Callable[Concatenate[Attempt, P], R]], Task[P, R]]: ...
def task(*function: Any, **options: Any) -> Any:
    """Make a task that belongs to no app yet: for reusable modules. ``app.include("its.module")`` takes it in."""

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        return Task(function, options)

    return decorated(decorate, function)
