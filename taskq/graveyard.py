"""Where dead letters lie: walking through them, replaying and purging, on both brokers alike.

A letter is read from the broker, dealt with and forgotten before the next one: the memory needed does not grow with their
number. Invariant: a letter leaves its dead-letter queue only once its copy is confirmed, or because somebody purged it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from taskq import dead
from taskq.broker.interface import Letters
from taskq.broker.publisher import Publisher
from taskq.dead import DeadLetter, Filter
from taskq.errors import BrokerError, ConfigurationError
from taskq.message import Publication, dead_letter_queue

#: For how long a slow replay keeps a dead-letter queue open, in seconds. Some brokers hand the letters out meanwhile, and take
#: whoever holds one for half an hour for stuck.
HOLD = 300.0


def visit(publisher: Publisher, queues: Iterable[str], wanted: Filter) -> Iterator[DeadLetter]:
    """The wanted letters of these queues, oldest first."""
    for queue in queues:
        with publisher.letters(dead_letter_queue(queue)) as letters:
            for _, letter in _wanted(letters, queue, wanted):
                yield letter


def replay(
    publisher: Publisher, queues: Iterable[str], wanted: Filter, *, rate: float | None = None, hold: float = HOLD
) -> Iterator[DeadLetter]:
    """Send the wanted letters to their queues again, at most ``rate`` a second; each is yielded once it is sent.

    Raises ``ConfigurationError`` for a rate that makes no sense, before anything is sent.
    """
    pace = _Pace(rate)
    return (letter for queue in queues for letter in _replay_queue(publisher, queue, wanted, pace, hold))


def purge(publisher: Publisher, queues: Iterable[str], wanted: Filter) -> int:
    """Delete the wanted letters; returns how many."""
    if not wanted:
        return sum(publisher.purge(dead_letter_queue(queue)) for queue in queues)
    return count(_purged(publisher, queues, wanted))


def count(letters: Iterable[DeadLetter]) -> int:
    """How many there are; an error on the way holds the ids of those before it in ``confirmed``."""
    done: list[str] = []
    number = 0
    try:
        for letter in letters:
            number += 1
            if letter.id is not None:
                done.append(letter.id)
    except BrokerError as error:
        error.confirmed = tuple(done)
        raise
    return number


def _wanted(letters: Letters, queue: str, wanted: Filter) -> Iterator[tuple[Any, DeadLetter]]:
    for handle, message in letters:
        letter = dead.read(message, queue)
        if wanted.matches(letter):
            yield handle, letter


def _replay_queue(publisher: Publisher, queue: str, wanted: Filter, pace: _Pace, hold: float) -> Iterator[DeadLetter]:
    """Keeps the queue open for ``hold`` seconds at a time, and then looks for the rest anew."""
    started = time.time()
    # What dies again meanwhile is not there when the queue is opened, but is when it is opened anew.
    again, more = False, True
    while more:
        more = False
        pace.wait()
        let_go = time.monotonic() + hold
        with publisher.letters(dead_letter_queue(queue)) as letters:
            for handle, letter in _wanted(letters, queue, wanted):
                if again and letter.last_at is not None and letter.last_at.timestamp() > started:
                    continue
                if pace.due > let_go:
                    again = more = True
                    break
                pace.wait()
                copy = dead.revived(letter.message, time.time())
                if letters.move(handle, Publication(queue, copy)):
                    pace.count()
                    yield letter


def _purged(publisher: Publisher, queues: Iterable[str], wanted: Filter) -> Iterator[DeadLetter]:
    for queue in queues:
        with publisher.letters(dead_letter_queue(queue)) as letters:
            for handle, letter in _wanted(letters, queue, wanted):
                if letters.remove(handle):
                    yield letter


class _Pace:
    """At most so many a second, evenly: what was late is not made up for."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None and (type(rate) not in (int, float) or not 0 < rate < float("inf")):
            raise ConfigurationError(f"rate is a number of letters per second above 0, not {rate!r}")
        self._interval = 0.0 if rate is None else 1.0 / rate
        self.due = time.monotonic()

    def wait(self) -> None:
        """Until the next one is due."""
        time.sleep(max(0.0, self.due - time.monotonic()))

    def count(self) -> None:
        """One more was sent."""
        self.due = max(self.due, time.monotonic()) + self._interval
