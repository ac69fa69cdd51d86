"""Preflight: a workflow is checked to its last task, and whatever follows that, before anything of it is sent.

A worker that found out later could only fail the workflow, long after whoever can mend it has looked away.
"""

from __future__ import annotations

from collections.abc import Iterator
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
            raise ConfigurationError(f"two tasks of the workflow have the id {planned.id!r}; give each one of its own")
        known.add(planned.id)
    for task in _later(step, begins=True):
        check(publication_of(task, b"", family, route, now))


def _later(step: Step, *, begins: bool) -> Iterator[Step]:
    """The tasks and followers that are not sent at once, with what was said of the wholes that each is part of.

    ``begins``: what is first in the step is sent at once.
    """
    match step.subtask_type:
        case "chain":
            for number, inner in enumerate(spread(step)):
                yield from _later(inner, begins=begins and not number)
        case "group":
            for inner in spread(step):
                yield from _later(inner, begins=begins)
        case "chord":
            header = beginning(step, step.header)
            yield from _later(header, begins=begins)
            # Where nothing is to be waited for, the body begins; to check it once more costs little.
            yield from _later(handed_down(step, step.body), begins=False)
        case _:
            if not begins:
                yield step
            for follower in chain(step.following("link"), step.following("link_error")):
                yield from _later(settled(follower), begins=False)
