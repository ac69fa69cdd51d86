"""Preflight: a workflow is checked to its last task, and whatever follows that, before anything of it is sent.

A worker that found out later could only fail the workflow, long after whoever can mend it has looked away.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import chain

from taskq.broker.interface import Check
from taskq.compose import Family
from taskq.errors import ConfigurationError
from taskq.inherit import beginning, handed_down, spread
from taskq.launch import Route, publication_of
from taskq.plan import plan_of
from taskq.step import Step, settled


def check_later(step: Step, family: Family, route: Route, now: float, check: Check) -> None:
    """Check each message that a workflow in order will send once it has begun, but for the arguments, which are not known yet.

    Raises ``ConfigurationError``, naming the task, and what ``check`` raises.
    """
    known: set[str | None] = set()
    for planned in plan_of(step).tasks():
        if planned.id in known:
            raise _twice(planned.id)
        known.add(planned.id)
    for task in _later(step, (known,), begins=True):
        check(publication_of(task, b"", family, route, now))


def _twice(task_id: str | None) -> ConfigurationError:
    return ConfigurationError(f"two tasks of the workflow have the id {task_id!r}; give each one of its own")


def _later(step: Step, known: tuple[AbstractSet[str | None], ...], *, begins: bool) -> Iterator[Step]:
    """The tasks and followers that are not sent at once, with what was said of the wholes that each is part of.

    ``begins``: what is first in the step is sent at once. ``known`` are the ids of what comes before its followers, which have
    others; two followers may have one, since those of a whole are its members', too.
    """
    match step.subtask_type:
        case "chain":
            for number, inner in enumerate(spread(step)):
                yield from _later(inner, known, begins=begins and not number)
        case "group":
            for inner in spread(step):
                yield from _later(inner, known, begins=begins)
        case "chord":
            header = beginning(step, step.header)
            yield from _later(header, known, begins=begins)
            # Where nothing is to be waited for, the body begins; to check it once more costs little.
            yield from _later(handed_down(step, step.body), known, begins=False)
        case _:
            if not begins:
                yield step
            for follower in map(settled, chain(step.following("link"), step.following("link_error"))):
                ids = {planned.id for planned in plan_of(follower).tasks()}
                for before in known:
                    for task_id in before & ids:
                        raise _twice(task_id)
                yield from _later(follower, (*known, ids), begins=False)
