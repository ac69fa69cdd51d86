"""The children: keeps one in every slot, through a zygote, and hears of their deaths.

A child that somebody has stopped holds its task and ends at no limit, so it is killed once it has been stopped for a while.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from taskq import log
from taskq.workers.crashes import Blame
from taskq.workers.launcher import Death, Launcher
from taskq.workers.slot import Slot
from taskq.workers.zygote import Continued, Exited, Failed, Ready, Started, Stopped

FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
#: How long a child that was retired may take to end, in seconds: for what the application does at its exit.
RETIRED_SECONDS = 30.0
#: How long a child may be stopped before it is killed, in seconds.
STOPPED_SECONDS = 5.0
#: How often the stopped children are looked at, in seconds; nothing is looked at while none is.
LOOK_SECONDS = 0.5

logger = log.get_logger("taskq.children")


class Listener(Protocol):
    """Who is told what happens to the processes: the supervisor."""

    def zygote_started(self, launcher: Launcher) -> None:
        """There is a zygote to listen to."""

    def slot_opened(self, slot: Slot) -> None:
        """A child is being started in the slot."""

    def slot_closes(self, slot: Slot) -> None:
        """The slot's pipe is about to be closed."""

    def child_died(self, slot: Slot, death: Death, blame: Blame) -> None:
        """The slot's child died."""


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
        self._retired: dict[int, float] = {}
        self._zygote_ready = True
        self._zygote_restart_at: float | None = None
        self._zygote_failures = 0
        self._look_at: float | None = None

    def start_missing(self, now: float) -> float | None:
        """Start what is missing and due, and end what is stopped; returns when to call again, or None."""
        if self.stopping:
            return None
        times = [self._kill_stopped(now), self._start(now)]
        return min((when for when in times if when is not None), default=None)

    def _start(self, now: float) -> float | None:
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
                    slot.open(*self.launcher.start_child(slot.index))
                except OSError:
                    # The zygote is gone; its control socket says so in a moment, and everything is started anew then.
                    return None
                self._listener.slot_opened(slot)
        times = [self._restart_at[slot] for slot in self.slots if slot.pipe is None]
        if (retired := self._end_retired(now)) is not None:
            times.append(retired)
        return min(times, default=None)

    def _kill_stopped(self, now: float) -> float | None:
        """Kill the children that have been stopped for too long; returns when to look again, or None if none is stopped.

        A look that comes late shows that this process was stopped too, as with Ctrl-Z in a terminal. Then the time begins
        anew: if the children run again, the report of it is on its way.
        """
        if self._look_at is None or now < self._look_at:
            return self._look_at
        late = now > self._look_at + LOOK_SECONDS
        stopped = [(slot, slot.stopped_at) for slot in self.slots if slot.stopped_at is not None]
        for slot, since in stopped:
            if late:
                slot.stopped_at = now
            elif now - since >= STOPPED_SECONDS:
                logger.warning("stopped_child_killed", slot=slot.index, pid=slot.process_id, stopped_for=round(now - since, 3))
                slot.kill()
        self._look_at = now + LOOK_SECONDS if stopped else None
        return self._look_at

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
                    self._retired.pop(process_id, None)
                    for slot in self._slots_of(process_id):
                        self._died(slot, Death.from_status(status, peak, _circumstances(slot)))
                case Stopped(process_id=process_id):
                    for slot in self._slots_of(process_id):
                        slot.stopped_at = now = time.monotonic()
                        # Not when looks are under way: one that is late must show it.
                        self._look_at = self._look_at or now + LOOK_SECONDS
                        logger.warning("child_stopped", slot=slot.index, pid=process_id, kill_after=STOPPED_SECONDS)
                case Continued(process_id=process_id):
                    for slot in self._slots_of(process_id):
                        slot.stopped_at = None
                        logger.info("child_continued", slot=slot.index, pid=process_id)
                case Failed(error=error):
                    logger.error("application_import_failed", error=error)

    def _slots_of(self, process_id: int) -> list[Slot]:
        """The slot with this child, if there is one."""
        return [slot for slot in self.slots if slot.process_id == process_id]

    def retire(self, slot: Slot, now: float) -> None:
        """The slot's child has had its time: it ends by itself, and its successor starts without waiting for that."""
        if slot.pipe is None or slot.process_id is None:
            # Its start is yet to be reported: under whose name would that be, if another were started before?
            return
        logger.debug("child_retired", slot=slot.index, pid=slot.process_id, tasks=slot.finished)
        self._retired[slot.process_id] = now + RETIRED_SECONDS
        self._listener.slot_closes(slot)
        slot.hang_up()
        slot.process_id = None
        self._restart_at[slot] = now

    def _end_retired(self, now: float) -> float | None:
        """Kill the retired that do not end; returns when the next one is due."""
        for process_id in [process_id for process_id, when in self._retired.items() if when <= now]:
            del self._retired[process_id]
            with contextlib.suppress(ProcessLookupError):  # its exit is about to be reported
                os.kill(process_id, signal.SIGKILL)
            logger.warning("child_killed", pid=process_id, reason=f"it was retired and did not end in {RETIRED_SECONDS:g} s")
        return min(self._retired.values(), default=None)

    def _died(self, slot: Slot, death: Death, blame: Blame = Blame.TASK) -> None:
        """The slot's child is dead: hand its deliveries on and plan its successor."""
        at_start = not slot.ready
        process_id, slot.process_id = slot.process_id, None
        stack = {"stack": text} if (text := slot.black_box()) else {}
        slot.stopped_at = None
        self._listener.child_died(slot, death, blame)
        self._listener.slot_closes(slot)
        slot.hang_up()
        delay = 0.0
        if at_start:
            delay = _backoff(slot.failed_starts)
            slot.failed_starts += 1
        self._restart_at[slot] = time.monotonic() + delay
        about = {"slot": slot.index, "pid": process_id, "died": str(death), "tasks": slot.finished, **stack}
        logger.warning("child_died", **about, at_start=at_start, restart_in=delay)

    def lose_zygote(self) -> None:
        """The zygote is gone, and its children with it: begin again in a moment."""
        if self.stopping:
            return
        delay = _backoff(self._zygote_failures)
        self._zygote_failures += 1
        self._zygote_ready = False
        self._zygote_restart_at = time.monotonic() + delay
        self.launcher.close(0.0)
        self._retired.clear()
        for slot in self.slots:
            if slot.pipe is not None:
                # The kernel kills the children of a dead zygote. One of the tasks that ran may have killed it.
                slot.kill()
                self._died(slot, Death(signal=9), Blame.SHARED)
        logger.error("zygote_died", restart_in=delay)

    def stop(self, timeout: float) -> None:
        """End all children and the zygote; those that do not end within ``timeout`` seconds are killed."""
        self.stopping = True
        for slot in self.slots:
            if slot.pipe is not None:
                self._listener.slot_closes(slot)
                slot.hang_up()
        self.launcher.close(timeout)


def _circumstances(slot: Slot) -> str:
    """What is known of a death beside how the process ended."""
    if slot.stopped_at is None:
        return ""
    return f"after it had been stopped for {time.monotonic() - slot.stopped_at:.1f} s"


def _backoff(failures: int) -> float:
    """Seconds to wait before a start, after so many failed ones before this one."""
    return min(FIRST_DELAY * 2.0**failures, LONGEST_DELAY)
