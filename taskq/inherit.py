"""Inheritance: what is said of a workflow holds for its parts, and what ends in a chord's header is a member of the chord."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from taskq.options import OPTION_NAMES
from taskq.step import CHAIN, CHORD, Step


def spread(step: Step) -> list[Step]:
    """The steps of a chain or a group, with what was said of the whole: to errors listens each, to the end the last."""
    steps = step.steps
    if step.subtask_type == CHAIN:
        steps = [handed_down(step, inner, first=not i, last=i == len(steps) - 1) for i, inner in enumerate(steps)]
    else:
        steps = [handed_down(step, inner) for inner in steps]
    return steps


#: What is said of how a workflow is sent holds for each of its tasks that says nothing else; but it is delayed once.
_WHEN = ("countdown", "eta")
_INHERITED = tuple(OPTION_NAMES - {"task_id", *_WHEN})
_AT_THE_END = ("chord", "group_id", "group_index")


def handed_down(outer: Step, inner: Step, *, first: bool = True, last: bool = True) -> Step:
    """The inner step, with what was said of the whole. ``first`` and ``last``: it begins when the whole does, it ends it."""
    if not outer.options.keys() - {"task_id"}:
        return inner
    options = {name: outer.options[name] for name in _INHERITED if name in outer.options}
    if first and outer.subtask_type != CHORD:
        options.update({name: outer.options[name] for name in _WHEN if name in outer.options})
    if last and "chord" in outer.options:
        options.update({name: outer.options[name] for name in _AT_THE_END if name in outer.options})
    given: dict[str, Any] = {**options, **inner.options}
    for name, meant in (("link_error", True), ("link", last)):
        if meant and (added := outer.following(name)):
            given[name] = [*inner.following(name), *added]
    return msgspec.structs.replace(inner, options=given)


def beginning(chord: Step, header: Step) -> Step:
    """The header of the chord, with what was said of the whole and concerns how it begins."""
    begins = {name: chord.options[name] for name in (*_INHERITED, *_WHEN) if name in chord.options}
    return msgspec.structs.replace(header, options={**begins, **header.options})


def enlisted(header: Step, body: Step, gid: str) -> tuple[Step, int]:
    """The header's members as members of the chord, wherever they end, and how many these are."""
    numbers = iter(range(1 << 62))
    members = [_member(member, body, gid, numbers) for member in header.steps]
    return msgspec.structs.replace(header, kwargs={**header.kwargs, "tasks": members}), next(numbers)


def _member(step: Step, body: Step, gid: str, numbers: Iterator[int]) -> Step:
    """The step, whose end, or whose ends, are members of the chord."""
    match step.subtask_type:
        case "chain":
            *before, last = step.steps
            tasks = [*before, _member(last, body, gid, numbers)]
            return msgspec.structs.replace(step, kwargs={**step.kwargs, "tasks": tasks})
        case "group":
            tasks = [_member(inner, body, gid, numbers) for inner in step.steps]
            return msgspec.structs.replace(step, kwargs={**step.kwargs, "tasks": tasks})
        case "chord":
            kwargs = {**step.kwargs, "body": _member(step.body, body, gid, numbers)}
            return msgspec.structs.replace(step, kwargs=kwargs)
    return step.with_options(chord=body, group_id=gid, group_index=next(numbers))
