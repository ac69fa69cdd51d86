"""The surroundings of a task's run: what the executor needs of the process that it runs in."""

from __future__ import annotations

from typing import Protocol

from taskq.results.store import Record
from taskq.workers.note import Terms


class Surroundings(Protocol):
    """What the run of a task needs of the process that it runs in."""

    def met(self, task: str, waited: float) -> None:
        """The message is of this task, which is known here, and has waited for so many seconds; below 0: nobody knows."""

    def may_begin(self, begun: Record) -> bool:
        """Have it recorded that the task begins; False if it must not."""

    def is_the_one(self) -> bool:
        """Whether of all copies of a schedule's tick it is this message that may run."""

    def begins(self, begun: Record) -> None:
        """Have it recorded that the task begins, for whoever looks at its workflow."""

    def agree(self, terms: Terms) -> None:
        """The task begins now, under these terms. From here on it may be interrupted."""

    def release(self) -> bool:
        """The task has ended and must not be interrupted any more; returns whether it was terminated."""


class Alone:
    """Surroundings without a supervisor: nobody enforces anything."""

    def met(self, task: str, waited: float) -> None:
        """Nobody counts."""

    def may_begin(self, begun: Record) -> bool:  # noqa: ARG002  # the protocol's signature
        """It may."""
        return True

    def is_the_one(self) -> bool:
        """There is no other."""
        return True

    def begins(self, begun: Record) -> None:
        """Nobody looks."""

    def agree(self, terms: Terms) -> None:
        """Nobody is told."""

    def release(self) -> bool:
        """Nobody terminates anything."""
        return False
