"""The tap: what happens to messages here, noted by the loop for whoever tells of it (``events``).

It costs the loop nothing while nobody listens, and a tuple per happening while somebody does. Where the other side is slower
than what happens, the tap forgets, and counts what it forgot: an event is worth less than a task.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from taskq.broker.interface import Delivery
from taskq.workers.note import UNREAD
from taskq.workers.outcome import Outcome
from taskq.workers.slot import Slot

#: How many happenings wait at most to be told.
MOST = 10_000


class Held(NamedTuple):
    """A message in custody, undecoded."""

    queue: str
    properties: bytes
    body: bytes
    redelivered: bool


def held(delivery: Delivery) -> Held:
    """The message as a value that outlives its custody."""
    return Held(delivery.queue, delivery.properties, delivery.body, delivery.redelivered)


class Happening(NamedTuple):
    """Something that happened to a message; ``at`` is in seconds since the epoch.

    Without an outcome, it came in, or with ``begun`` it began. ``seconds`` is how long its task ran, ``told`` says whether its
    beginning was told of before.
    """

    at: float
    held: Held
    begun: bool = False
    outcome: Outcome | None = None
    seconds: float = 0.0
    told: bool = False


class Tap:
    """The loop's end. ``on`` is the other side's to set; ``dropped`` counts what was forgotten."""

    def __init__(self) -> None:
        self.on = False
        self.dropped = 0
        self._waiting: deque[Happening] = deque()
        self._begun: set[Delivery] = set()

    def received(self, deliveries: Iterable[Delivery]) -> None:
        """These have come from the broker."""
        if self.on:
            now = time.time()
            for delivery in deliveries:
                self._add(Happening(now, held(delivery)))

    def look(self, slots: Sequence[Slot]) -> None:
        """Notice what has begun. What ends between two looks is told of as begun when it ends."""
        if not self.on:
            self._begun.clear()
            return
        if len(self._begun) > 2 * len(slots):
            # Some were given back, or their connection broke: they do not end here.
            self._begun &= {delivery for slot in slots for delivery in slot.pending.values()}
        for slot in slots:
            number, _, hard = slot.note.deadlines()
            delivery = slot.pending.get(number)
            # Until the child has read the message, its task may be unknown, expired or not due: then it does not begin.
            if delivery is not None and hard != UNREAD and delivery not in self._begun:
                self._begun.add(delivery)
                self._add(Happening(wall(slot.note.started), held(delivery), begun=True))

    def ended(self, delivery: Delivery, outcome: Outcome, microseconds: int) -> None:
        """The delivery has come to this end, and its task, if it ran, took so long."""
        if self.on:
            told = delivery in self._begun
            self._begun.discard(delivery)
            self._add(Happening(time.time(), held(delivery), outcome=outcome, seconds=microseconds / 1e6, told=told))

    def _add(self, happening: Happening) -> None:
        if len(self._waiting) < MOST:
            self._waiting.append(happening)
        else:
            self.dropped += 1

    def drain(self, most: int) -> list[Happening]:
        """The oldest happenings, so many at most; for the other side."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(most, len(waiting)))]


def wall(moment: float) -> float:
    """A monotonic moment in seconds since the epoch."""
    return time.time() - (time.monotonic() - moment)
