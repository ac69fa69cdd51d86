"""Suspects: messages that came back because their whole worker died. They run alone, until they are cleared or caught.

::

    its worker dies ──► suspected (marked, published again) ──► runs with nothing else in custody ──► ends, or goes on for
                             ▲                                        │                               PROBATION: cleared
                             └──────── counted as a crash ◄── its worker dies again: caught

Invariant: while a worker holds a suspect on probation, none of its children runs anything else, so that the worker's death
proves who did it. A worker that is busy gives the suspect back, and fetches nothing until it is quiet.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from taskq.broker.interface import Delivery
from taskq.message import ALONE, Message
from taskq.workers.outcome import Outcome, again
from taskq.workers.slot import Slot

#: For how long a suspect runs alone before it counts as cleared, in seconds: others can't wait for an hour's task.
PROBATION = 10.0
#: For how long a suspect is passed on by workers that are in a long task, in seconds; then they wait for it to end.
PATIENCE = 60.0
#: After how many seconds a suspect that was passed on comes again.
PASS_ON_DELAY = 1.0
#: For how long after a suspect another is expected, in seconds: meanwhile messages are fetched one by one.
WARY = 0.1
_MARK = ALONE.encode()


def is_marked(delivery: Delivery) -> bool:
    """Whether the message is marked to run alone, without decoding it; one that only mentions the mark runs alone too."""
    return _MARK in delivery.properties


class Suspects:
    """The suspects of one worker: those that wait, and the one that runs."""

    def __init__(self) -> None:
        self.waiting: deque[Delivery] = deque()
        self._running: tuple[Slot, int, float] | None = None
        self._wary_until = 0.0
        self.quietening = False

    @property
    def alone(self) -> bool:
        """Whether a suspect is on probation."""
        return self._running is not None

    def room(self, now: float) -> int | None:
        """How many deliveries may be held for the suspects' sake; None if they set no bound."""
        if self._running is not None or self.waiting or self.quietening:
            return 0
        return 1 if now < self._wary_until else None

    def beware(self, now: float) -> None:
        """A suspect was met; more of them are likely on their way."""
        self._wary_until = now + WARY

    def quieten(self) -> None:
        """Fetch nothing until what runs has ended: a suspect waits for that."""
        self.quietening = True

    def runs_alone(self, slot: Slot, number: int, now: float) -> None:
        """The suspect was given to this slot's child under this number."""
        self._running = slot, number, now

    def look(self, now: float, *, quiet: bool) -> None:
        """See whether the suspect that runs is done with, or has been on probation for long enough; ``quiet``: nothing runs."""
        if quiet and self.quietening:
            self.quietening = False
            self.beware(now)
        if self._running is not None:
            slot, number, since = self._running
            if number not in slot.pending or now - since > PROBATION:
                self._running = None
                self.beware(now)

    def times(self) -> Iterator[float]:
        """When to look again."""
        if self._running is not None:
            yield self._running[2] + PROBATION
        elif self._wary_until > time.monotonic():
            yield self._wary_until

    @staticmethod
    def overdue(message: Message) -> bool:
        """Whether the suspect has been passed on for too long."""
        since = message.moment(ALONE)
        return since is None or since < time.time() - PATIENCE

    @staticmethod
    def passed_on(queue: str, message: Message) -> Outcome:
        """Somebody who has nothing else for long may have it."""
        return again("given back", queue, message, delay=PASS_ON_DELAY)
