"""Limbo: what is known of deliveries whose connection broke, until the broker hands their messages out again.

What still runs goes on as an orphan and takes over the new delivery when it comes; an outcome that could not take effect waits
for its message; and what had not begun is known to be innocent of whatever broke the connection.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable

from taskq.broker.interface import Delivery
from taskq.workers.outcome import Outcome

#: How long it is remembered what became of a message that does not come back: another worker has had it then. In seconds.
REMEMBERED = 600.0


class Return(enum.Enum):
    """What a message is that came back: one that still runs here, one that had not begun here, or somebody else's."""

    RUNNING = enum.auto()
    UNBEGUN = enum.auto()
    STRANGER = enum.auto()


class Limbo:
    """Remembers by task id; ``identify`` reads it out of a delivery's properties."""

    def __init__(self, identify: Callable[[bytes], str | None]) -> None:
        self._identify = identify
        self._orphans: dict[str, Delivery] = {}
        self._ends: dict[str, tuple[Outcome, float]] = {}
        self._unbegun: dict[str, float] = {}

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

    def ended(self, delivery: Delivery, outcome: Outcome) -> None:
        """The delivery ended here, and its message can't be acked yet."""
        if task_id := self._identify(delivery.properties):
            self._orphans.pop(task_id, None)
            self._ends[task_id] = outcome, time.monotonic()

    def claim(self, delivery: Delivery) -> Return | Outcome:
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
            return end[0]
        return Return.UNBEGUN if self._unbegun.pop(task_id, None) is not None else Return.STRANGER

    def forget_old(self, now: float) -> None:
        """Forget what nobody will ask for."""
        for task_id in [task_id for task_id, (_, since) in self._ends.items() if now - since > REMEMBERED]:
            del self._ends[task_id]
        for task_id in [task_id for task_id, since in self._unbegun.items() if now - since > REMEMBERED]:
            del self._unbegun[task_id]
