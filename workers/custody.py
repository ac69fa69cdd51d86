"""Custody: every delivery that the supervisor holds, and where it is.

A delivery waits in the backlog, lies with a child (``slot.pending``), or has ended and is being settled; it is never in two
of these and leaves only through ``settle``. When the connection to the broker breaks, what no child has begun is forgotten,
because the broker will deliver it again; what runs is kept as an orphan and takes over the new delivery when it comes, so
that the task is not run twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from taskq import log
from taskq.broker.interface import Decode, Delivery
from taskq.config import Settings
from taskq.errors import MessageError
from taskq.message import Message, Publication, undecodable
from taskq.workers.launcher import Death
from taskq.workers.outcome import GIVEN_BACK, Outcome, dead_letter
from taskq.workers.pace import STUCK, Pace
from taskq.workers.pipe import READY, SKIPPED
from taskq.workers.settle import Settler
from taskq.workers.slot import Slot

#: How long after a recall its deliveries are collected: time for what either side wrote to be seen by the other.
RECALL_SECONDS = 0.005
#: From how many deliveries on a child is said to have enough before it.
WORTH_A_PAUSE = 16
#: How long an outcome whose connection broke waits for its message to come back, in seconds.
LOST_END_SECONDS = 600.0

logger = log.get_logger("taskq.custody")


class Custody:
    """Takes deliveries in, gives them to children, and hands their outcomes to the settler."""

    def __init__(
        self,
        slots: Sequence[Slot],
        settler: Settler,
        settings: Settings,
        read: Decode,
        identify: Callable[[bytes], str | None],
        worker: str,
    ) -> None:
        self.slots = slots
        self.settler = settler
        self.backlog: deque[Delivery] = deque()
        self.pace = Pace(settings.prefetch)
        self._settings = settings
        self._read = read
        self._identify = identify
        self._worker = worker
        self._draining = False
        self._last_number = 0
        self._recalled: dict[Slot, float] = {}
        self._orphans: dict[str, Delivery] = {}
        self._lost_ends: dict[str, tuple[Outcome, float]] = {}
        self._lost_crashes: dict[str, int] = {}

    @property
    def held(self) -> int:
        """How many deliveries wait or lie with children."""
        return len(self.backlog) + sum(len(slot.pending) for slot in self.slots)

    @property
    def window(self) -> int:
        """How many deliveries the children that are up can use."""
        depth = self.pace.depth
        return sum(1 if slot.stuck else depth for slot in self.slots if slot.ready)

    @property
    def busy(self) -> bool:
        """Whether every child that is up has enough short tasks before it to be left alone for a moment."""
        enough = max(self.pace.depth // 2, WORTH_A_PAUSE)
        serving = [slot for slot in self.slots if slot.ready and not slot.stuck]
        return bool(serving) and all(len(slot.pending) >= enough for slot in serving)

    def take(self, deliveries: Iterable[Delivery]) -> None:
        """These have arrived from the broker."""
        for delivery in deliveries:
            if not (delivery.redelivered and self._came_back(delivery)):
                self.backlog.append(delivery)

    def feed(self) -> None:
        """Give what waits to the children in even shares, the idlest first."""
        if not self.backlog or self._draining:
            return
        depth = self.pace.depth
        free = [slot for slot in self.slots if slot.ready and not slot.stuck and len(slot.pending) < depth]
        free.sort(key=lambda slot: len(slot.pending))
        for left, slot in zip(range(len(free), 0, -1), free, strict=True):
            share = min(-(-len(self.backlog) // left), depth - len(slot.pending))
            for _ in range(share):
                self._last_number += 1
                slot.give(self._last_number, self.backlog.popleft())

    def hear(self, slot: Slot) -> None:
        """Read what the slot's child has reported."""
        for number, kind, microseconds, outcome in slot.reports():
            if kind == READY:
                slot.ready = True
                slot.failed_starts = 0
                continue
            delivery = slot.pending.pop(number, None)
            if kind == SKIPPED:
                if delivery is not None:
                    self._return([delivery])
                continue
            slot.stuck = False
            slot.finished += 1
            self.pace.observe(microseconds / 1e6)
            # None cannot be: what was collected after a recall is skipped by the child. Its message is not ours to ack then.
            if delivery is not None:
                self._end(delivery, outcome)

    def child_died(self, slot: Slot, death: Death, *, blame: bool) -> Delivery | None:
        """The slot's child is dead: finished tasks are settled, unstarted ones are handed on, the one it ran is counted.

        Without ``blame`` (we killed it to end) nothing is counted. Returns the delivery it was running.
        """
        self.hear(slot)
        victim = slot.pending.pop(slot.running(), None)
        unstarted, slot.pending = list(slot.pending.values()), {}
        self._recalled.pop(slot, None)
        self._return(unstarted)
        if victim is None:
            return None
        if blame:
            self._crashed(victim, death)
        else:
            self._return([victim])
        return victim

    def relieve(self, now: float) -> float | None:
        """Take back what waits behind a long task; returns when to call again, or None if nothing is under way."""
        for slot in self.slots:
            if not slot.stuck and slot.running() and now - slot.note.started > STUCK:
                slot.stuck = True
                if len(slot.pending) > 1:
                    slot.recall()
                    self._recalled[slot] = now + RECALL_SECONDS
        for slot in [slot for slot, when in self._recalled.items() if when <= now]:
            del self._recalled[slot]
            self._return(slot.take_back())
        self.feed()
        # A child that died is back within milliseconds; one that cannot start, or is in a long task, is of no use now.
        if self._draining or all(slot.stuck or slot.failed_starts for slot in self.slots):
            self.give_back()
        times = list(self._recalled.values())
        if any(slot.pending and not slot.stuck for slot in self.slots):
            times.append(now + STUCK / 2)
        return min(times, default=None)

    def drain(self, now: float) -> None:
        """Have no child start anything any more, and give back whatever has not begun, from now on."""
        self._draining = True
        self._recall_all(now)

    def _recall_all(self, now: float) -> None:
        """Have no child start what it was given; ``relieve`` collects."""
        for slot in self.slots:
            if slot.pending:
                slot.recall()
                self._recalled[slot] = now + RECALL_SECONDS

    @property
    def recalling(self) -> bool:
        """Whether a recall is still to be collected."""
        return bool(self._recalled)

    def give_back(self) -> None:
        """Give the backlog back to the broker, at no cost to the messages; what they crashed goes along in a header."""
        while self.backlog:
            delivery = self.backlog.popleft()
            if delivery.crashes:
                message = self._message(delivery)
                copy = message.with_headers(tq_crashes=message.crashes + delivery.crashes)
                self.settler.add(delivery, Outcome("given back", (Publication(delivery.queue, copy),)))
            else:
                self.settler.add(delivery, GIVEN_BACK)

    def lose_connection(self, now: float) -> None:
        """The connection broke: nothing held can be acked any more; the broker delivers all of it again."""
        for settlement in self.settler.drop_lost():
            self._lose_end(settlement.delivery, settlement.outcome)
        for slot in self.slots:
            for delivery in slot.pending.values():
                delivery.tag = None
                if task_id := self._identify(delivery.properties):
                    self._orphans[task_id] = delivery
        for delivery in self.backlog:
            delivery.tag = None
        lost = list(self.backlog)
        self.backlog.clear()
        self._return(lost)
        self._recall_all(now)

    def forget_lost_ends(self, now: float) -> None:
        """Forget outcomes whose messages have not come back: another worker has had them."""
        old = [task_id for task_id, (_, since) in self._lost_ends.items() if now - since > LOST_END_SECONDS]
        for task_id in old:
            del self._lost_ends[task_id]

    def _return(self, deliveries: Sequence[Delivery]) -> None:
        """These were not begun: back to the head of the backlog, unless the broker will deliver them again anyway."""
        for delivery in reversed(deliveries):
            if delivery.tag is not None:
                self.backlog.appendleft(delivery)
                continue
            task_id = self._identify(delivery.properties)
            if task_id is not None:
                self._orphans.pop(task_id, None)
                if delivery.crashes:
                    self._lost_crashes[task_id] = delivery.crashes

    def _came_back(self, delivery: Delivery) -> bool:
        """Whether a redelivered message is one that we still run, or have ended, from before the connection broke."""
        if not (self._orphans or self._lost_ends or self._lost_crashes):
            return False
        task_id = self._identify(delivery.properties)
        if task_id is None:
            return False
        delivery.crashes = self._lost_crashes.pop(task_id, 0)
        if orphan := self._orphans.pop(task_id, None):
            orphan.tag = delivery.tag
            orphan.properties = delivery.properties
            return True
        if lost := self._lost_ends.pop(task_id, None):
            self.settler.add(delivery, lost[0])
            return True
        return False

    def _end(self, delivery: Delivery, outcome: Outcome) -> None:
        if delivery.tag is None:
            self._lose_end(delivery, outcome)
        else:
            self.settler.add(delivery, outcome)

    def _lose_end(self, delivery: Delivery, outcome: Outcome) -> None:
        task_id = self._identify(delivery.properties)
        if task_id is not None and not outcome.requeue:
            self._orphans.pop(task_id, None)
            self._lost_ends[task_id] = (outcome, time.monotonic())

    def _crashed(self, delivery: Delivery, death: Death) -> None:
        """The task took its process down: another child gets it at once, until it has done so too often."""
        delivery.crashes += 1
        message = self._message(delivery)
        crashes = message.crashes + delivery.crashes
        about = {"task_id": message.headers.get("id"), "task": message.headers.get("task"), "queue": delivery.queue}
        if crashes < self._settings.max_crashes:
            logger.warning("task_crashed", **about, crashes=crashes, died=str(death))
            self._return([delivery])
            return
        detail = f"took down {crashes} processes; the last one: {death}"
        logger.error("task_dead_lettered", **about, reason="crashed", detail=detail)
        keep = self._settings.backend_url is not None
        message = message.with_headers(tq_crashes=crashes)
        self._end(delivery, dead_letter(delivery.queue, message, "crashed", detail, worker=self._worker, record_end=keep))

    def _message(self, delivery: Delivery) -> Message:
        """The message, decoded: only for what must be dead-lettered or carry its crashes along."""
        try:
            return self._read(delivery.properties, delivery.body)
        except MessageError:
            return undecodable(delivery.body)
