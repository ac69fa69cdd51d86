"""The note: what each child is running, in memory that the supervisor shares.

A child writes the number of its delivery before it starts the task, and then the terms that the task runs under. So when it
dies, the supervisor knows which task it was running, which it had finished (their outcomes are in the pipe) and which it had
not begun, and it enforces the limits, all without having read a message. The supervisor writes back which deliveries are
recalled, those the child must not start any more, and why it interrupts a task.

Every number is eight aligned bytes, written in one store, so neither side ever sees half a value.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
from dataclasses import dataclass

_NUMBERS = 9
_WORDS = 24
SIZE = _WORDS * 8
_NUMBER, _STARTED, _RECALLED, _SOFT, _HARD, _FLAGS, _RETRY_DELAY, _INTERRUPT, _ID_SIZE = range(_NUMBERS)
_ID_BYTES = SIZE - _NUMBERS * 8
_FAIL_WHEN_LOST, _AT_MOST_ONCE = 1, 2
#: Stands for the hard limit of a task whose message has not been read yet.
UNREAD = -1.0
#: Why the supervisor interrupts a task.
NOT, SOFT_LIMIT, TERMINATED = range(3)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a task runs under, all that the supervisor need know of it.

    ``soft`` and ``hard`` are ``time.monotonic()`` seconds, 0.0 for no limit. ``retry_delay`` is after how many seconds the task
    is tried again when it runs into the hard limit, below 0 if it fails then.
    """

    task_id: str = ""
    soft: float = 0.0
    hard: float = 0.0
    retry_delay: float = -1.0
    fail_when_lost: bool = False
    at_most_once: bool = False


#: Of a child that has begun, but not read yet what the message says.
NO_TERMS = Terms()


def create(slots: int) -> int:
    """A descriptor of shared memory for so many notes."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("taskq-notes")
    else:
        descriptor, path = tempfile.mkstemp(prefix="taskq-notes-")
        os.unlink(path)
    os.ftruncate(descriptor, slots * SIZE)
    return descriptor


def running(notes: bytes) -> dict[str, int]:
    """The ids of the tasks that run by these notes, each with the place of its note in the bytes."""
    tasks = {}
    for start in range(0, len(notes) - SIZE + 1, SIZE):
        number, *_, size = _integers(notes, start)
        if number and size and _seconds(notes, start)[_HARD] != UNREAD:
            begin = start + _NUMBERS * 8
            tasks[notes[begin : begin + size].decode(errors="replace")] = start
    return tasks


_integers = struct.Struct(f"={_NUMBERS}Q").unpack_from
_seconds = struct.Struct(f"={_NUMBERS}d").unpack_from


class Note:
    """One child's note. ``number`` 0 means that the child is between tasks."""

    def __init__(self, descriptor: int, index: int) -> None:
        self._memory = mmap.mmap(descriptor, 0)
        words = memoryview(self._memory)[index * SIZE : (index + 1) * SIZE]
        self._integers = words.cast("Q")
        self._seconds = words.cast("d")
        self._id = words[_NUMBERS * 8 :]

    def clear(self) -> None:
        """Forget the child that was; for the supervisor, before it starts another."""
        for word in range(_WORDS):
            self._integers[word] = 0

    @property
    def number(self) -> int:
        """The delivery that the child is running, or 0."""
        return self._integers[_NUMBER]

    @property
    def started(self) -> float:
        """When it began, in ``time.monotonic()`` seconds."""
        return self._seconds[_STARTED]

    @property
    def interrupt(self) -> int:
        """Why the supervisor interrupts the task: ``NOT``, ``SOFT_LIMIT`` or ``TERMINATED``."""
        return self._integers[_INTERRUPT]

    def begin(self, number: int, now: float) -> bool:
        """The child is about to run this delivery; False if the supervisor has recalled it.

        The number is written first and the recall read second, while ``recall`` writes first and its caller reads the
        number some milliseconds later: whoever comes second sees the other, so a delivery never runs here and elsewhere.
        """
        seconds, integers = self._seconds, self._integers
        # Before the number, so that the terms of the task before are never taken for this one's.
        seconds[_HARD] = UNREAD
        integers[_INTERRUPT] = NOT
        seconds[_STARTED] = now
        integers[_NUMBER] = number
        if number <= integers[_RECALLED]:
            integers[_NUMBER] = 0
            return False
        return True

    def agree(self, terms: Terms) -> None:
        """The child has read the message: the task runs under these terms from here on."""
        seconds, integers = self._seconds, self._integers
        task_id = terms.task_id.encode()[:_ID_BYTES]
        self._id[: len(task_id)] = task_id
        integers[_ID_SIZE] = len(task_id)
        integers[_FLAGS] = _FAIL_WHEN_LOST * terms.fail_when_lost | _AT_MOST_ONCE * terms.at_most_once
        seconds[_RETRY_DELAY] = terms.retry_delay
        seconds[_SOFT] = terms.soft
        # Last: it says that the rest is there.
        seconds[_HARD] = terms.hard

    def deadlines(self) -> tuple[int, float, float]:
        """The delivery that the child is running (0: none), and its soft and hard limit; ``UNREAD`` before there are terms."""
        number, soft, hard = self.number, self._seconds[_SOFT], self._seconds[_HARD]
        # A child that went on to the next task in between is asked again the next time.
        return (number, soft, hard) if number == self.number else (0, 0.0, 0.0)

    def terms(self) -> Terms:
        """The terms of the task that the child runs, or ran when it died."""
        flags = self._integers[_FLAGS]
        if self._seconds[_HARD] == UNREAD:
            return NO_TERMS
        return Terms(
            bytes(self._id[: self._integers[_ID_SIZE]]).decode(errors="replace"),
            self._seconds[_SOFT],
            self._seconds[_HARD],
            self._seconds[_RETRY_DELAY],
            bool(flags & _FAIL_WHEN_LOST),
            bool(flags & _AT_MOST_ONCE),
        )

    def end(self) -> None:
        """The child has handed in the outcome."""
        self._integers[_NUMBER] = 0

    def recall(self, up_to: int) -> None:
        """The child must not start any delivery with a number up to this one; what it has begun goes on.

        Numbers grow, and so does this one: what was recalled once may long be with another child.
        """
        self._integers[_RECALLED] = max(up_to, self._integers[_RECALLED])

    def interrupt_for(self, why: int) -> None:
        """The supervisor is about to interrupt the task with a signal, for this reason."""
        self._integers[_INTERRUPT] = why
