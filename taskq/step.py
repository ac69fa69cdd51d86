"""Steps: a workflow as it travels inside messages, in Celery's form of signatures, and how its tree is brought into order.

A step is a task, or a chain, a group or a chord of steps. It is plain JSON through and through. What follows a task stands in
its message's *embed*, the third part of the body: callbacks, errbacks, the rest of the chain (last step first), and the body of
the chord that it is a member of. The format is Celery's (``celery.canvas``, message protocol 2).
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from taskq.checks import is_text, shown
from taskq.decoding import UNREADABLE, unreadable
from taskq.errors import MessageError
from taskq.options import LONGEST_ID

TASK, CHAIN, GROUP, CHORD = None, "chain", "group", "chord"


#: Makes an id up.
Ids = Callable[[], str]
_NAMESPACE = uuid.UUID("6f1d0f0e-5b0a-4f43-9c39-6a4b1c9c7f6e")


def _new_id() -> str:
    return str(uuid.uuid4())


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step that has not been sent. ``options`` hold how it is sent, its ids, and what follows it.

    ``immutable``: takes no results of what comes before it.
    """

    task: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: dict[str, Any] = {}
    subtask_type: str | None = None
    immutable: bool = False

    @property
    def id(self) -> str | None:
        """The id of the task, or of the group."""
        return self.options.get("task_id")

    @property
    def steps(self) -> list[Step]:
        """The steps of a chain or a group."""
        return steps_of(self.kwargs.get("tasks"))

    @property
    def header(self) -> Step:
        """The group that a chord's body waits for."""
        match self.kwargs.get("header"):
            case list() as members:
                return group_of(steps_of(members))
            case header:
                return step_of(header)

    @property
    def body(self) -> Step:
        """The body of a chord."""
        return step_of(self.kwargs.get("body"))

    def following(self, option: str) -> list[Step]:
        """The steps in this option: ``link``, ``link_error`` or ``chain``."""
        return steps_of(self.options.get(option))

    def with_options(self, **options: Any) -> Step:
        """A copy with these options too; steps among them are written out."""
        return msgspec.structs.replace(self, options={**self.options, **options})


class Embed(msgspec.Struct, frozen=True):
    """What a message says of what follows its task."""

    callbacks: list[Step] | None = None
    errbacks: list[Step] | None = None
    chain: list[Step] | None = None
    chord: Step | None = None


NOTHING_FOLLOWS = Embed()


def step_of(value: Any) -> Step:
    """The step in these JSON values; raises ``MessageError``."""
    if isinstance(value, Step):
        return value
    try:
        step = msgspec.convert(value, Step)
    except UNREADABLE as error:
        raise unreadable("a step of a workflow", error) from None
    if step.subtask_type is None and step.task in _KINDS:
        return msgspec.structs.replace(step, subtask_type=_KINDS[step.task])
    return step


def steps_of(value: Any) -> list[Step]:
    """The steps in a list, or in one place of a list; raises ``MessageError``."""
    if value is None:
        return []
    return [step_of(item) for item in (value if isinstance(value, (list, tuple)) else [value])]


_KINDS: Mapping[str, str] = {"celery.chain": CHAIN, "celery.group": GROUP, "celery.chord": CHORD}


def ending_as(step: Step, task_id: Any) -> Step:
    """The step, whose end has this id, if there is one to give: what was asked of a workflow is asked of what it comes to."""
    if task_id is None:
        return step
    match step.subtask_type:
        case "chain":
            *before, last = step.steps
            return _rebuilt(step, tasks=[*before, ending_as(last, task_id)])
        case "chord":
            return _rebuilt(step, body=ending_as(step.body, task_id))
    return step.with_options(task_id=task_id)


def has_end(step: Step) -> bool:
    """Whether there is a task in it to wait for: there is none in an empty group, nor in what consists of them."""
    match step.subtask_type:
        case "chain" | "group":
            return any(map(has_end, step.steps))
        case "chord":
            return has_end(step.body) or has_end(step.header)
    return True


def has_chord(step: Step) -> bool:
    """Whether a chord is anywhere in a step that is in order."""
    return step.subtask_type == CHORD or any(map(has_chord, step.steps))


def chain_of(steps: Sequence[Step], **options: Any) -> Step:
    """A chain of these."""
    return Step(task="celery.chain", kwargs={"tasks": list(steps)}, options=options, subtask_type=CHAIN)


def group_of(members: Sequence[Step], **options: Any) -> Step:
    """A group of these."""
    return Step(task="celery.group", kwargs={"tasks": list(members)}, options=options, subtask_type=GROUP)


def chord_of(header: Step, body: Step, **options: Any) -> Step:
    """A chord of these."""
    kwargs = {"kwargs": {}, "header": header, "body": body}
    return Step(task="celery.chord", kwargs=kwargs, options=options, subtask_type=CHORD)


def settled(step: Step, ids: Ids = _new_id) -> Step:
    """The step in order: everything has its id, and each workflow is written in one way. Doing it twice changes nothing.

    Chains within chains and groups within groups are flat, a group that something follows in a chain is a chord, and neither a
    chain nor a chord ends with an empty group. Raises ``MessageError`` for what cannot be brought into order.
    """
    try:
        return _settled(step, ids)
    except UNREADABLE as error:
        raise unreadable("the workflow", error) from None


def _settled(step: Step, ids: Ids) -> Step:
    match step.subtask_type:
        case "chain":
            return _settled_chain(step, ids)
        case "group":
            gid = _id_of(step) or ids()
            members = [_settled(member, ids) for member in _flat(step, GROUP)]
            return _rebuilt(step, tasks=[_placed(member, gid, i) for i, member in enumerate(members)]).with_options(task_id=gid)
        case "chord":
            gid = _id_of(step) or _id_of(step.header) or ids()
            header, body = _settled(step.header.with_options(task_id=gid), ids), _settled(step.body, ids)
            return _rebuilt(step, header=header, body=body).with_options(task_id=gid) if has_end(body) else header
    return step if _id_of(step) else step.with_options(task_id=ids())


def _id_of(step: Step) -> str | None:
    """The step's id, if it has one; raises ``MessageError`` for what is none."""
    task_id: Any = step.id
    if task_id and not (is_text(task_id) and len(task_id.encode()) <= LONGEST_ID):
        raise MessageError(f"{shown(task_id)} is no id of task {shown(step.task)}")
    return task_id or None


def derived(owner: str, purpose: str) -> Ids:
    """Ids for what follows a task, which are the same whenever they are made."""
    numbers = itertools.count()
    return lambda: str(uuid.uuid5(_NAMESPACE, f"{owner} {purpose} {next(numbers)}"))


def _settled_chain(chain: Step, ids: Ids) -> Step:
    steps = list(_flat(chain, CHAIN))
    while len(steps) > 1 and not has_end(steps[-1]):
        steps.pop()
    ordered: list[Step] = []
    for step in steps:
        before = ordered[-1] if ordered else None
        if before is not None and before.subtask_type == GROUP:
            ordered[-1] = chord_of(before, step)
        else:
            ordered.append(step)
    ordered = [_settled(step, ids) for step in ordered]
    if not ordered:
        raise MessageError("a chain of nothing")
    return _rebuilt(chain, tasks=ordered)


def _placed(member: Step, gid: str, index: int) -> Step:
    """The member, which knows its group; that of a chord knows it already."""
    return member if member.subtask_type or "chord" in member.options else member.with_options(group_id=gid, group_index=index)


def _flat(step: Step, kind: str) -> Iterator[Step]:
    """The steps of a chain or group and of those within it; one of which something was said stays a whole."""
    for inner in step.steps:
        if inner.subtask_type == kind and not (inner.options.keys() - {"task_id", "group_id", "group_index"}):
            yield from _flat(inner, kind)
        else:
            yield inner


def _rebuilt(step: Step, **kwargs: Any) -> Step:
    return msgspec.structs.replace(step, kwargs={**step.kwargs, **kwargs})
