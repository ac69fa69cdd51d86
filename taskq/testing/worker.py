"""A worker of a test, which runs tasks when it is told to, in the thread that tells it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from taskq.app import TaskQ
from taskq.testing.loop import Loop, Run

#: After how many messages a call gives up: tasks that send themselves again would keep it for ever.
LIMIT = 10_000


class Unending(AssertionError):
    """Tasks did not come to an end: they send themselves again, or one of them hangs."""


class Worker:
    """Runs the tasks of an app in memory, one at a time. It consumes the app's queues, and the ``queues`` given here.

    Made by ``taskq.testing.worker``. Where the app's tasks or queues change, it takes that in by itself.
    """

    def __init__(self, app: TaskQ, queues: Sequence[str] = ()) -> None:
        self.app = app
        self._queues = tuple(queues)
        self._loop: Loop | None = None
        self._known: tuple[object, ...] = ()
        self._runs: list[Run] = []
        self._lock = threading.Lock()
        self._owner: int | None = None

    def run(self, *, raises: bool = False, limit: int = LIMIT) -> list[Run]:
        """Run everything, with what follows from it, until nothing is left. Delays are jumped over: time passes at once.

        Returns what was run since the last call. With ``raises``, the error of the first task that failed for good is raised
        instead. Raises ``Unending`` after ``limit`` messages.
        """
        return self._work(math.inf, raises, limit)

    def advance(self, seconds: float, *, raises: bool = False, limit: int = LIMIT) -> list[Run]:
        """Let so much time pass, and run what is due until then, each at its time; ``advance(0)``: what is due now.

        Returns and raises as ``run``.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"time passes by a number of seconds from 0, not by {seconds!r}")
        return self._work(seconds, raises, limit)

    def close(self) -> None:
        """Close the connections. What has not been run stays in its queue."""
        with self._alone():
            self._close()

    def _work(self, seconds: float, raises: bool, limit: int) -> list[Run]:
        with self._alone():
            left, count = seconds, 0
            while True:
                while self._turn():
                    count += 1
                    if count > limit:
                        raise Unending(f"not done after {limit} messages; {self._latest()}")
                due = self._opened().due_in()
                if due is None or due > left:
                    break
                self._opened().pass_time(due)
                left -= due
            if math.isfinite(left):
                self._opened().pass_time(left)
            runs, self._runs = self._runs, []
        if raises and (failure := next((run.failure for run in runs if run.failure is not None), None)):
            raise failure
        return runs

    def _turn(self) -> bool:
        """One turn of the loop, on the connection that the app needs now."""
        return self._opened().turn()

    def _opened(self) -> Loop:
        """The connection, made anew where the app is not what it was."""
        queues = tuple(dict.fromkeys((*self.app.queue_names(), *self._queues)))
        known = (queues, tuple(self.app.tasks))
        if self._loop is None or (known != self._known and self._loop.holds_nothing):
            self._close()
            self._loop, self._known = self._open(queues), known
        return self._loop

    def _open(self, queues: Sequence[str]) -> Loop:
        return Loop(self.app, queues, self._hear)

    def _hear(self, run: Run) -> None:
        self._runs.append(run)

    def _close(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _latest(self) -> str:
        """What ran last, for who has to find out what does not end."""
        return "the last ones: " + ", ".join(f"{run.task} {run.event}" for run in self._runs[-5:])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time, and no task in the middle of another."""
        if self._owner == threading.get_ident():
            raise RuntimeError("a task can't use the worker that runs it: that runs one task at a time")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None
