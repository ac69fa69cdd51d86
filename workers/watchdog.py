"""The watchdog: notices that the worker has gone deaf, that is, that messages wait and slots are free, and nothing comes.

Whatever the cause, a fresh connection is the cure; where that does not help, a fresh process is. The verdict is the loop's to
carry out. A question to the broker blocks, so a thread asks it, over a connection of its own.

States::

    quiet ──nothing delivered for WATCH_SECONDS──► asked ──messages wait──► in doubt ──still the same queue──► verdict
      ▲                                              │                         │                                  │
      └──────────── a delivery, no free slot, no message, no answer ───────────┴──────────────────────────────────┘
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

from taskq import log
from taskq.broker.publisher import OpenSession, Publisher
from taskq.config import Settings, masked
from taskq.errors import ConnectionLost, TaskqError

#: How long free slots may go without a delivery before the broker is asked, in seconds.
WATCH_SECONDS = 10.0
#: How long after a first answer the broker is asked again, in seconds: meanwhile another worker may have taken what waited.
DOUBT_SECONDS = 2.0
#: How long one question may take, in seconds.
QUESTION_SECONDS = 2.0
#: How many verdicts in a row are to reconnect, before it is time to give up.
RECONNECTS = 2

#: How old what is known of the queues may be, in seconds, before whoever looks has the broker asked again.
DEPTHS_SECONDS = 5.0

Verdict = Literal["reconnect", "give up"]

logger = log.get_logger("taskq.watchdog")


@dataclass(frozen=True, slots=True)
class Depths:
    """What queues held when the broker was last asked, at ``asked_at`` (seconds since the epoch).

    ``ready`` counts messages, ``oldest`` is how long the oldest of them had waited, in seconds, where the broker can tell.
    """

    asked_at: float
    ready: Mapping[str, int]
    oldest: Mapping[str, float]


class Suspicion:
    """The decision, without clock, thread and broker."""

    def __init__(self, now: float) -> None:
        self._verdicts = 0
        #: Whether the last that is known is that messages wait and nobody delivers them.
        self.deaf = False
        self._begin(now)

    def _begin(self, now: float) -> None:
        self.ask_at: float | None = now + WATCH_SECONDS
        self._waiting: frozenset[str] | None = None

    def observe(self, now: float, *, free_slots: bool, delivered: int) -> bool:
        """Whether to ask now which queues have messages waiting; ``delivered`` counts what came since the last call."""
        if delivered:
            self._verdicts = 0
        if delivered or not free_slots:
            self.deaf = False
            self._begin(now)
        if self.ask_at is None or now < self.ask_at:
            return False
        self.ask_at = None
        return True

    @property
    def asked(self) -> bool:
        """Whether an answer is awaited: not any more once something was delivered, or no slot was free, since the question."""
        return self.ask_at is None

    def answer(self, now: float, waiting: frozenset[str] | None) -> Verdict | None:
        """In these queues messages wait; None where the broker could not be asked."""
        if self._waiting is None and waiting:
            self._waiting = waiting
            self.ask_at = now + DOUBT_SECONDS
            return None
        deaf = bool(self._waiting and waiting and self._waiting & waiting)
        self._begin(now)
        if not deaf:
            self.deaf = self.deaf and waiting is None
            return None
        self.deaf = True
        self._verdicts += 1
        return "reconnect" if self._verdicts <= RECONNECTS else "give up"


class Watchdog:
    """Watches on the loop's turns. ``queues`` are those to watch: all but the paused ones.

    ``wake`` is called, in another thread, when there is an answer for ``observe`` to act on.
    """

    def __init__(
        self, settings: Settings, open_session: OpenSession, queues: Collection[str], wake: Callable[[], None], now: float
    ) -> None:
        self.queues = self._consumed = frozenset(queues)
        self._suspicion = Suspicion(now)
        self._asker = Asker(settings, open_session, wake)
        self._question = 0

    @property
    def due(self) -> float | None:
        """When to call ``observe`` at the latest; None while an answer is awaited, which wakes the loop."""
        return self._suspicion.ask_at

    @property
    def deaf(self) -> bool:
        """Whether the last that is known is that messages wait and nobody delivers them."""
        return self._suspicion.deaf

    def observe(self, now: float, *, free_slots: bool, delivered: int) -> Verdict | None:
        """What is to be done, if anything. ``delivered`` counts what came since the last call."""
        if self._suspicion.observe(now, free_slots=free_slots, delivered=delivered):
            self._question += 1
            self._asker.ask(self._question, self.queues)
        verdict = None
        while not self._asker.answers.empty():
            question, waiting = self._asker.answers.get()
            if self._suspicion.asked and question == self._question:
                verdict = self._suspicion.answer(now, waiting)
                if verdict is not None:
                    logger.error("worker_deaf", waiting=sorted(waiting or ()), verdict=verdict)
        return verdict

    def depths(self) -> Depths | None:
        """What all the queues were last found to hold, for any thread; has the broker asked again where that is of long ago."""
        last = self._asker.last
        if last is None or time.time() - last.asked_at > DEPTHS_SECONDS:
            self._asker.look(self._consumed)
        return last

    def close(self) -> None:
        """End the thread; waits for a question that is under way, for ``QUESTION_SECONDS`` at most."""
        self._asker.close()


class Asker:
    """Asks the broker in a thread, a question at a time. ``answers`` holds each question's number with its answer.

    ``last`` is what it has found out of late; other threads may look at it.
    """

    def __init__(self, settings: Settings, open_session: OpenSession, wake: Callable[[], None]) -> None:
        self._publisher = Publisher(dataclasses.replace(settings, publish_timeout=QUESTION_SECONDS), open_session)
        self._wake = wake
        self._questions: SimpleQueue[tuple[int, frozenset[str]] | None] = SimpleQueue()
        self._closed = threading.Event()
        self.answers: SimpleQueue[tuple[int, frozenset[str] | None]] = SimpleQueue()
        self.last: Depths | None = None
        self._looking = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="taskq-watchdog", daemon=True)
        self._thread.start()

    def ask(self, number: int, queues: frozenset[str]) -> None:
        """Ask which of these queues have messages waiting; the answer is None where the broker could not be asked."""
        self._questions.put((number, queues))

    def look(self, queues: frozenset[str]) -> None:
        """Find out what these queues hold, for ``last``; one such question is under way at most."""
        if not self._looking.is_set():
            self._looking.set()
            self._questions.put((0, queues))

    def close(self) -> None:
        """End the thread and close its connection."""
        self._closed.set()
        self._questions.put(None)
        self._thread.join()
        self._publisher.close()

    def _serve(self) -> None:
        while (question := self._questions.get()) is not None:
            number, queues = question
            depths = None
            try:
                depths = self._depths(queues)
            except TaskqError as error:
                logger.debug("depth_unknown", error=str(error))
            except Exception as error:  # without this thread, nobody would notice any more that the worker has gone deaf
                logger.error("depth_failed", error=repr(error), exc_info=error)
            if number:
                waiting = None if depths is None else frozenset(queue for queue, ready in depths.ready.items() if ready)
                self.answers.put((number, waiting))
                self._wake()
            else:
                self.last = depths or self.last
                self._looking.clear()

    def _depths(self, queues: frozenset[str]) -> Depths:
        ready: dict[str, int] = {}
        oldest: dict[str, float] = {}
        for queue in queues:
            if self._closed.is_set():
                break
            ready[queue] = self._publisher.depth(queue) or 0
            if ready[queue] and (age := self._publisher.oldest(queue)) is not None:
                oldest[queue] = age
        return Depths(time.time(), ready, oldest)


def given_up(broker: str) -> ConnectionLost:
    """What a worker ends with that no new connection has mended."""
    return ConnectionLost(
        f"{masked(broker)} delivers nothing although messages wait and slots are free, not even on new connections; the worker "
        "ends, so that whoever watches over it starts another one"
    )
