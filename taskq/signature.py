"""A signature: a call that has not been sent yet. Signatures combine into workflows; see ``taskq.workflow``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Never, Protocol, Self, TypeVar, Unpack

from taskq.checks import shown
from taskq.errors import ConfigurationError, NotBound, WrongType
from taskq.options import FLOW_OPTION_NAMES, FOLLOWERS, SendOptions, checked, keywords, positional, unknown_option
from taskq.results.group import GroupResult
from taskq.results.handle import AsyncResult
from taskq.serialization import plain_arguments
from taskq.step import Step, chain_of, ending_as, has_end

R = TypeVar("R")
S = TypeVar("S")


class FlowOptions(SendOptions, total=False):
    """``SendOptions``, and what follows.

    ``link``: these are called with the result; ``link_error``: these are called with the id of the task that failed.
    """

    link: Sequence[Canvas[Any]] | Canvas[Any] | None
    link_error: Sequence[Canvas[Any]] | Canvas[Any] | None


class Send(Protocol):
    """Sends calls and workflows, and returns their results in order."""

    def __call__(self, canvases: Sequence[Canvas[Any]], values: Sequence[Any] = (), /) -> list[Any]:
        """Send them; the first tasks of each get ``values`` before their own arguments."""


class Canvas(Generic[R]):
    """What can be part of a workflow: a call, complete or not, or a workflow. ``options`` say how it is sent, and what follows.

    As in Celery, ``set``, ``link`` and ``on_error`` change it in place; ``clone`` makes a copy.
    """

    options: dict[str, Any]

    def set(self, *unnamed: Never, **options: Unpack[FlowOptions]) -> Self:
        """Have it sent with these options too; returns itself. Raises ``ConfigurationError`` for a name that is none of theirs.

        Those of a workflow hold for all its tasks that say nothing else; a countdown or an ETA delays its beginning.
        """
        if unnamed:
            raise WrongType(f"{self._name()}: options have names, such as set(queue='mail'); {shown(unnamed[0])} has none")
        if unknown := options.keys() - FLOW_OPTION_NAMES:
            raise ConfigurationError(f"{self._name()}: {unknown_option(min(unknown))}")
        self.options.update(options)
        return self

    def link(self, callback: Canvas[S]) -> Canvas[S]:
        """Have ``callback`` called with the result; returns ``callback``."""
        self._append("link", callback)
        return callback

    def link_error(self, errback: Canvas[S]) -> Canvas[S]:
        """Have ``errback`` called with the id of the task that failed; returns ``errback``.

        One that takes three arguments gets request, exception and traceback instead, as in Celery. In a chain it listens to
        each step, in a chord to the body, which fails when a member does.
        """
        self._append("link_error", errback)
        return errback

    def on_error(self, errback: Canvas[Any]) -> Self:
        """As ``link_error``, but returns itself."""
        self.link_error(errback)
        return self

    def clone(self) -> Self:
        """A copy that can be changed for itself, and so can what it consists of and what follows it; arguments are shared."""
        copy = object.__new__(type(self))
        try:
            copy.__dict__.update(self.__dict__, options={name: _copied(value) for name, value in self.options.items()})
        except RecursionError:
            raise endless() from None
        return copy

    def step(self) -> Step:
        """It as it travels; raises ``ArgumentRefused`` for arguments that JSON cannot carry."""
        raise NotImplementedError

    def sender(self) -> Send | None:
        """What sends it: that of the first of its tasks which belongs to an app."""
        raise NotImplementedError

    def check(self, given: int) -> None:
        """Raise ``TypeError`` if a task of it would not take its arguments, with so many others before them."""
        raise NotImplementedError

    def __or__(self, after: Canvas[S]) -> Chain[S]:
        """A chain of the two."""
        ends = [canvas.steps if isinstance(canvas, Chain) and not canvas.options else (canvas,) for canvas in (self, after)]
        return Chain([*ends[0], *ends[1]])

    def __ror__(self, before: Any) -> Chain[R]:
        """Of what is no signature: refused in a sentence."""
        return Chain([canvas_of(before), self])

    def _append(self, option: str, follower: Canvas[Any]) -> None:
        self.options[option] = [*_listed(self.options.get(option)), canvas_of(follower)]

    def _name(self) -> str:
        """It as an error names it."""
        return f"{type(self).__name__.lower()} {shown(self)}"

    def _plain_options(self) -> dict[str, Any]:
        """The options as they travel; raises ``ConfigurationError``, naming whose option it is, and which."""
        try:
            plain = checked(self.options)
            followers = {name: [canvas_of(canvas) for canvas in _listed(self.options.get(name))] for name in FOLLOWERS}
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._name()}: {error}") from None
        plain = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in plain.items()}
        return plain | {name: [canvas.step() for canvas in canvases] for name, canvases in followers.items() if canvases}

    def _sent(self, values: Sequence[Any] = ()) -> Any:
        try:
            self.check(len(values))
            if (send := self.sender()) is not None:
                return send([self], values)[0]
            if not has_end(self.step()):
                return GroupResult.of_nothing()
        except RecursionError:
            raise endless() from None
        raise NotBound(f"{self!r} belongs to no app; take its module in with app.include(...)")


class Partial(Canvas[R]):
    """A call that may lack its first arguments: a later step of a workflow, which gets what the step before it returns."""

    def __init__(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        parameters: tuple[str, ...] = (),
        accepts: Callable[..., Any] | None = None,
        send: Send | None = None,
    ) -> None:
        self.task = task
        self.args = positional(task, args)
        self.kwargs = keywords(task, kwargs)
        self.options = dict(options or {})
        self.immutable = immutable
        self.parameters = parameters
        self.accepts = accepts
        self.send = send

    def __repr__(self) -> str:
        arguments = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.task}({', '.join(arguments)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partial) and self._value() == other._value()

    __hash__ = None  # type: ignore[assignment]  # it can be changed in place

    def _value(self) -> tuple[Any, ...]:
        return self.task, list(self.args), dict(self.kwargs), self.options, self.immutable

    def _name(self) -> str:
        return f"task {shown(self.task)}"

    def step(self) -> Step:
        """It as it travels."""
        args, kwargs = plain_arguments(self.task, self.args, self.kwargs, self.parameters)
        return Step(task=self.task, args=args, kwargs=kwargs, options=self._plain_options(), immutable=self.immutable)

    def sender(self) -> Send | None:
        """What sends it."""
        return self.send

    def check(self, given: int) -> None:
        """The task's function says what it takes."""
        if self.accepts is None:
            return
        try:
            self.accepts(*[None] * (0 if self.immutable else given), *self.args, **self.kwargs)
        except TypeError as error:
            raise TypeError(f"{self.task}(): {error}") from None

    @property
    def follows(self) -> bool:
        """Whether anything follows it, so that it is more than a call."""
        return bool(self.options.get("link") or self.options.get("link_error"))


class Signature(Partial[R]):
    """A call that has not been sent: a task's name, its arguments and how to send it."""

    def delay(self) -> AsyncResult[R]:
        """Send the call; see ``Task.delay``."""
        result: AsyncResult[R] = self._sent()
        return result

    def apply_async(self, **options: Unpack[FlowOptions]) -> AsyncResult[R]:
        """Send the call with these options too."""
        return self.clone().set(**options).delay()


class Chain(Canvas[R]):
    """Steps, one after the other. Its result is that of the last one."""

    def __init__(self, steps: Sequence[Canvas[Any]]) -> None:
        if not steps:
            raise ConfigurationError("a chain needs at least one step")
        self.steps = tuple(map(canvas_of, steps))
        self.options = {}

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.steps))

    def step(self) -> Step:
        """It as it travels."""
        options = self._plain_options()
        task_id = options.pop("task_id", None)
        return ending_as(chain_of([step.step() for step in self.steps], **options), task_id)

    def sender(self) -> Send | None:
        """What sends it."""
        return first_sender(self.steps)

    def check(self, given: int) -> None:
        """The first step gets what the chain gets, and each other one a result."""
        for number, step in enumerate(self.steps):
            step.check(1 if number else given)

    def delay(self, *values: Any) -> AsyncResult[R]:
        """Send its first step, with these before its own arguments; returns the result of the last one.

        Raises as ``Task.delay``.
        """
        result: AsyncResult[R] = self._sent(values)
        return result

    __call__ = delay

    def apply_async(self, args: Sequence[Any] = (), **options: Unpack[FlowOptions]) -> AsyncResult[R]:
        """``delay`` with options."""
        return self.clone().set(**options).delay(*positional(self._name(), args))

    def clone(self) -> Self:
        """As of each signature."""
        copy = super().clone()
        copy.steps = tuple(step.clone() for step in self.steps)
        return copy


def canvas_of(value: Any) -> Canvas[Any]:
    """What can be part of a workflow; raises ``ConfigurationError`` for what can't."""
    if isinstance(value, Canvas):
        return value
    raise no_canvas(value)


def no_canvas(value: Any) -> ConfigurationError:
    """The error that says that this can't be part of a workflow."""
    way_out = (
        f"write {getattr(value, '__name__', 'task')}.s(…)" if callable(getattr(value, "s", None)) else "make one with task.s(…)"
    )
    return ConfigurationError(f"{shown(value)} is no signature, and so no part of a workflow; {way_out}")


def canvases_of(values: Any) -> Iterator[Canvas[Any]]:
    """What is to be sent, one by one; raises ``ConfigurationError`` for what is no iterable of signatures."""
    if isinstance(values, Canvas) or not isinstance(values, Iterable):
        raise WrongType(f"what is sent must be a list of signatures, such as [task.s(1), task.s(2)], not {shown(values)}")
    return map(canvas_of, values)


def endless() -> ConfigurationError:
    """The error that says that a workflow has no end."""
    return ConfigurationError("the workflow is nested too deeply, or something in it follows itself")


def _listed(value: Any) -> list[Canvas[Any]]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _copied(value: Any) -> Any:
    """The option for the copy of a signature."""
    match value:
        case Canvas():
            return value.clone()
        case list() | tuple():
            return [_copied(item) for item in value]
        case dict():
            return dict(value)
    return value


def first_sender(canvases: Iterable[Canvas[Any]]) -> Send | None:
    """What sends the first of these that belongs to an app."""
    return next((send for canvas in canvases if (send := canvas.sender()) is not None), None)
