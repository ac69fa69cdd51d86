"""The children: keeps one in every slot, through a zygote, and hears of their deaths.

A child that somebody has stopped holds its task and ends at no limit, so it is killed once it has been stopped for a while. A
zygote that says nothing although it should is replaced.

When another zygote takes over, with new code, each slot's child ends after what it was given, and its successor comes from the
new zygote. Children die with their zygote, so the old one stays until its last child has ended, however long that takes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Protocol

from taskq import log
from taskq.errors import ConfigurationError, MessageError
from taskq.workers.crashes import Blame
from taskq.workers.descriptors import make_room
from taskq.workers.launcher import Death, Launcher
from taskq.workers.silence import SILENT_SECONDS, Silence
from taskq.workers.slot import Slot
from taskq.workers.zygote import Continued, Exited, Failed, NotStarted, Ready, Report, Started, Stopped

#: The most slots that one worker may have: its notes are laid out once.
MOST_CHILDREN = 1024
FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0
#: How long a child that was retired may take to end, in seconds: for what the application does at its exit.
RETIRED_SECONDS = 30.0
#: How often it is looked whether a zygote that was told to end has done so, in seconds.
ENDING_SECONDS = 0.2
#: How long a child may be stopped before it is killed, in seconds.
STOPPED_SECONDS = 5.0
#: How many children the zygote may be asked for before it has answered: neither side ever waits for room in the socket.
MOST_STARTS = 16
#: How often the stopped children are looked at, in seconds; nothing is looked at while none is.
LOOK_SECONDS = 0.5

logger = log.get_logger("taskq.children")


class Listener(Protocol):
    """Who is told what happens to the processes: the supervisor."""

    def zygote_started(self, launcher: Launcher) -> None:
        """There is a zygote to listen to."""

    def zygote_ready(self, ready: Ready) -> None:
        """In place of a zygote that died, this one has imported the application."""

    def unwatch(self, what: Launcher) -> None:
        """There is nothing more to hear from this zygote."""

    def slot_opened(self, slot: Slot) -> None:
        """A child is being started in the slot."""

    def slot_closes(self, slot: Slot) -> None:
        """The slot's pipe is about to be closed."""

    def child_died(self, slot: Slot, death: Death, blame: Blame) -> None:
        """The slot's child died."""


class Children:
    """Starts a child in each slot and replaces those that die: at once, or with back-off where they die at their start.

    ``launcher`` is a zygote that has imported the application, ``launch`` starts another. Nobody else changes the list
    ``slots``; ``new_slot`` makes one of this index.
    """

    def __init__(
        self,
        slots: list[Slot],
        new_slot: Callable[[int], Slot],
        launcher: Launcher,
        launch: Callable[[], Launcher],
        listener: Listener,
    ) -> None:
        self.slots = slots
        self.launcher = launcher
        self.stopping = False
        self._new_slot = new_slot
        self._launch = launch
        self._listener = listener
        self._restart_at: dict[Slot, float] = {}
        self._retired: dict[tuple[Launcher, int], float] = {}
        self._old: list[Launcher] = []
        self._ending: dict[Launcher, float] = {}
        self._zygote_ready = True
        self._zygote_restart_at: float | None = None
        self._zygote_failures = 0
        self._look_at: float | None = None
        self._silence = Silence[Launcher]()

    def start_missing(self, now: float) -> float | None:
        """Start what is missing and due, and end what is to end; returns when to call again, or None."""
        if self.stopping:
            return None
        if self._old:
            self._replace_old()
        times = [self._kill_stopped(now), self._end_retired(now), self._end_zygotes(now), self._start(now)]
        times.append(self._end_silent_zygotes(now))
        return min((when for when in times if when is not None), default=None)

    def _start(self, now: float) -> float | None:
        self._remove_leaving()
        if self._zygote_restart_at is not None:
            if now < self._zygote_restart_at:
                return self._zygote_restart_at
            try:
                self.launcher = self._launch()
            except OSError as error:
                delay = self._zygote_again(now)
                logger.error("zygote_not_started", error=str(error), retry_in=delay)
                return now + delay
            self._zygote_restart_at = None
            self._listener.zygote_started(self.launcher)
        missing = [slot for slot in self.slots if slot.pipe is None]
        if not (missing and self._zygote_ready):
            return None
        due = [slot for slot in missing if self._restart_at.get(slot, 0.0) <= now]
        unanswered = sum(slot.pipe is not None and slot.process_id is None for slot in self.slots)
        for slot in due[: max(0, MOST_STARTS - unanswered)]:
            try:
                slot.open(self.launcher, *self.launcher.start_child(slot.index))
            except (BrokenPipeError, ConnectionResetError):
                # The zygote is gone; its control socket says so in a moment, and everything is started anew then.
                return None
            except OSError as error:
                self._not_started(slot, str(error))
            else:
                self._listener.slot_opened(slot)
        return min((when for slot in missing if (when := self._restart_at.get(slot, 0.0)) > now), default=None)

    def _zygote_again(self, now: float) -> float:
        """Have another zygote begin, later after each that failed; returns in how many seconds."""
        delay = _backoff(self._zygote_failures)
        self._zygote_failures, self._zygote_ready, self._zygote_restart_at = self._zygote_failures + 1, False, now + delay
        return delay

    def _not_started(self, slot: Slot, error: str) -> None:
        """The slot's child could not be started: that is this slot's trouble, and passes."""
        logger.error("child_not_started", slot=slot.index, error=error, retry_in=self._back_off(slot))

    def _back_off(self, slot: Slot) -> float:
        """Have the slot's next start wait, longer after each that failed; returns for how many seconds."""
        delay = _backoff(slot.failed_starts)
        slot.failed_starts += 1
        self._restart_at[slot] = time.monotonic() + delay
        return delay

    # How many

    @property
    def count(self) -> int:
        """How many slots there are to be."""
        return sum(not slot.leaving for slot in self.slots)

    def scale(self, count: int) -> None:
        """Have so many slots; those too many are given nothing more, and go when their task has ended.

        Raises ``ConfigurationError`` for what is below one, or too much for this worker.
        """
        if not 0 < count <= MOST_CHILDREN:
            raise ConfigurationError(f"a worker has between 1 and {MOST_CHILDREN} children, not {count}")
        make_room(count)
        staying = [slot for slot in self.slots if not slot.leaving]
        leaving = [slot for slot in self.slots if slot.leaving]
        for slot in sorted(staying, key=_worth)[: max(0, len(staying) - count)]:
            slot.leaving = slot.worn = True
        # Whoever has yet to leave may as well stay: no more tasks than wanted run at any time.
        missing = max(0, count - len(staying))
        for slot in leaving[:missing]:
            slot.leaving = False
        taken = {slot.index for slot in self.slots}
        free = (index for index in range(MOST_CHILDREN) if index not in taken)
        self.slots += [self._new_slot(next(free)) for _ in range(missing - len(leaving))]
        logger.info("scaled", children=count, before=len(staying))

    def _remove_leaving(self) -> None:
        for slot in [slot for slot in self.slots if slot.leaving and slot.pipe is None]:
            self.slots.remove(slot)
            self._restart_at.pop(slot, None)

    # Another zygote

    def adopt(self, launcher: Launcher) -> None:
        """Have this zygote, which has imported the new code, take over. No task that runs is interrupted."""
        if self._zygote_restart_at is None:
            # Otherwise the one before is dead, and closed already.
            self._old.append(self.launcher)
        self.launcher = launcher
        self._zygote_ready, self._zygote_restart_at, self._zygote_failures = True, None, 0
        self._listener.zygote_started(launcher)

    @property
    def renewed(self) -> bool:
        """Whether no task will begin any more in a child of an older zygote."""
        return all(slot.worn and len(slot.pending) <= bool(slot.running()) for slot in self.with_old_code())

    def with_old_code(self) -> list[Slot]:
        """The slots whose child comes from an older zygote."""
        return [slot for slot in self.slots if slot.pipe is not None and slot.zygote is not self.launcher]

    def _replace_old(self) -> None:
        """Have children of older zygotes end after what they were given: those in long tasks, and of the others half at a time.

        A successor may take long to start, as a fresh interpreter does; the other half works meanwhile.
        """
        old, free = self.with_old_code(), [slot for slot in self.slots if not slot.stuck]
        may_go = -(-len(free) // 2) - sum(slot.worn or not slot.ready for slot in free)
        for slot in old:
            if slot.stuck or not slot.ready:
                slot.worn = True
            elif not slot.worn and may_go > 0:
                slot.worn = True
                may_go -= 1
        needed = {slot.zygote for slot in old} | {zygote for zygote, _ in self._retired}
        for launcher in [launcher for launcher in self._old if launcher not in needed]:
            self._old.remove(launcher)
            self._listener.unwatch(launcher)
            launcher.hang_up()
            self._ending[launcher] = time.monotonic() + RETIRED_SECONDS

    def _end_zygotes(self, now: float) -> float | None:
        """See the zygotes end that were told to; returns when to look again, or None."""
        for launcher in [launcher for launcher, when in self._ending.items() if launcher.has_ended(kill=now >= when)]:
            del self._ending[launcher]
            logger.info("old_code_gone", zygote=launcher.process.pid)
        return now + ENDING_SECONDS if self._ending else None

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

    # What becomes of the processes

    def hear(self, launcher: Launcher) -> None:
        """Act on what the zygote reports; one that cannot be understood is lost."""
        self._silence.heard(launcher)
        try:
            reports = launcher.reports()
        except MessageError as garbled:
            logger.error("zygote_not_understood", pid=launcher.process.pid, error=str(garbled), help="restart the worker")
            launcher.lost = True
            return
        for report in reports:
            match report:
                case Ready() if launcher is self.launcher:
                    self._zygote_ready = True
                    self._zygote_failures = 0
                    self._listener.zygote_ready(report)
                case Failed(error=error):
                    logger.error("application_import_failed", error=error)
                case _:
                    self._hear_of_child(launcher, report)

    def _hear_of_child(self, launcher: Launcher, report: Report) -> None:
        match report:
            case Started(index=index, process_id=process_id):
                [slot] = [slot for slot in self.slots if slot.index == index]
                slot.process_id = process_id
                logger.debug("child_started", slot=index, pid=process_id)
            case NotStarted(index=index, error=error):
                [slot] = [slot for slot in self.slots if slot.index == index]
                self._listener.slot_closes(slot)
                slot.hang_up()
                self._not_started(slot, error)
            case Exited(process_id=process_id, status=status, peak_memory=peak):
                self._retired.pop((launcher, process_id), None)
                for slot in self._slots_of(launcher, process_id):
                    self._died(slot, Death.from_status(status, peak, _circumstances(slot)))
            case Stopped(process_id=process_id):
                for slot in self._slots_of(launcher, process_id):
                    slot.stopped_at = now = time.monotonic()
                    # Not when looks are under way: one that is late must show it.
                    self._look_at = self._look_at or now + LOOK_SECONDS
                    logger.warning("child_stopped", slot=slot.index, pid=process_id, kill_after=STOPPED_SECONDS)
            case Continued(process_id=process_id):
                for slot in self._slots_of(launcher, process_id):
                    slot.stopped_at = None
                    logger.info("child_continued", slot=slot.index, pid=process_id)

    def _slots_of(self, launcher: Launcher, process_id: int) -> list[Slot]:
        """The slot with this child, if there is one."""
        return [slot for slot in self.slots if slot.process_id == process_id and slot.zygote is launcher]

    def retire(self, slot: Slot, now: float) -> None:
        """The slot's child has had its time: it ends by itself, and its successor starts without waiting for that."""
        if slot.pipe is None or slot.process_id is None or slot.zygote is None:
            # Its start is yet to be reported: under whose name would that be, if another were started before?
            return
        logger.debug("child_retired", slot=slot.index, pid=slot.process_id, tasks=slot.finished)
        self._retired[slot.zygote, slot.process_id] = now + RETIRED_SECONDS
        self._listener.slot_closes(slot)
        slot.hang_up()
        slot.process_id = None
        self._restart_at[slot] = now

    def _end_retired(self, now: float) -> float | None:
        """Kill the retired that do not end; returns when the next one is due."""
        for zygote, process_id in [child for child, when in self._retired.items() if when <= now]:
            del self._retired[zygote, process_id]
            with contextlib.suppress(ProcessLookupError):  # its exit is about to be reported
                os.kill(process_id, signal.SIGKILL)
            logger.warning("child_killed", pid=process_id, reason=f"it was retired and did not end in {RETIRED_SECONDS:g} s")
        return min(self._retired.values(), default=None)

    def _died(self, slot: Slot, death: Death, blame: Blame = Blame.TASK) -> None:
        """The slot's child is dead: hand its deliveries on and plan its successor."""
        at_start = not (slot.ready or slot.served)
        process_id, slot.process_id = slot.process_id, None
        stack = {"stack": text} if (text := slot.black_box()) else {}
        slot.stopped_at = None
        self._listener.child_died(slot, death, blame)
        self._listener.slot_closes(slot)
        slot.hang_up()
        self._restart_at[slot] = 0.0
        delay = self._back_off(slot) if at_start else 0.0
        about = {"slot": slot.index, "pid": process_id, "died": str(death), "tasks": slot.finished, **stack}
        logger.warning("child_died", **about, at_start=at_start, restart_in=delay)

    def _end_silent_zygotes(self, now: float) -> float | None:
        """Replace the zygotes that leave open for too long what became of a child; returns when to look again, or None."""
        unclear = [slot for slot in self.slots if slot.pipe is not None and (slot.process_id is None or slot.ended)]
        owing = {slot.zygote for slot in unclear if slot.zygote is not None}
        for zygote in self._silence.look(owing, now):
            logger.error("zygote_silent", pid=zygote.process.pid, seconds=SILENT_SECONDS, help="it is killed and replaced")
            for slot in [slot for slot in unclear if slot.zygote is zygote and slot.ended]:
                # It had died before, and its task alone may be to blame for it.
                self._died(slot, Death(signal=9, circumstances="presumably, since its zygote did not say"))
            self._listener.unwatch(zygote)
            self.lose_zygote(zygote)
        return self._silence.due

    def lose_zygote(self, launcher: Launcher) -> None:
        """The zygote is gone, and its children with it: begin again in a moment, unless another has taken over from it."""
        if self.stopping:
            return
        delay = None
        if launcher is self.launcher:
            delay = self._zygote_again(time.monotonic())
        else:
            self._old.remove(launcher)
        launcher.close(0.0)
        self._retired = {child: when for child, when in self._retired.items() if child[0] is not launcher}
        for slot in self.slots:
            if slot.pipe is not None and slot.zygote is launcher:
                # The kernel kills the children of a dead zygote. One of the tasks that ran may have killed it.
                slot.kill()
                self._died(slot, Death(signal=9), Blame.SHARED)
        logger.error("zygote_died", restart_in=delay)

    def stop(self, timeout: float) -> None:
        """End all children and the zygotes; those that do not end within ``timeout`` seconds are killed."""
        self.stopping = True
        for slot in self.slots:
            if slot.pipe is not None:
                self._listener.slot_closes(slot)
                slot.hang_up()
        zygotes, deadline = [self.launcher, *self._old, *self._ending], time.monotonic() + timeout
        for launcher in zygotes:
            launcher.hang_up()
        for launcher in zygotes:
            launcher.close(max(0.0, deadline - time.monotonic()))


def _circumstances(slot: Slot) -> str:
    """What is known of a death beside how the process ended."""
    return "" if slot.stopped_at is None else f"after it had been stopped for {time.monotonic() - slot.stopped_at:.1f} s"


def _worth(slot: Slot) -> tuple[bool, bool, bool, int]:
    """Orders slots by how much would be missed without them."""
    return slot.pipe is not None, slot.stuck, bool(slot.pending), -slot.index


def _backoff(failures: int) -> float:
    """Seconds to wait before a start, after so many failed ones before this one."""
    return min(FIRST_DELAY * 2.0 ** min(failures, 30), LONGEST_DELAY)
