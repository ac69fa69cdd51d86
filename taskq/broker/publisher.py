"""The application's way to the broker: any thread, before and after ``fork``, within one deadline, over a pool of sessions.

A call returns once the broker has taken responsibility for every message. A session that broke is replaced. Where the
connection broke after messages were sent, they are sent again, with the same task ids: the broker may or may not have taken
them, the caller asked for them to be there, and a task that runs twice is within the promise of at least once, while a lost
one is not.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from taskq.broker.interface import Found, Letters, QueueStats, Session
from taskq.config import Settings, masked
from taskq.control import Control
from taskq.errors import BrokerError, BrokerUnreachable, ConfigurationError, ConnectionLost, MessageTooLarge
from taskq.locks import Lock
from taskq.message import Publication

T = TypeVar("T")
OpenSession = Callable[[Settings, float], Session]
#: Seconds between two tries after the second, twice as many after each: a broker may break every connection.
PAUSE = 0.05
LONGEST_PAUSE = 1.0
#: Sessions kept open between calls; more are opened when more threads publish at once, and closed afterwards.
MAX_IDLE = 8


class Publisher:
    """Publishes through sessions of one broker, each used by one thread at a time."""

    def __init__(self, settings: Settings, open_session: OpenSession) -> None:
        self._settings = settings
        self._open_session = open_session
        self._lock = Lock()
        self._idle: list[Session] = []
        self._inherited: list[list[Session]] = []
        _publishers.add(self)

    def publish(self, publications: Sequence[Publication]) -> None:
        """Returns once the broker has taken responsibility for every message, within ``publish_timeout`` seconds.

        Raises ``BrokerUnreachable``, ``PublishTimeout``, ``Unroutable``, ``PublishRejected``, ``QueueMismatch``,
        ``UnsupportedFeature`` and ``ConnectionLost``.
        """
        deadline = time.monotonic() + self._settings.publish_timeout
        remaining = tuple(publications)
        in_doubt: ConnectionLost | None = None
        tries = 0
        while remaining:
            tries += 1
            try:
                self._with_session(functools.partial(_publish, remaining, deadline), deadline)
                remaining = ()
            except ConnectionLost as error:
                if error.in_doubt:
                    in_doubt = error
                if time.monotonic() >= deadline:
                    raise
                if error.unconfirmed is not None:
                    remaining = error.unconfirmed
                _pause(tries, deadline)
            except BrokerUnreachable as error:
                if in_doubt is None:
                    raise
                raise ConnectionLost(
                    f"{in_doubt}; that was before it confirmed, so the message may exist. Then: {error}"
                ) from in_doubt

    def depth(self, queue: str) -> int | None:
        """How many messages are ready in the queue, or None where there is no such queue."""
        return self._ask(lambda session, _: session.depth(queue))

    def oldest(self, queue: str) -> float | None:
        """How long the queue's oldest ready message has waited, in seconds; None where nobody knows, or there is none."""
        return self._ask(lambda session, _: session.oldest(queue))

    def purge(self, queue: str) -> int:
        """Delete the ready messages of the queue; returns how many."""
        return self._ask(lambda session, _: session.purge(queue))

    def holds(self, task_id: str) -> bool | None:
        """Whether the broker holds a message of this task, dead letters apart; None where it cannot tell."""
        return self._ask(lambda session, _: session.holds(task_id))

    def find(self, task_id: str) -> list[Found] | None:
        """Where the messages of this task are, dead letters too; None where the broker cannot look for one."""
        return self._ask(lambda session, _: session.find(task_id))

    def stats(self, queue: str) -> QueueStats | None:
        """What there is to know of the queue, or None where there is no such queue."""
        return self._ask(lambda session, _: session.stats(queue))

    def verify(self, queue: str) -> tuple[str, ...]:
        """Raises ``QueueMismatch`` where the queue, or what belongs to it, exists with other arguments than ours.

        Returns those that are used although they lack the delivery limit that they would be declared with.
        """
        return self._ask(lambda session, _: session.verify(queue))

    def delete(self, queue: str) -> None:
        """Delete the queue with what belongs to it and is in it, if there is any."""
        self._ask(lambda session, _: session.delete(queue))

    def server(self) -> tuple[str, tuple[int, ...]]:
        """The broker's product, and its version."""
        return self._ask(lambda session, _: session.server())

    def control(self, control: Control) -> None:
        """Returns once the broker keeps the entry for every worker; within ``publish_timeout`` seconds, raises as ``publish``.

        It may be kept twice where a connection broke, which says the same as once.
        """
        self._ask(lambda session, deadline: session.control(control, deadline))

    def controls(self) -> list[Control]:
        """The control entries that stand, oldest first."""
        return self._ask(lambda session, _: session.controls())

    @contextmanager
    def letters(self, queue: str) -> Iterator[Letters]:
        """The queue's messages, to look at and to take out, on a session that is nobody else's inside the block.

        Opened within ``publish_timeout`` seconds. Whatever is not taken out stays in the queue, also when the block raises.
        """
        session, letters = self._open_letters(queue)
        try:
            try:
                yield letters
            except BrokerError:
                raise
            except BaseException:
                # Whoever stops half-way has moved some: where nobody waits for the broker to see to it, they could come back.
                # Ctrl-C may have come in the middle of what the connection was reading, which is no error of the broker's.
                with suppress(BrokerError):
                    letters.close()
                raise
            letters.close()
        except BaseException:
            session.close()
            raise
        self._put_back(session)

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _open_letters(self, queue: str) -> tuple[Session, Letters]:
        deadline = time.monotonic() + self._settings.publish_timeout
        while True:
            session = self._take(deadline)
            try:
                return session, session.letters(queue)
            except ConnectionLost:
                session.close()
                if time.monotonic() >= deadline:
                    raise
            except BaseException:
                session.close()
                raise

    def _ask(self, question: Callable[[Session, float], T]) -> T:
        deadline = time.monotonic() + self._settings.publish_timeout
        tries = 0
        while True:
            tries += 1
            try:
                return self._with_session(lambda session: question(session, deadline), deadline)
            except ConnectionLost:
                if time.monotonic() >= deadline:
                    raise
                _pause(tries, deadline)

    def _with_session(self, use: Callable[[Session], T], deadline: float) -> T:
        session = self._take(deadline)
        try:
            answer = use(session)
        except (ConfigurationError, MessageTooLarge):
            # Found before anything was sent.
            self._put_back(session)
            raise
        except BaseException:
            # KeyboardInterrupt too: a session that was left in the middle would mix up the next call's answers
            session.close()
            raise
        self._put_back(session)
        return answer

    def _take(self, deadline: float) -> Session:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._connect(deadline)

    def _put_back(self, session: Session) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(session)
                return
        session.close()

    def _connect(self, deadline: float) -> Session:
        """Connect in a thread that can be given up: name service and TLS know no deadline."""
        timeout = max(0.0, deadline - time.monotonic())
        attempt = _Attempt(lambda: self._open_session(self._settings, timeout))
        session = attempt.result(timeout)
        if session is None:
            raise BrokerUnreachable(f"cannot reach {masked(self._settings.broker)}: no answer within {timeout:.3g} s")
        return session

    def after_fork_in_child(self) -> None:
        """The parent's sessions stay the parent's: never used here, and never closed, which would close them for the parent."""
        self._inherited.append(self._idle)
        self._idle = []


def _pause(tries: int, deadline: float) -> None:
    """Before the next try; the second one comes at once, since most connections break while nobody uses them."""
    if tries > 1:
        pause = min(LONGEST_PAUSE, PAUSE * 2.0 ** min(tries - 2, 10))
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))


def _publish(publications: Sequence[Publication], deadline: float, session: Session) -> None:
    session.publish(publications, deadline)


class _Attempt:
    """One connection attempt in a daemon thread. What it opens after it was given up is closed at once."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open_session = open_session
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._given_up = False
        self._session: Session | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="taskq-connect", daemon=True).start()

    def result(self, timeout: float) -> Session | None:
        """The session, or None if there is none after ``timeout`` seconds; raises what connecting raised."""
        try:
            self._done.wait(timeout)
        finally:
            with self._lock:
                self._given_up = not self._done.is_set()
        if self._error is not None:
            raise self._error
        return self._session

    def _run(self) -> None:
        session, error = None, None
        try:
            session = self._open_session()
        except BaseException as raised:  # noqa: BLE001 - raised again in the thread that waits
            error = raised
        with self._lock:
            self._session, self._error = session, error
            self._done.set()
            unwanted = self._given_up
        if unwanted and session is not None:
            session.close()


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for publisher in _publishers:
        publisher.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
