"""A slot: the place for one child, seen from the supervisor, with the deliveries that the child was given."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from taskq.broker.interface import Delivery
from taskq.workers.note import Note
from taskq.workers.outcome import Outcome
from taskq.workers.pipe import pack_delivery, unpack_reports

_CHUNK = 1 << 18


class Slot:
    """One child and its pipe. ``pending`` holds the deliveries it was given and has not reported on, oldest first."""

    def __init__(self, index: int, note: Note) -> None:
        self.index = index
        self.note = note
        self.pipe: socket.socket | None = None
        self.process_id: int | None = None
        self.ready = False
        self.stuck = False
        self.blocked = False
        self.ended = False
        self.pending: dict[int, Delivery] = {}
        self.finished = 0
        self.failed_starts = 0
        self._inbound = b""
        self._outbound: list[bytes] = []

    def open(self, pipe: socket.socket) -> None:
        """A child was asked for; it reads from the other end of this pipe."""
        self.note.clear()
        self.pipe = pipe
        self.process_id = None
        self.ready = self.stuck = self.blocked = self.ended = False
        self.finished = 0
        self._inbound = b""
        self._outbound = []

    def give(self, number: int, delivery: Delivery) -> None:
        """Queue the delivery for the child; ``flush`` sends it."""
        self.pending[number] = delivery
        self._outbound.append(pack_delivery(number, delivery))

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

    def reports(self) -> list[tuple[int, int, int, Outcome]]:
        """What the child has reported; a dead child's last reports are read just the same."""
        if self.pipe is None:
            return []
        chunks = [self._inbound]
        while True:
            try:
                chunk = self.pipe.recv(_CHUNK)
            except (BlockingIOError, ConnectionResetError):
                break
            if not chunk:
                self.ended = True
                break
            chunks.append(chunk)
            if len(chunk) < _CHUNK:
                break
        reports, self._inbound = unpack_reports(b"".join(chunks))
        return reports

    def running(self) -> int:
        """The number of the delivery whose task the child is in, or 0."""
        number = self.note.number
        return number if number in self.pending else 0

    def recall(self) -> None:
        """Have the child start nothing more of what it was given; ``take_back`` a few milliseconds later collects it."""
        last = next(reversed(self.pending), 0)
        self.note.recall(self.note.number, last)

    def take_back(self) -> list[Delivery]:
        """The recalled deliveries, oldest first. One that the child had just begun is reported by it, as skipped or as run."""
        keep = self.note.number
        taken = [number for number in self.pending if number != keep]
        return [self.pending.pop(number) for number in taken]

    def kill(self) -> None:
        """SIGKILL the child, if there is one."""
        if self.process_id is not None:
            with contextlib.suppress(ProcessLookupError):  # its exit is reported already, or about to be
                os.kill(self.process_id, signal.SIGKILL)

    def hang_up(self) -> None:
        """Close the pipe: a child between tasks ends by itself."""
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None
        self.ready = False
