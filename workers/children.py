"""The children: keeps one in every slot, through a zygote, and hears of their deaths."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from taskq import log
from taskq.workers.launcher import Death, Launcher
from taskq.workers.slot import Slot
from taskq.workers.zygote import Exited, Failed, Ready, Started

FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0

logger = log.get_logger("taskq.children")


class Listener(Protocol):
    """Who is told what happens to the processes: the supervisor."""

    def zygote_started(self, launcher: Launcher) -> None:
        """There is a zygote to listen to."""

    def slot_opened(self, slot: Slot) -> None:
        """A child is being started in the slot."""

    def slot_closes(self, slot: Slot) -> None:
        """The slot's pipe is about to be closed."""

    def child_died(self, slot: Slot, death: Death) -> None:
        """The slot's child died by itself."""


class Children:
    """Starts a child in each slot and replaces those that die: at once, or with back-off where they die at their start.

    ``launcher`` is a zygote that has imported the application, ``launch`` starts another.
    """

    def __init__(self, slots: Sequence[Slot], launcher: Launcher, launch: Callable[[], Launcher], listener: Listener) -> None:
        self.slots = slots
        self.launcher = launcher
        self.stopping = False
        self._launch = launch
        self._listener = listener
        self._restart_at: dict[Slot, float] = {}
        self._zygote_ready = True
        self._zygote_restart_at: float | None = None
        self._zygote_failures = 0

    def start_missing(self, now: float) -> float | None:
        """Start what is missing and due; returns when the next start is due, or None."""
        if self.stopping:
            return None
        if self._zygote_restart_at is not None:
            if now < self._zygote_restart_at:
                return self._zygote_restart_at
            self._zygote_restart_at = None
            self.launcher = self._launch()
            self._listener.zygote_started(self.launcher)
        if not self._zygote_ready:
            return None
        for slot in self.slots:
            if slot.pipe is None and self._restart_at.get(slot, 0.0) <= now:
                try:
                    slot.open(self.launcher.start_child(slot.index))
                except OSError:
                    # The zygote is gone; its control socket says so in a moment, and everything is started anew then.
                    return None
                self._listener.slot_opened(slot)
        return min((self._restart_at[slot] for slot in self.slots if slot.pipe is None), default=None)

    def hear(self) -> None:
        """Act on what the zygote reports."""
        for report in self.launcher.reports():
            match report:
                case Ready():
                    self._zygote_ready = True
                    self._zygote_failures = 0
                case Started(index=index, process_id=process_id):
                    self.slots[index].process_id = process_id
                    logger.debug("child_started", slot=index, pid=process_id)
                case Exited(process_id=process_id, status=status, peak_memory=peak):
                    for slot in self.slots:
                        if slot.process_id == process_id:
                            self._died(slot, Death.from_status(status, peak))
                case Failed(error=error):
                    logger.error("application_import_failed", error=error)

    def _died(self, slot: Slot, death: Death) -> None:
        """The slot's child is dead: hand its deliveries on and plan its successor."""
        at_start = not slot.ready
        process_id, slot.process_id = slot.process_id, None
        self._listener.child_died(slot, death)
        self._listener.slot_closes(slot)
        slot.hang_up()
        delay = 0.0
        if at_start:
            delay = _backoff(slot.failed_starts)
            slot.failed_starts += 1
        self._restart_at[slot] = time.monotonic() + delay
        logger.warning("child_died", slot=slot.index, pid=process_id, died=str(death), at_start=at_start, restart_in=delay)

    def lose_zygote(self) -> None:
        """The zygote is gone, and its children with it: begin again in a moment."""
        if self.stopping:
            return
        delay = _backoff(self._zygote_failures)
        self._zygote_failures += 1
        self._zygote_ready = False
        self._zygote_restart_at = time.monotonic() + delay
        self.launcher.close(0.0)
        for slot in self.slots:
            if slot.pipe is not None:
                # The kernel kills the children of a dead zygote. Whatever killed the zygote, a task that ran is counted: it
                # may have been the one that did.
                slot.kill()
                self._died(slot, Death(signal=9))
        logger.error("zygote_died", restart_in=delay)

    def stop(self, timeout: float) -> None:
        """End all children and the zygote; those that do not end within ``timeout`` seconds are killed."""
        self.stopping = True
        for slot in self.slots:
            if slot.pipe is not None:
                self._listener.slot_closes(slot)
                slot.hang_up()
        self.launcher.close(timeout)


def _backoff(failures: int) -> float:
    """Seconds to wait before a start, after so many failed ones before this one."""
    return min(FIRST_DELAY * 2.0**failures, LONGEST_DELAY)
