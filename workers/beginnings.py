"""Beginnings: children that ask leave to begin, and what they are told.

Two kinds ask: a task that runs at most once, whose beginning has to be recorded first, and a copy of a schedule's tick. Between
workers, the backend decides, by the name of the worker (``ResultStore.begin``); between the children of one, this does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from taskq.broker.interface import Delivery
from taskq.message import Message
from taskq.results.store import Record
from taskq.workers.outcome import Outcome
from taskq.workers.settle import Settler
from taskq.workers.slot import Slot


class Beginnings:
    """Those of one worker: by the id of the task, the delivery that is to begin, and the beginning that is recorded."""

    def __init__(self, settler: Settler, slots: Sequence[Slot]) -> None:
        self._settler = settler
        self._slots = slots
        self._known: dict[str, tuple[Delivery, Record]] = {}

    def ask(self, slot: Slot, number: int, delivery: Delivery, message: Message, begun: Outcome) -> Outcome | None:
        """The slot's child asks leave to begin this; returns the end of the delivery where it must not begin at all.

        Otherwise ``answer`` tells the child, now or after the next pass of the settler.
        """
        record = begun.record
        if record is None:
            self._settler.ask(delivery, message, (slot, number))
        elif delivery.tag is None:
            # Its message may be with another worker already.
            slot.answer(number, False)
        elif self._is_first(delivery, record):
            self._settler.add(delivery, begun, (slot, number))
        else:
            # The same message was sent twice, and this copy has come while the other one runs.
            slot.answer(number, False)
            return Outcome("dropped")
        return None

    def answer(self) -> None:
        """Tell the children that asked what has come of it; to be called after each pass of the settler."""
        answers, self._settler.answers = self._settler.answers, []
        for slot, number, granted, settled in answers:
            if settled:
                slot.pending.pop(number, None)
            slot.answer(number, granted)

    def give_up(self, delivery: Delivery) -> None:
        """The delivery's child died before it came to run the task: where it had leave to, others may have it."""
        for known, begun in self._known.values():
            if known is delivery:
                self._settler.withdrawn.append(begun)

    def _is_first(self, delivery: Delivery, begun: Record) -> bool:
        """Whether no other delivery of the same task has leave, or asks for it; what has taken effect has no say any more."""
        held = set(map(id, self._unsettled()))
        self._known = {task_id: known for task_id, known in self._known.items() if id(known[0]) in held}
        return self._known.setdefault(begun.id, (delivery, begun))[0] is delivery

    def _unsettled(self) -> Iterator[Delivery]:
        """What lies with children, and what has ended but not taken effect."""
        for slot in self._slots:
            yield from slot.pending.values()
        for settlement in self._settler.settlements:
            yield settlement.delivery
