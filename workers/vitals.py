"""Vitals: what a worker knows of itself, for whoever watches over it.

The supervisor's loop alone writes here; other threads only read. Each value is a number, or is replaced as a whole, so what a
reader sees may be a moment old and is never half of anything. Of dicts and lists it takes a copy first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from taskq.broker.interface import Delivery
from taskq.message import DEAD_REASON
from taskq.workers.outcome import Outcome

#: How many tasks are told apart; whatever else runs is counted under ``OTHER``.
MOST_TASKS = 200
OTHER = "other"
#: The longest name of a task that is told apart, in characters.
LONGEST_NAME = 255
#: The upper bounds of what is counted together, in seconds.
WAIT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
RUN_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
EFFECT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)


class Occupied(Protocol):
    """What is looked at of a slot."""

    process_id: int | None
    ready: bool
    pending: dict[int, Delivery]


class Histogram:
    """Counts of observations. ``counts`` has one place for each bound, and one for what is above them all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """What is counted of one task: how its messages ended, how long they had waited, and how long the task ran."""

    __slots__ = ("outcomes", "runs", "waits")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.waits = Histogram(WAIT_BOUNDS)
        self.runs = Histogram(RUN_BOUNDS)


class Place(msgspec.Struct, frozen=True):
    """A slot at the end of a turn: its child's process (None: none yet), and whether that can serve, or has work already."""

    process_id: int | None
    ready: bool
    busy: bool


class Vitals:
    """Kept by the loop. Moments are ``time.monotonic()`` seconds, counters count from the worker's start."""

    def __init__(self, now: float) -> None:
        self.started_at = now
        self.turned_at = now
        self.connected_since: float | None = None
        self.lost_at: float | None = None
        self.connections = 0
        #: Whether the broker has refused what was last asked of it.
        self.failing = False
        self.draining = False
        #: Whether messages wait and slots are free, and nothing comes, as the watchdog has found.
        self.deaf = False
        self.places: tuple[Place, ...] = ()
        self.held = 0
        self.delivered = 0
        self.redelivered = 0
        self.delivered_at: float | None = None
        self.tallies: dict[str, Tally] = {}
        self.other = Tally()
        self.dead_letters: dict[str, int] = {}
        #: By how the child ended, and why it was killed, if that was the supervisor.
        self.deaths: dict[tuple[str, str], int] = {}
        #: From the publishing of what follows a task to the broker's confirmation.
        self.confirmations = Histogram(EFFECT_BOUNDS)
        #: From an outcome to its ack.
        self.settlements = Histogram(EFFECT_BOUNDS)

    @property
    def settled(self) -> int:
        """How many outcomes have taken effect."""
        return sum(self.settlements.counts)

    def turned(self, now: float, slots: Iterable[Occupied], *, held: int, failing: bool) -> None:
        """The loop begins a turn."""
        self.turned_at = now
        self.places = tuple([Place(slot.process_id, slot.ready, bool(slot.pending)) for slot in slots])
        self.held = held
        self.failing = failing

    def connected(self, now: float) -> None:
        """A connection to the broker stands, and messages come through it."""
        self.connections += 1
        self.connected_since = now
        self.lost_at = None

    def disconnected(self, now: float) -> None:
        """The connection is gone."""
        self.connected_since = None
        self.lost_at = now

    def arrived(self, deliveries: Sequence[Delivery], now: float) -> None:
        """The broker has delivered these."""
        if deliveries:
            self.delivered += len(deliveries)
            self.redelivered += sum([delivery.redelivered for delivery in deliveries])
            self.delivered_at = now

    def ended(self, task: str, outcome: Outcome, seconds: float = 0.0, waited: float = -1.0) -> None:
        """A delivery of this task ("": nobody knows) has come to this end.

        ``seconds`` is how long the task ran, 0 if it did not; ``waited`` is how long its message had, below 0 if unknown.
        """
        tally, event = self._tally(task), outcome.event
        tally.outcomes[event] = tally.outcomes.get(event, 0) + 1
        if waited >= 0.0:
            tally.waits.observe(waited)
        if seconds > 0.0:
            tally.runs.observe(seconds)
        if event == "dead-lettered" and outcome.publish:
            self.dead_lettered(outcome)

    def dead_lettered(self, outcome: Outcome) -> None:
        """A message goes to the dead letters, by this outcome."""
        reason = str(outcome.publish[0].message.headers.get(DEAD_REASON))
        self.dead_letters[reason] = self.dead_letters.get(reason, 0) + 1

    def decided(self, outcome: Outcome) -> None:
        """The supervisor itself has decided of a delivery, which no child has reported on."""
        # What a revoked task publishes is not its own message.
        own = outcome.publish[0].message if outcome.publish and outcome.event != "revoked" else None
        name = own.headers.get("task") if own is not None else None
        self.ended(name if isinstance(name, str) else "", outcome)

    def child_died(self, how: str, why: str) -> None:
        """A child died of this signal, or with this exit code, for this reason."""
        self.deaths[how, why] = self.deaths.get((how, why), 0) + 1

    def _tally(self, task: str) -> Tally:
        tally = self.tallies.get(task)
        if tally is None:
            # Of a task whose process died, all that is known is the name in its message, which anybody may have made up.
            if not task or len(self.tallies) >= MOST_TASKS or len(task) > LONGEST_NAME or not task.isprintable():
                return self.other
            tally = self.tallies[task] = Tally()
        return tally
