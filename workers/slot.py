"""A slot: the place for one child, seen from the supervisor, with the deliveries that the child was given."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from taskq import log
from taskq.broker.interface import Delivery
from taskq.errors import MessageError
from taskq.workers import blackbox
from taskq.workers.crashes import Condemned
from taskq.workers.launcher import Launcher
from taskq.workers.note import Note
from taskq.workers.pipe import LAST_WORDS, Report, pack_answer, pack_delivery, unpack_reports
from taskq.workers.signals import DUMP_SIGNAL, SOFT_SIGNAL

_CHUNK = 1 << 18

logger = log.get_logger("taskq.slot")


class Slot:
    """One child and its pipe. ``pending`` holds the deliveries it was given and has not reported on, oldest first."""

    def __init__(self, index: int, note: Note) -> None:
        self.index = index
        self.note = note
        self.zygote: Launcher | None = None
        self.pipe: socket.socket | None = None
        self.box: int | None = None
        self.process_id: int | None = None
        self.stopped_at: float | None = None
        self.ready = False
        self.stuck = False
        self.blocked = False
        self.ended = False
        self.has_served = False
        #: This child was ready, before it ended.
        self.served = False
        #: The child is given nothing more, and is retired when it has done what it was given.
        self.worn = False
        #: The slot itself goes then.
        self.leaving = False
        self.condemned: Condemned | None = None
        self.interrupted = 0
        self.pending: dict[int, Delivery] = {}
        self.finished = 0
        self.tasks: Sequence[str] = ()
        self.failed_starts = 0
        self._recalled = 0
        self._unanswered = 0
        self._garbled = False
        self._inbound = b""
        self._outbound: list[bytes] = []

    def open(self, zygote: Launcher, pipe: socket.socket, box: int) -> None:
        """The zygote was asked for a child; that reads from the other end of this pipe and has this black box."""
        self.note.clear()
        self.zygote = zygote
        self.pipe = pipe
        self.box = box
        self.tasks = zygote.tasks
        self.process_id = None
        self.stopped_at = None
        self.ready = self.stuck = self.blocked = self.ended = self.served = self.worn = False
        self.condemned = None
        self.interrupted = 0
        self.finished = 0
        self._recalled = self._unanswered = 0
        self._garbled = False
        self._inbound = b""
        self._outbound = []

    @property
    def serving(self) -> bool:
        """Whether there is a child, or one that served is being replaced, which takes a moment."""
        return self.ready or (self.has_served and not self.failed_starts)

    def give(self, number: int, delivery: Delivery) -> None:
        """Queue the delivery for the child; ``flush`` sends it."""
        self.pending[number] = delivery
        self._unanswered += 1
        self._outbound.append(pack_delivery(number, delivery))

    def answer(self, number: int, granted: bool) -> None:
        """Queue the answer to a child that asked leave to begin this delivery."""
        self._outbound.append(pack_answer(number, granted))

    def flush(self) -> bool:
        """Send what the pipe takes; False while something is left for later."""
        if not self._outbound or self.pipe is None:
            return True
        data = b"".join(self._outbound)
        try:
            sent = self.pipe.send(data)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            # The child is dead. Its exit report decides what becomes of the deliveries; they are all in ``pending``.
            sent = len(data)
        self._outbound = [data[sent:]] if sent < len(data) else []
        return not self._outbound

    def reports(self) -> list[Report]:
        """What the child has reported; a dead child's last reports are read just the same.

        Of a child that writes what is no report nothing more is read. It has ``ended``, like one that has closed its pipe.
        """
        if self.pipe is None or self._garbled:
            return []
        chunks = [self._inbound]
        while True:
            try:
                chunk = self.pipe.recv(_CHUNK)
            except (BlockingIOError, ConnectionResetError):
                break
            if not chunk:
                self._end()
                break
            chunks.append(chunk)
            if len(chunk) < _CHUNK:
                break
        try:
            reports, self._inbound = unpack_reports(b"".join(chunks))
        except MessageError as error:
            logger.error("child_garbled", slot=self.index, pid=self.process_id, error=str(error))
            self._garbled = True
            self.kill()
            self._end()
            return []
        self._unanswered -= sum([report[1] in LAST_WORDS for report in reports])
        return reports

    def _end(self) -> None:
        """The child is dead, or as good as dead: it is given nothing more."""
        self.ended = True
        self.served, self.ready = self.served or self.ready, False

    @property
    def idle(self) -> bool:
        """Whether the child has nothing before it: not even recalled deliveries, which it has yet to see recalled.

        Only such a child may be retired. Its successor's note lies where its own does, so it must not look there any more.
        """
        return not (self.pending or self._unanswered)

    def ran(self, task: int) -> str:
        """The child has done with a delivery; returns the name of the task with this number, empty where there is none."""
        self.stuck = False
        self.finished += 1
        return self.tasks[task - 1] if 0 < task <= len(self.tasks) else ""

    def running(self) -> int:
        """The number of the delivery whose task the child is in, or 0."""
        number = self.note.number
        return number if number in self.pending else 0

    def recall(self) -> bool:
        """Have the child start nothing more of what it was given; False if that was said already.

        ``take_back`` a few milliseconds later collects it.
        """
        last = next(reversed(self.pending), 0)
        if last <= self._recalled:
            return False
        self._recalled = last
        self.note.recall(last)
        return True

    def take_back(self, running: int) -> list[Delivery]:
        """The recalled deliveries, oldest first, but for the ``running`` one, which the child reports, as skipped or as run.

        What was given since the recall stays with the child, which may have begun it.
        """
        taken = [number for number in self.pending if number <= self._recalled and number != running]
        return [self.pending.pop(number) for number in taken]

    def interrupt(self, number: int, why: int) -> None:
        """Have the child raise an exception in the middle of this delivery's task, for this reason of ``note``'s."""
        self.interrupted = number
        self.note.interrupt_for(why)
        self.signal(SOFT_SIGNAL)

    def kill(self) -> None:
        """SIGKILL the child, if there is one, with the programs that its tasks have started."""
        if self.process_id is not None:
            try:
                os.killpg(self.process_id, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it has only just begun, or others of its group are another user's
                self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send the child a signal, if there is one."""
        if self.process_id is not None:
            with contextlib.suppress(ProcessLookupError):  # its exit is reported already, or about to be
                os.kill(self.process_id, number)

    def worn_out(self, most_tasks: int) -> bool:
        """Whether the child has run as many tasks as it may; 0: there is no end of them."""
        return 0 < most_tasks <= self.finished

    def dump(self) -> None:
        """Have the child write into its black box where it stands; it takes some milliseconds."""
        self.signal(DUMP_SIGNAL)

    def black_box(self) -> str:
        """What the child, dead or alive, has written into its black box; empty when there is none any more."""
        return "" if self.box is None else blackbox.read(self.box)

    def hang_up(self) -> None:
        """Close the pipe, so that a child between tasks ends by itself, and the black box."""
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None
        if self.box is not None:
            os.close(self.box)
            self.box = None
        self.ready = False
