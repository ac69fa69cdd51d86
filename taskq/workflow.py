"""Workflows: chains, groups and chords of calls, with Celery's words.

::

    chain(load.s(1), clean.s(), store.s())            one after the other, each with what the one before it returned
    load.s(1) | clean.s() | store.s()                 the same
    group(load.s(n) for n in range(10))               all at once
    chord(group(...), total.s())                      all at once, and then the body, with the list of what they returned
    group(...) | total.s()                            the same

A workflow lives in its messages and, for what it counts, in the result backend; nobody polls, and each end has its effect
when the task's outcome is settled: the next message is confirmed before the last one is acked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, Unpack, overload

from taskq.errors import ConfigurationError
from taskq.options import positional
from taskq.results.group import GroupResult
from taskq.results.handle import AsyncResult
from taskq.signature import Canvas, Chain, FlowOptions, Send, canvas_of, first_sender
from taskq.step import Step, chord_of, ending_as, group_of

R = TypeVar("R")
S = TypeVar("S")


class Group(Canvas[R]):
    """Members that run at once. A group within a group is flat."""

    def __init__(self, members: Sequence[Canvas[R]]) -> None:
        self.members = tuple(map(canvas_of, members))
        self.options = {}

    def __repr__(self) -> str:
        return f"group({', '.join(map(repr, self.members))})"

    def __len__(self) -> int:
        return len(self.members)

    def step(self) -> Step:
        """It as it travels."""
        return group_of([member.step() for member in self.members], **self._plain_options())

    def sender(self) -> Send | None:
        """What sends it."""
        return first_sender(self.members)

    def check(self, given: int) -> None:
        """Each member gets what the group gets."""
        for member in self.members:
            member.check(given)

    def link(self, callback: Canvas[S]) -> Canvas[S]:
        """Refused: a group has many ends."""
        raise ConfigurationError(f"a group has many ends; write chord({self!r}, {callback!r}), or link each member")

    def delay(self, *values: Any) -> GroupResult[R]:
        """Send its members, each with these before its own arguments. Raises as ``Task.delay``."""
        result: GroupResult[R] = self._sent(values)
        return result

    __call__ = delay

    def apply_async(self, args: Sequence[Any] = (), **options: Unpack[FlowOptions]) -> GroupResult[R]:
        """``delay`` with options."""
        return self.clone().set(**options).delay(*positional(self._name(), args))

    def clone(self) -> Self:
        """As of each signature."""
        copy = super().clone()
        copy.members = tuple(member.clone() for member in self.members)
        return copy


class Chord(Canvas[R]):
    """A group, and a body that runs once all of it has ended well, with the list of what its members returned.

    Where a member ends badly (it failed, was revoked, has expired, or is among the dead letters), the body fails with a
    ``ChordError`` once all members have ended, and its errbacks are called.
    """

    def __init__(self, header: Group[Any], body: Canvas[R]) -> None:
        self.header = header
        self.body = canvas_of(body)
        self.options = {}

    def __repr__(self) -> str:
        return f"chord({self.header!r}, {self.body!r})"

    def step(self) -> Step:
        """It as it travels."""
        options = self._plain_options()
        task_id = options.pop("task_id", None)
        return ending_as(chord_of(self.header.step(), self.body.step(), **options), task_id)

    def sender(self) -> Send | None:
        """What sends it."""
        return first_sender((*self.header.members, self.body))

    def check(self, given: int) -> None:
        """The body gets one list."""
        self.header.check(given)
        self.body.check(1)

    def delay(self, *values: Any) -> AsyncResult[R]:
        """Send its members, each with these before its own arguments; returns the result of the body.

        Raises as ``Task.delay``, and ``UnsupportedFeature`` where no result backend counts members.
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
        copy.header, copy.body = self.header.clone(), self.body.clone()
        return copy


class Header(Generic[R]):
    """A chord that lacks its body: ``chord(header)(body)`` sends it, as in Celery."""

    def __init__(self, header: Group[Any]) -> None:
        self.header = header

    def __call__(self, body: Canvas[S], **options: Unpack[FlowOptions]) -> AsyncResult[S]:
        """Send the chord with this body."""
        return Chord(self.header, body).apply_async(**options)


def chain(*steps: Canvas[Any] | Iterable[Canvas[Any]]) -> Chain[Any]:
    """Steps, one after the other; also written with ``|``, which keeps the type of the last one."""
    return Chain(list(_canvases(steps)))


def group(*members: Canvas[R] | Iterable[Canvas[R]]) -> Group[R]:
    """Members that run at once: as arguments, or as one iterable."""
    return Group(list(_canvases(members)))


@overload
def chord(header: Group[Any] | Iterable[Canvas[Any]]) -> Header[Any]: ...
@overload
def chord(header: Group[Any] | Iterable[Canvas[Any]], body: Canvas[R]) -> Chord[R]: ...
def chord(header: Group[Any] | Iterable[Canvas[Any]], body: Canvas[Any] | None = None) -> Header[Any] | Chord[Any]:
    """A group, or its members, and the body that runs with the list of what they returned."""
    members = header if isinstance(header, Group) else group(header)
    return Header(members) if body is None else Chord(members, body)


def _canvases(given: Iterable[Canvas[R] | Iterable[Canvas[R]]]) -> Iterator[Canvas[R]]:
    for item in given:
        if isinstance(item, Canvas) or not isinstance(item, Iterable):
            yield canvas_of(item)
        else:
            yield from map(canvas_of, item)


def handle_of(step: Step, result: Callable[[str], AsyncResult[Any]], *, ignored: bool = False) -> Any:
    """The handle on the result of a step that is in order, made of those of its tasks; ``ignored`` unless they say more."""
    ignored = bool(step.options.get("ignore_result", ignored))
    match step.subtask_type:
        case "chain":
            handle: Any = None
            for inner in step.steps:
                handle = _after(handle, handle_of(inner, result, ignored=ignored))
            return handle
        case "group":
            members = [handle_of(member, result, ignored=ignored) for member in step.steps]
            return GroupResult(str(step.id), [leaf for member in members for leaf in _leaves(member)])
        case "chord":
            header, body = (handle_of(inner, result, ignored=ignored) for inner in (step.header, step.body))
            return _after(header, body)
    handle = result(str(step.id))
    handle.ignored = ignored
    return handle


def _after(parent: Any, handle: Any) -> Any:
    """The handle, which remembers what came before it."""
    if parent is not None:
        first = handle
        while first.parent is not None:
            first = first.parent
        first.parent = parent
    return handle


def _leaves(handle: Any) -> Iterable[AsyncResult[Any]]:
    return handle.results if isinstance(handle, GroupResult) else (handle,)
