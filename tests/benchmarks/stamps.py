"""When each task was executed: an array of times in memory that every process of a run shares.

The task of every system is ``execute``, so that all pay the same for being measured (well under a microsecond), and a task
that was never executed shows as a zero. Standard library only: the peers' environment imports it too.
"""

from __future__ import annotations

import functools
import mmap
import os
import time

VARIABLE = "BENCH_STAMPS"


class Stamps:
    """The array, for the process that measures."""

    def __init__(self, size: int) -> None:
        self._descriptor = os.memfd_create("stamps")
        os.ftruncate(self._descriptor, 8 * size)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self._times = _map(self.path)

    def clear(self) -> None:
        """Nothing has been executed yet."""
        for index in range(len(self._times)):
            self._times[index] = 0.0

    def begun(self) -> bool:
        """Whether one of the first tasks has been executed."""
        return any(self._times[:64])

    def times(self, count: int) -> list[float]:
        """When the first ``count`` tasks were executed, in ``time.monotonic()`` seconds; 0 for those that were not."""
        return list(self._times[:count])


def execute(index: int) -> None:
    """The task: note that it was executed, and when."""
    shared()[index] = time.monotonic()


@functools.cache
def shared() -> memoryview[float]:
    """The array, for the processes that are measured."""
    return _map(os.environ[VARIABLE])


def _map(path: str) -> memoryview[float]:
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
