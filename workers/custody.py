"""Custody: every delivery that the supervisor holds, and where it is.

A delivery waits in the backlog, lies with a child (``slot.pending``), waits to run alone (``suspects``), or has ended and is
being settled; it is never in two of these and leaves only through ``settle``. When the connection to the broker breaks, all
that is held goes to ``limbo`` until the broker hands it out again, and comes back through ``returns``.

Whatever a message holds, a child reports or an error says of one delivery, it is that delivery's: it ends as a dead letter then
(``last_resort``), and its neighbours hear nothing of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskq import log
from taskq.broker.interface import Delivery
from taskq.config import Settings
from taskq.control import Control
from taskq.workers.beginnings import Beginnings
from taskq.workers.crashes import Blame, Coroner, End
from taskq.workers.last_resort import in_words
from taskq.workers.launcher import Death
from taskq.workers.note import NO_TERMS
from taskq.workers.orders import Orders
from taskq.workers.outcome import Outcome, given_back, runs_at_most_once
from taskq.workers.pace import STUCK, Pace
from taskq.workers.pipe import ASKED, BEGUN, READY, SKIPPED
from taskq.workers.returns import Returns, came_back
from taskq.workers.settle import Settler
from taskq.workers.slot import Slot
from taskq.workers.suspects import Suspects, is_marked

#: How long after a recall its deliveries are collected: time for what either side wrote to be seen by the other.
RECALL_SECONDS = 0.005
#: From how many deliveries on a child is said to have enough before it.
WORTH_A_PAUSE = 16

logger = log.get_logger("taskq.custody")


class Custody:
    """Takes deliveries in, gives them to children, and hands their outcomes to the settler."""

    def __init__(
        self,
        slots: Sequence[Slot],
        settler: Settler,
        settings: Settings,
        identify: Callable[[bytes], str | None],
        begun_of: Callable[[Sequence[str]], set[str]],
        coroner: Coroner,
    ) -> None:
        self.slots = slots
        self.settler = settler
        self.backlog: deque[Delivery] = deque()
        self.suspects = Suspects()
        self.orders = Orders(identify)
        self.pace = Pace(settings.prefetch)
        self.most_tasks = settings.max_tasks_per_child
        #: Whether the delivery will come back orphaned should this worker die now; the consumer's, once there is one.
        self.secure: Callable[[Delivery], bool] = lambda _: False
        self._coroner = coroner
        self._returns = Returns(settler, coroner, identify, begun_of)
        self.limbo = self._returns.limbo
        self.returned = self._returns.waiting
        self.message = settler.last_resort.message
        self._draining = False
        self.beginnings = Beginnings(settler, slots)
        self._last_number = 0
        self._recalled: dict[Slot, float] = {}

    @property
    def held(self) -> int:
        """How many deliveries wait or lie with children."""
        waiting = len(self.backlog) + len(self.suspects.waiting) + len(self.returned)
        return waiting + sum(len(slot.pending) for slot in self.slots)

    @property
    def window(self) -> int:
        """How many deliveries the children that are up can use."""
        room = self.suspects.room(time.monotonic())
        if room == 0:
            return 0
        depth = self.pace.depth
        useful = sum(1 if slot.stuck else depth for slot in self.slots if slot.serving)
        return useful if room is None else min(useful, room)

    @property
    def idle(self) -> bool:
        """Whether a child has nothing to do although it might be given something."""
        return not self._draining and any(self._room(slot, 1) > 0 for slot in self.slots) and self.window > 0

    @property
    def busy(self) -> bool:
        """Whether every child that is up has enough short tasks before it to be left alone for a moment."""
        enough = max(self.pace.depth // 2, WORTH_A_PAUSE)
        serving = [slot for slot in self.slots if slot.ready and not slot.stuck]
        return bool(serving) and all(len(slot.pending) >= enough for slot in serving)

    # From the broker to the children

    def take(self, deliveries: Iterable[Delivery]) -> None:
        """These have arrived from the broker."""
        for delivery in deliveries:
            if came_back(delivery):
                self.returned.append(delivery)
            else:
                self._place(delivery)
        self._judge()

    def feed(self) -> None:
        """Give what waits to the children in even shares, the idlest first."""
        if self._draining:
            return
        if self.suspects.waiting:
            self._isolate()
        if self.suspects.quietening:
            self.give_back_backlog()
        if not self.backlog or self.suspects.alone or self.suspects.waiting:
            return
        depth = self.pace.depth
        free = [(slot, room) for slot in self.slots if (room := self._room(slot, depth)) > 0]
        free.sort(key=lambda pair: len(pair[0].pending))
        for left, (slot, room) in zip(range(len(free), 0, -1), free, strict=True):
            for _ in range(min(-(-len(self.backlog) // left), room)):
                delivery = self._next()
                if delivery is None:
                    return
                self._give(slot, delivery)

    def _room(self, slot: Slot, depth: int) -> int:
        """How many deliveries more the slot's child may be given."""
        if not slot.ready or slot.stuck or slot.worn:
            return 0
        room = depth - len(slot.pending)
        return min(room, self.most_tasks - slot.finished - len(slot.pending)) if self.most_tasks else room

    def _next(self) -> Delivery | None:
        """The next delivery to run; what must not run is settled on the way."""
        while self.backlog:
            delivery = self.backlog.popleft()
            if self.orders.revocation(delivery) is not None:
                self._revoke(delivery)
            elif self.orders.pauses(delivery):
                self._give_back(delivery)
            else:
                return delivery
        return None

    def _give(self, slot: Slot, delivery: Delivery) -> int:
        self._last_number += 1
        slot.give(self._last_number, delivery)
        return self._last_number

    # From the children to the settler

    def hear(self, slot: Slot) -> None:
        """Read what the slot's child has reported."""
        for number, kind, microseconds, outcome, task, waited in slot.reports():
            if kind == READY:
                slot.ready = slot.has_served = True
                slot.failed_starts = 0
                continue
            if kind == BEGUN:
                self.settler.note(outcome.record)
                continue
            delivery = slot.pending.get(number)
            try:
                if kind == ASKED:
                    self._let_begin(slot, number, delivery, outcome)
                    continue
                slot.pending.pop(number, None)
                if kind == SKIPPED:
                    self._return([delivery] if delivery is not None else [])
                    continue
                self.settler.vitals.ended(slot.ran(task), outcome, microseconds / 1e6, waited)
                self.pace.observe(microseconds / 1e6)
                # None cannot be: what was collected after a recall the child skips. Its message is not ours to ack then.
                if delivery is not None:
                    self._settle(delivery, outcome, microseconds)
            except Exception as error:  # whatever is in the report, it is about this delivery
                logger.error("report_unusable", slot=slot.index, error=in_words(error), exc_info=error)
                slot.answer(number, False)
                if slot.pending.pop(number, delivery) is not None and delivery is not None:
                    self.settler.add(delivery, self.settler.last_resort.dead_letter(delivery, error))
        slot.worn = slot.worn or slot.worn_out(self.most_tasks)

    def _let_begin(self, slot: Slot, number: int, delivery: Delivery | None, begun: Outcome) -> None:
        """The child asks leave to begin: it gets it when that is recorded, or when of all copies of a tick this may run."""
        if delivery is None:
            slot.answer(number, False)
        elif (end := self.beginnings.ask(slot, number, delivery, self.message(delivery), begun)) is not None:
            del slot.pending[number]
            self._end(delivery, end)

    def child_died(self, slot: Slot, death: Death, blame: Blame) -> None:
        """The slot's child is dead: finished tasks are settled, unstarted ones handed on, the one it ran is judged."""
        self.hear(slot)
        number = slot.running()
        victim = slot.pending.pop(number, None)
        unstarted, slot.pending = list(slot.pending.values()), {}
        self._recalled.pop(slot, None)
        self._return(unstarted)
        if victim is None:
            return
        condemned = slot.condemned
        if self.settler.forget_beginning(victim) or (condemned is not None and condemned.number != number):
            # It had yet to begin, or the one that its child was killed for had just ended: this one is innocent.
            self.beginnings.give_up(victim)
            self._return([victim])
            return
        seconds, terms = max(0.0, time.monotonic() - slot.note.started), slot.note.terms()
        if terms is NO_TERMS:
            self.beginnings.give_up(victim)
        end = End(death, terms, seconds, condemned, slot.black_box())
        self._decide(victim, self._coroner.decide, end, blame)

    def _decide(self, delivery: Delivery, decide: Callable[..., Outcome], *facts: Any) -> None:
        """The delivery ends as ``decide`` says, which is given its queue, its message and the facts."""
        try:
            outcome = decide(delivery.queue, self.message(delivery), *facts)
        except Exception as error:  # noqa: BLE001  # whatever the message holds, it is the end of that message alone
            outcome = self.settler.last_resort.dead_letter(delivery, error)
        self._end(delivery, outcome)

    def _end(self, delivery: Delivery, outcome: Outcome) -> None:
        self.settler.vitals.decided(outcome)
        self._settle(delivery, outcome)

    def _settle(self, delivery: Delivery, outcome: Outcome, microseconds: int = 0) -> None:
        self.settler.tap.ended(delivery, outcome, microseconds)
        if delivery.tag is not None:
            self.settler.add(delivery, outcome)
        elif outcome.record is not None and runs_at_most_once(outcome.record):
            # Its end takes effect without its message, which others may have meanwhile: they find that it is over.
            self.limbo.forget(delivery)
            self.settler.add(delivery, outcome)
        else:
            self.limbo.ended(delivery, outcome)

    def _place(self, delivery: Delivery) -> None:
        """The delivery waits for a child from here on."""
        if is_marked(delivery):
            self.suspects.waiting.append(delivery)
        else:
            self.backlog.append(delivery)

    def _judge(self) -> None:
        """Find out what the messages are that came back although nobody gave them back."""
        if not self.returned:
            return
        for delivery, outcome, stranger, breaks in self._returns.judge():
            if outcome is None:
                self._place(delivery)
            elif stranger:
                self.suspects.beware(time.monotonic())
                self._end(delivery, outcome)
            else:
                self.settler.add(delivery, outcome, breaks=breaks)

    def _isolate(self) -> None:
        """Bring it about that one suspect is all that is held, and run it then.

        It is never held while another task may run: that one's crash would be blamed on the suspect.
        """
        suspects = self.suspects
        if any(slot.pending for slot in self.slots):
            in_long_task = any(slot.stuck for slot in self.slots)
            while suspects.waiting:
                delivery = suspects.waiting.popleft()
                if in_long_task and not suspects.overdue(self.message(delivery)):
                    self._decide(delivery, suspects.passed_on)
                else:
                    self._give_back(delivery)
                    suspects.quieten()
            if suspects.quietening:
                self._recall(slot for slot in self.slots if len(slot.pending) > bool(slot.running()))
            return
        while len(suspects.waiting) > 1:
            # To whoever else is idle: suspects need not wait for each other.
            self._give_back(suspects.waiting.pop())
        self.give_back_backlog()
        slot = next((slot for slot in self.slots if self._room(slot, 1) > 0), None)
        # Were this worker to die now, a suspect that has yet to be settled would come back too, and be blamed with this one.
        unsettled = [settlement for settlement in self.settler.settlements if is_marked(settlement.delivery)]
        if any(settlement.due > time.monotonic() for settlement in unsettled):
            self._decide(suspects.waiting.popleft(), suspects.passed_on)
        elif slot is not None and not (unsettled or self.returned) and self.secure(suspects.waiting[0]):
            self.backlog.append(suspects.waiting.popleft())
            suspect = self._next()
            if suspect is not None:
                suspects.runs_alone(slot, self._give(slot, suspect), time.monotonic())

    def _return(self, deliveries: Sequence[Delivery]) -> None:
        """These were not begun: back to the head of the backlog, unless the broker will deliver them again anyway."""
        for delivery in reversed(deliveries):
            if delivery.tag is None:
                self.limbo.unbegun(delivery)
            elif is_marked(delivery):
                self.suspects.waiting.appendleft(delivery)
            else:
                self.backlog.appendleft(delivery)

    def relieve(self, now: float) -> float | None:
        """Take back what waits behind a long task; returns when to call again, or None if nothing is under way."""
        for slot in self.slots:
            if not slot.stuck and slot.running() and now - slot.note.started > STUCK:
                slot.stuck = True
                if len(slot.pending) > 1:
                    self._recall([slot], now)
        for slot in [slot for slot, when in self._recalled.items() if when <= now]:
            del self._recalled[slot]
            # The note before the reports: what ends in between is kept, and what had ended is not taken for unbegun.
            running = slot.note.number
            self.hear(slot)
            self._return(slot.take_back(running))
        self._judge()
        self.suspects.look(now, quiet=not any(slot.pending for slot in self.slots))
        self.feed()
        # A child that died is back within milliseconds; one that cannot start, or is in a long task, is of no use now.
        if self._draining or all(slot.stuck or slot.failed_starts for slot in self.slots):
            self.give_back()
        times = [*self._recalled.values(), *self.suspects.times()]
        if any(slot.pending and not slot.stuck for slot in self.slots):
            times.append(now + STUCK / 2)
        if self.returned or self.suspects.waiting:
            times.append(now + STUCK)
        return min(times, default=None)

    def drain(self, now: float) -> None:
        """Have no child start anything, and give back whatever has not begun, from now on."""
        self._draining = True
        self._recall(self.slots, now)

    def _recall(self, slots: Iterable[Slot], now: float | None = None) -> None:
        """Have these children start nothing more of what they were given; ``relieve`` collects."""
        when = (time.monotonic() if now is None else now) + RECALL_SECONDS
        for slot in slots:
            if slot.recall():
                self._recalled[slot] = when

    def give_back(self) -> None:
        """Give everything that waits back to the broker, at no cost to the messages."""
        self.give_back_backlog()
        while self.suspects.waiting:
            self._give_back(self.suspects.waiting.popleft())
        if self._draining:
            # Unjudged, these must stay what they are: they are redelivered once the connection closes.
            self.returned.clear()

    def give_back_backlog(self) -> None:
        """Give back what waits for any child."""
        while self.backlog:
            self._give_back(self.backlog.popleft())

    def _give_back(self, delivery: Delivery) -> None:
        self._decide(delivery, given_back)

    def lose_connection(self, now: float, *, refused: bool = False) -> None:
        """The connection broke: nothing held can be acked any more; the broker delivers all of it again.

        ``refused``: the broker closed it because of what a settlement published.
        """
        for settlement in self.settler.drop_lost(refused=refused):
            if settlement.asked is not None:
                # It must not begin: its message may be with another worker already.
                slot, number = settlement.asked
                slot.answer(number, False)
                self.beginnings.give_up(settlement.delivery)
            elif settlement.delivery.tag is None:
                self.settler.add(settlement.delivery, settlement.outcome, breaks=settlement.breaks)
            elif settlement.outcome.event == "given back":
                self.limbo.unbegun(settlement.delivery)
            else:
                self.limbo.ended(settlement.delivery, settlement.outcome, settlement.breaks)
        for slot in self.slots:
            for delivery in slot.pending.values():
                self.limbo.orphan(delivery)
        for delivery in (*self.backlog, *self.suspects.waiting):
            self.limbo.unbegun(delivery)
        self.backlog.clear()
        self.suspects.waiting.clear()
        self._returns.lose_connection(now)
        self._recall(self.slots, now)

    # What operators say

    def obey(self, controls: Sequence[Control]) -> list[Slot]:
        """Take these entries into account; returns the slots whose task is to be terminated."""
        self.orders.hear(controls)
        affected = [slot for slot in self.slots if any(map(self.orders.forbids, slot.pending.values()))]
        self._recall(affected)
        return [slot for slot in affected if self.orders.terminates(slot.pending.get(slot.running()))]

    def _revoke(self, delivery: Delivery) -> None:
        """The task is not run, and that is its end."""
        self._decide(delivery, self._coroner.revoked)
