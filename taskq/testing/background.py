"""A worker of a test that runs in a thread of its own, for code that waits for results itself."""

from __future__ import annotations

import queue
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager

from taskq.app import TaskQ
from taskq.testing.loop import Run
from taskq.testing.memory import in_memory, is_in_memory
from taskq.testing.worker import LIMIT, Unending, Worker

#: How soon a change of the app is noticed, in seconds; messages are noticed at once.
LOOK_SECONDS = 0.05
#: How long the thread may take to end that has been told to, once time is up, in seconds.
LAST_SECONDS = 0.5


@contextmanager
def worker(
    app: TaskQ, *, queues: Sequence[str] = (), background: bool = True, jump: bool = True, timeout: float = 10.0
) -> Iterator[Worker]:
    """A worker of the app, which is in memory inside the block; an app that is in memory already stays where it is.

    In the background, tasks run in a thread as they are sent, so that ``get`` returns; with ``jump``, delays are jumped over.
    The block ends when nothing is left to run, and raises ``Unending`` if that takes more than ``timeout`` seconds; where it
    raises itself, the worker ends after the task that it is in.

    With ``background=False``, tasks run in the thread that calls ``run`` or ``advance``, and only then.
    """
    with ExitStack() as stack:
        if not is_in_memory(app):
            stack.enter_context(in_memory(app))
        if not background:
            made = Worker(app, queues)
            stack.callback(made.close)
            yield made
            return
        served = BackgroundWorker(app, queues, jump=jump)
        try:
            yield served
        except BaseException as error:
            try:
                served.stop(timeout)
            except Unending as unending:
                error.add_note(str(unending))
            raise
        served.finish(timeout)


class BackgroundWorker(Worker):
    """Runs tasks as they come, in its thread, which owns all connections: ``run`` and ``advance`` are done there too."""

    def __init__(self, app: TaskQ, queues: Sequence[str], *, jump: bool) -> None:
        super().__init__(app, queues)
        self._jump = jump
        self._requests: queue.SimpleQueue[tuple[Future[list[Run]], float, bool, int]] = queue.SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._finishing = threading.Event()
        self._stopping = threading.Event()
        self._door = threading.Lock()
        self._gone = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="taskq-testing", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """End the thread once nothing is left to run; raises ``Unending`` after so many seconds, and what ended it before."""
        self._finishing.set()
        with self._door:
            self._ring()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._stopping.set()
            self._thread.join(LAST_SECONDS)
            what = "a task hangs" if self._thread.is_alive() else self._latest()
            raise Unending(f"not done within {seconds:g} s: {what}")
        if self._failure is not None:
            raise self._failure

    def stop(self, seconds: float) -> None:
        """End the thread after the task that it is in, which gets so many seconds; raises as ``finish``."""
        self._stopping.set()
        self.finish(seconds)

    def _work(self, seconds: float, raises: bool, limit: int) -> list[Run]:
        if threading.current_thread() is self._thread:
            return super()._work(seconds, raises, limit)
        future: Future[list[Run]] = Future()
        with self._door:
            if self._gone:
                raise self._failure or RuntimeError("the worker has ended with its block")
            self._requests.put((future, seconds, raises, limit))
            self._ring()
        return future.result()

    def _ring(self) -> None:
        """Have the thread look up; holding ``_door``."""
        if not self._gone:
            self._ringer.send(b".")

    def _live(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001  # raised again by ``finish``, in the thread that waits for this one
            self._failure = error
        with self._door:
            self._gone = True
            self._bell.close()
            self._ringer.close()
        while not self._requests.empty():
            self._requests.get()[0].set_exception(self._failure or RuntimeError("the worker has ended with its block"))
        self.close()

    def _serve(self) -> None:
        leaps = 0
        while not self._stopping.is_set():
            # Read before the turn, so that the last turn sees everything that was sent inside the block.
            finishing = self._finishing.is_set()
            while not self._requests.empty():
                self._answer(*self._requests.get())
            with self._alone():
                if self._turn():
                    continue
                loop = self._opened()
                due = loop.due_in() if self._jump else None
                if due is not None:
                    leaps += 1
                    if leaps > LIMIT:
                        raise Unending(f"not done after {LIMIT} delays; {self._latest()}")
                    loop.pass_time(due)
                    continue
            if finishing:
                return
            self._wait(loop.fileno())

    def _answer(self, future: Future[list[Run]], seconds: float, raises: bool, limit: int) -> None:
        try:
            future.set_result(super()._work(seconds, raises, limit))
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that asked
            future.set_exception(error)

    def _wait(self, descriptor: int) -> None:
        """Until there is a message or a request; not for long, since the app may change."""
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.register(self._bell, select.POLLIN)
        poller.poll(LOOK_SECONDS * 1000)
        try:
            self._bell.recv(4096)
        except BlockingIOError:
            return
