"""The desk: where other threads ask the supervisor's loop, which alone knows how things stand and alone changes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from taskq import log
from taskq.errors import TaskqError

#: How long an answer may take, in seconds. A loop that turns answers in milliseconds.
PATIENCE = 3.0
ENDED = "the worker has ended"
#: How many questions are answered in one turn of the loop.
MOST_AT_ONCE = 50

logger = log.get_logger("taskq.supervisor")

L = TypeVar("L")
T = TypeVar("T")


class Unanswered(TaskqError):
    """The loop does not turn at present, or has ended."""


class _Question(Generic[L]):
    """A function of the loop; whoever first takes the ``turn``, the loop to answer or the asker to give up, does so alone."""

    def __init__(self, function: Callable[[L], Any]) -> None:
        self.function = function
        self.answers: SimpleQueue[Any] = SimpleQueue()
        self.turn = threading.Lock()


class Desk(Generic[L]):
    """Questions are functions of the loop, called in its thread; what they return must be frozen. ``wake`` wakes the loop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._closed = threading.Event()
        self._questions: SimpleQueue[_Question[L]] = SimpleQueue()

    def ask(self, question: Callable[[L], T]) -> T:
        """What the loop says; raises ``Unanswered``, and the ``TaskqError`` that the question raised there.

        What was not answered in time is not done later either: whoever asks again would have it done twice.
        """
        asked: _Question[L] = _Question(question)
        self._questions.put(asked)
        # After the question is there: whoever closes the desk sees it, or is seen here.
        if self._closed.is_set():
            raise Unanswered(ENDED)
        self._wake()
        try:
            answer: T | TaskqError = asked.answers.get(timeout=PATIENCE)
        except Empty:
            if asked.turn.acquire(blocking=False):
                raise Unanswered(f"the worker's loop has not answered for {PATIENCE:g} s") from None
            # It is being answered at this moment.
            answer = asked.answers.get()
        if isinstance(answer, TaskqError):
            raise answer
        return answer

    def attend(self, loop: L) -> None:
        """Answer what has been asked; for the loop. Where that is much, the rest waits for the loop's next turn."""
        for _ in range(MOST_AT_ONCE):
            if self._questions.empty():
                return
            asked = self._questions.get()
            if not asked.turn.acquire(blocking=False):
                continue
            try:
                asked.answers.put(asked.function(loop))
            except TaskqError as error:
                asked.answers.put(error)
            except Exception as error:  # the asker's mistake, and not the loop's end
                logger.error("question_failed", error=repr(error), exc_info=error)
                asked.answers.put(TaskqError(f"the worker could not answer: {error!r}"))
        self._wake()

    def close(self) -> None:
        """Answer nothing any more; for the loop."""
        self._closed.set()
        while not self._questions.empty():
            self._questions.get().answers.put(Unanswered(ENDED))
