"""Limits: ends tasks that run too long, take too much memory, or are revoked while they run.

All of it is decided from the notes and from what the kernel says of the processes; no message is read. A limit first leaves
the task a chance (a soft limit, a revocation: an exception in the task), or the child one to write down where it stood
(a hard limit), and then SIGKILL ends it, which no task can catch and no lock can hold up. What becomes of the message is for
``crashes`` to say, once the child is dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from taskq import log
from taskq.config import Settings
from taskq.workers import cgroup
from taskq.workers.crashes import Condemned
from taskq.workers.memory import LOOK_SECONDS, MemoryGuard, resident
from taskq.workers.note import SOFT_LIMIT, TERMINATED
from taskq.workers.slot import Slot

#: How long a child has to write down its stack before it is killed, in seconds.
DUMP_SECONDS = 0.1
#: How long a task that is revoked while it runs has to end by itself, in seconds.
TERMINATE_SECONDS = 1.0
#: How long a child may wait for leave to begin a task, in seconds, where the worker's ``time_limit`` does not say less.
LEAVE_SECONDS = 60.0
#: How soon to look again at a child that has begun but whose terms are not noted yet, in seconds.
TERMS_SECONDS = 0.05

logger = log.get_logger("taskq.limits")


class Limits:
    """Enforces the limits of the tasks that run in these slots."""

    def __init__(self, slots: Sequence[Slot], settings: Settings) -> None:
        self._slots = slots
        self._guard = MemoryGuard(settings.memory_limit, cgroup.find())
        self._most_memory = settings.max_memory_per_child
        self._leave = _leave(settings)
        self._kill_at: dict[Slot, float] = {}
        self._look_at = 0.0

    def follow(self, settings: Settings) -> None:
        """These settings hold from here on."""
        self._guard.memory_limit = settings.memory_limit
        self._most_memory = settings.max_memory_per_child
        self._leave = _leave(settings)

    def enforce(self, now: float) -> float | None:
        """Interrupt and kill what is due; returns when to come again, or None."""
        times = [when for slot in self._slots if (when := self._enforce(slot, now)) < math.inf]
        if (interval := self._interval()) is not None:
            if now >= self._look_at:
                self._look_at = now + interval
                self._look(now)
            times.append(self._look_at)
        return min(times, default=None)

    def terminate(self, slots: Iterable[Slot], now: float) -> None:
        """The tasks that run in these slots are revoked: they are told, and killed if that does not end them."""
        for slot in slots:
            if (number := slot.running()) and slot.condemned is None:
                slot.interrupt(number, TERMINATED)
                self._condemn(slot, Condemned(number, "revoked", "it was revoked"), now + TERMINATE_SECONDS)

    def _enforce(self, slot: Slot, now: float) -> float:
        """The slot's own limits; returns when they are to be looked at again."""
        number, soft, hard = slot.note.deadlines()
        if not number or number not in slot.pending:
            return math.inf
        condemned = slot.condemned
        if condemned is not None:
            if condemned.number == number:
                return self._execute(slot, now)
            # It ended in time after all.
            slot.condemned = None
        if hard < 0:
            if now < slot.note.started + self._leave:
                return now + TERMS_SECONDS
            # Whoever should have given it leave is away. It has not begun, so its message is as good as new.
            logger.warning("leave_not_given", slot=slot.index, pid=slot.process_id, seconds=self._leave)
            return self._condemn(slot, Condemned(number, "time limit", f"it was not let begin within {self._leave:.4g} s"), now)
        if 0 < hard <= now:
            slot.dump()
            logger.warning("time_limit_reached", slot=slot.index, pid=slot.process_id)
            limit = hard - slot.note.started
            return self._condemn(
                slot, Condemned(number, "time limit", f"its time limit of {limit:.4g} s was over"), now + DUMP_SECONDS
            )
        if 0 < soft <= now and slot.interrupted != number:
            slot.interrupt(number, SOFT_LIMIT)
        later = [when for when in (hard, soft if slot.interrupted != number else 0.0) if when > 0]
        return min(later, default=math.inf)

    def _condemn(self, slot: Slot, condemned: Condemned, kill_at: float) -> float:
        slot.condemned = condemned
        self._kill_at[slot] = kill_at
        return kill_at

    def _execute(self, slot: Slot, now: float) -> float:
        kill_at = self._kill_at[slot]
        if now < kill_at:
            return kill_at
        slot.kill()
        # Once: what is dead is reported in a moment, and its process id may be another's after that.
        self._kill_at[slot] = math.inf
        return math.inf

    def _interval(self) -> float | None:
        """How often to look at the memory, in seconds; None where nothing bounds it."""
        interval = self._guard.interval
        return interval if interval is not None or not self._most_memory else LOOK_SECONDS

    def _look(self, now: float) -> None:
        """Kill the children that have too much memory while they run a task; replace those that do between two tasks."""
        children = {slot.index: slot.process_id for slot in self._slots if slot.process_id is not None}
        running = [slot.index for slot in self._slots if slot.running()]
        for excess in self._guard.look(children, running, now):
            [slot] = [slot for slot in self._slots if slot.index == excess.index]
            if (number := slot.running()) and (slot.condemned is None or slot.condemned.number != number):
                logger.warning("memory_limit_reached", slot=slot.index, pid=slot.process_id, resident=excess.resident)
                self._condemn(slot, Condemned(number, "memory limit", excess.why), now)
                self._execute(slot, now)
        if self._most_memory:
            for slot in self._slots:
                if slot.ready and slot.process_id is not None and resident(slot.process_id) > self._most_memory:
                    slot.worn = True


def _leave(settings: Settings) -> float:
    return min(settings.time_limit or LEAVE_SECONDS, LEAVE_SECONDS)
