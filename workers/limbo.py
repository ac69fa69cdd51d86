"""Limbo: what is known of deliveries whose connection broke, until the broker hands their messages out again.

What still runs goes on as an orphan and takes over the new delivery when it comes; an outcome that could not take effect waits
for its message; and what had not begun is known to be innocent of whatever broke the connection.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import NamedTuple

from taskq.broker.interface import Delivery
from taskq.workers.outcome import Outcome

#: How long it is remembered what became of a message that does not come back: another worker has had it then. In seconds.
REMEMBERED = 600.0


class Return(enum.Enum):
    """What a message is that came back: one that still runs here, one that had not begun here, or somebody else's."""

    RUNNING = enum.auto()
    UNBEGUN = enum.auto()
    STRANGER = enum.auto()


class Ended(NamedTuple):
    """An outcome that waits for its message since that moment; ``breaks`` is what its settlement said of them."""

    outcome: Outcome
    breaks: int
    since: float


class Limbo:
    """Remembers by task id; ``identify`` reads it out of a delivery's properties.

    Nothing is forgotten while there is no connection, and for ``REMEMBERED`` seconds from ``connected`` on: only then can it be
    asked for.
    """

    def __init__(self, identify: Callable[[bytes], str | None]) -> None:
        self._identify = identify
        self._orphans: dict[str, Delivery] = {}
        self._ends: dict[str, Ended] = {}
        self._unbegun: dict[str, float] = {}
        self._forget_from = 0.0

    def connected(self, now: float) -> None:
        """There is a connection again, and the messages begin to come back."""
        self._forget_from = now + REMEMBERED

    def orphan(self, delivery: Delivery) -> None:
        """The delivery lies with a child; it can't be acked any more."""
        delivery.tag = None
        if task_id := self._identify(delivery.properties):
            self._orphans[task_id] = delivery

    def unbegun(self, delivery: Delivery) -> None:
        """The delivery had not begun here, and the broker will deliver its message again."""
        delivery.tag = None
        if task_id := self._identify(delivery.properties):
            self._orphans.pop(task_id, None)
            self._unbegun[task_id] = time.monotonic()

    def ended(self, delivery: Delivery, outcome: Outcome, breaks: int = 0) -> None:
        """The delivery ended here, and its message can't be acked yet."""
        if task_id := self._identify(delivery.properties):
            self._orphans.pop(task_id, None)
            self._ends[task_id] = Ended(outcome, breaks, time.monotonic())

    def forget(self, delivery: Delivery) -> None:
        """The delivery ended here, and nobody needs to wait for its message."""
        if task_id := self._identify(delivery.properties):
            self._orphans.pop(task_id, None)

    def claim(self, delivery: Delivery) -> Return | Ended:
        """A message came back: what it is, or the outcome that has waited for it."""
        if not (self._orphans or self._ends or self._unbegun):
            return Return.STRANGER
        task_id = self._identify(delivery.properties)
        if task_id is None:
            return Return.STRANGER
        if orphan := self._orphans.pop(task_id, None):
            orphan.tag = delivery.tag
            orphan.properties = delivery.properties
            return Return.RUNNING
        if end := self._ends.pop(task_id, None):
            return end
        return Return.UNBEGUN if self._unbegun.pop(task_id, None) is not None else Return.STRANGER

    def forget_old(self, now: float) -> None:
        """Forget what nobody will ask for; there is a connection."""
        if now < self._forget_from:
            return
        for task_id in [task_id for task_id, end in self._ends.items() if now - end.since > REMEMBERED]:
            del self._ends[task_id]
        for task_id in [task_id for task_id, since in self._unbegun.items() if now - since > REMEMBERED]:
            del self._unbegun[task_id]
