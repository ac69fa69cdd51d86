"""The note: what each child is running, in memory that the supervisor shares.

A child writes the number of its delivery before it starts the task. So when it dies, the supervisor knows which task it was
running, which it had finished (their outcomes are in the pipe) and which it had not begun, without having read a message.
The supervisor writes back which deliveries are recalled: those the child must not start any more.

Every field is eight aligned bytes, written in one store, so neither side ever sees half a value.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

_WORDS = 8
SIZE = _WORDS * 8
_NUMBER, _STARTED, _RECALL_AFTER, _RECALL_UP_TO = range(4)


def create(slots: int) -> int:
    """A descriptor of shared memory for so many notes."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("taskq-notes")
    else:
        descriptor, path = tempfile.mkstemp(prefix="taskq-notes-")
        os.unlink(path)
    os.ftruncate(descriptor, slots * SIZE)
    return descriptor


class Note:
    """One child's note. ``number`` 0 means that the child is between tasks."""

    def __init__(self, descriptor: int, index: int) -> None:
        self._memory = mmap.mmap(descriptor, 0)
        words = memoryview(self._memory)[index * SIZE : (index + 1) * SIZE]
        self._integers = words.cast("Q")
        self._seconds = words.cast("d")

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

    def begin(self, number: int, now: float) -> bool:
        """The child is about to run this delivery; False if the supervisor has recalled it.

        The number is written first and the recall read second, while ``recall`` writes first and its caller reads the
        number some milliseconds later: whoever comes second sees the other, so a delivery never runs here and elsewhere.
        """
        self._seconds[_STARTED] = now
        self._integers[_NUMBER] = number
        if self._integers[_RECALL_AFTER] < number <= self._integers[_RECALL_UP_TO]:
            self._integers[_NUMBER] = 0
            return False
        return True

    def end(self) -> None:
        """The child has handed in the outcome."""
        self._integers[_NUMBER] = 0

    def recall(self, after: int, up_to: int) -> None:
        """The child must not start deliveries with numbers over ``after``, up to ``up_to``."""
        self._integers[_RECALL_UP_TO] = 0
        self._integers[_RECALL_AFTER] = after
        self._integers[_RECALL_UP_TO] = up_to
