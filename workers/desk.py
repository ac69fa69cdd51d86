"""The desk: where other threads ask the supervisor's loop, which alone knows how things stand and alone changes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from taskq.errors import TaskqError

#: How long an answer may take, in seconds. A loop that turns answers in milliseconds.
PATIENCE = 3.0
ENDED = "the worker has ended"

L = TypeVar("L")
T = TypeVar("T")


class Unanswered(TaskqError):
    """The loop does not turn at present, or has ended."""


class Desk(Generic[L]):
    """Questions are functions of the loop, called in its thread; what they return must be frozen. ``wake`` wakes the loop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._closed = threading.Event()
        self._questions: SimpleQueue[tuple[Callable[[L], Any], SimpleQueue[Any]]] = SimpleQueue()

    def ask(self, question: Callable[[L], T]) -> T:
        """What the loop says; raises ``Unanswered``, and the ``TaskqError`` that the question raised there."""
        answers: SimpleQueue[T | TaskqError] = SimpleQueue()
        self._questions.put((question, answers))
        # After the question is there: whoever closes the desk sees it, or is seen here.
        if self._closed.is_set():
            raise Unanswered(ENDED)
        self._wake()
        try:
            answer = answers.get(timeout=PATIENCE)
        except Empty:
            raise Unanswered(f"the worker's loop has not answered for {PATIENCE:g} s") from None
        if isinstance(answer, TaskqError):
            raise answer
        return answer

    def attend(self, loop: L) -> None:
        """Answer what has been asked; for the loop."""
        while not self._questions.empty():
            question, answers = self._questions.get()
            try:
                answers.put(question(loop))
            except TaskqError as error:
                answers.put(error)

    def close(self) -> None:
        """Answer nothing any more; for the loop."""
        self._closed.set()
        while not self._questions.empty():
            self._questions.get()[1].put(Unanswered(ENDED))
