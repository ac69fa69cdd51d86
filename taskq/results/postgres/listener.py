"""Waiting for ends: one connection and one thread for all the waiters of a process, told by NOTIFY.

The thread looks for everything that is waited for each time it has begun to listen, and for an end that it is told of, or whose
waiter is new. So no end is missed, whatever happens to the connection. It also looks now and then although it was told nothing:
that finds a dead connection, and serves those who reach the server through a pooler that loses notifications.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import psycopg

from taskq import log
from taskq.decoding import decoded
from taskq.errors import BackendError, MessageError
from taskq.results.postgres.connections import Connection, Connections
from taskq.results.store import Record

#: Whose ends are stored is told on this channel, as a JSON array of their keys.
CHANNEL = "taskq_results"
#: A notification's limit is 8000 bytes.
LONGEST = 7900
#: Seconds between two looks at everything that is waited for.
LOOK_EVERY = 2.0
#: How long nobody may wait before the connection is closed, in seconds.
LINGER = 10.0
#: How long the server may be gone before the waiters are told so, in seconds; it may be restarting.
PATIENCE = 5.0
#: Seconds between two tries to connect.
PAUSE = 0.1

logger = log.get_logger("taskq.results")
_decode = msgspec.json.Decoder(list[str]).decode

Find = Callable[[Connection, Sequence[str]], Mapping[str, Record]]


def payloads(keys: Iterable[str]) -> list[str]:
    """The notifications that tell of these keys."""
    texts: list[str] = []
    batch: list[str] = []
    size = 2
    for key in keys:
        # The quotes, the comma, and a backslash for whatever JSON may escape.
        length = len(key.encode()) + key.count('"') + key.count("\\") + 3
        if batch and size + length > LONGEST:
            texts.append(msgspec.json.encode(batch).decode())
            batch, size = [], 2
        batch.append(key)
        size += length
    if batch:
        texts.append(msgspec.json.encode(batch).decode())
    return texts


class _Waiter:
    __slots__ = ("error", "event", "record")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.record: Record | None = None
        self.error: BackendError | None = None


class Listener:
    """Waits on behalf of all threads. ``find`` asks for the ends of some keys."""

    def __init__(self, connections: Connections, find: Find) -> None:
        self._connections = connections
        self._find = find
        self._inherited: list[object] = []
        self._begin()
        _listeners.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, list[_Waiter]] = {}
        self._new: set[str] = set()
        self._thread: _Thread | None = None
        self._closed = False

    def wait(self, key: str, timeout: float | None) -> Record | None:
        """The end of this key as soon as there is one, or None after ``timeout`` seconds; raises ``BackendError``."""
        waiter = _Waiter()
        with self._lock:
            if self._closed:
                raise BackendError("the result backend is closed")
            self._waiters.setdefault(key, []).append(waiter)
            self._new.add(key)
            if self._thread is None:
                self._thread = _Thread(self)
            self._thread.wake()
        try:
            waiter.event.wait(timeout)
        finally:
            with self._lock:
                self._waiters[key].remove(waiter)
                if not self._waiters[key]:
                    del self._waiters[key]
        if waiter.error is not None:
            raise waiter.error
        return waiter.record

    def close(self) -> None:
        """Stop listening; who waits is told so."""
        with self._lock:
            self._closed = True
            if self._thread is not None:
                self._thread.wake()
        self.fail(BackendError("the result backend was closed"))

    # What follows is the thread's.

    def connect(self) -> Connection:
        """A connection that listens; raises ``BackendError`` and what psycopg raises."""
        connection = self._connections.connect()
        try:
            connection.execute(f"listen {CHANNEL}".encode())
        except BaseException:
            connection.close()
            raise
        return connection

    def awaited(self, told: Iterable[str] | None) -> list[str]:
        """What there is to look for: of the keys that the thread was told of, and the new ones; or of all, with None."""
        with self._lock:
            wanted = self._waiters.keys() & (self._new.union(told) if told is not None else self._waiters.keys())
            self._new.clear()
        return sorted(wanted)

    def look(self, connection: Connection, keys: Sequence[str]) -> None:
        """Look for these ends, and hand out those that there are."""
        found = self._find(connection, keys) if keys else {}
        with self._lock:
            for key, record in found.items():
                for waiter in self._waiters.get(key, ()):
                    waiter.record = record
                    waiter.event.set()

    def fail(self, error: BackendError) -> None:
        """Nobody need wait any longer."""
        with self._lock:
            for waiters in self._waiters.values():
                for waiter in waiters:
                    waiter.error = error
                    waiter.event.set()

    def refusal(self, error: Exception) -> BackendError:
        """What an error of psycopg's means to us."""
        return self._connections.refusal(error)

    def leave(self, idle_since: float | None) -> bool:
        """Whether the thread may end, because nobody has waited for long; the next waiter starts another one."""
        with self._lock:
            idle = not self._waiters and idle_since is not None and time.monotonic() - idle_since > LINGER
            if idle or self._closed:
                self._thread = None
            return idle or self._closed

    @property
    def idle(self) -> bool:
        """Whether nobody waits."""
        return not self._waiters

    def after_fork_in_child(self) -> None:
        """The thread and its connection are the parent's."""
        self._inherited.append(self._thread)
        self._begin()


class _Thread:
    """Listens until nobody has waited for long."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._ear, self._bell = socket.socketpair()
        for end in (self._ear, self._bell):
            end.setblocking(False)
        self._connection: Connection | None = None
        self._notifications: list[psycopg.Notify] = []
        self._down_since: float | None = None
        self._idle_since: float | None = None
        threading.Thread(target=self._run, name="taskq-listen", daemon=True).start()

    def wake(self) -> None:
        """There is a new waiter, or the end has come."""
        with contextlib.suppress(BlockingIOError):  # so many bells ring already
            self._bell.send(b"!")

    def _run(self) -> None:
        while not self._listener.leave(self._idle_since):
            try:
                self._turn()
                self._down_since = None
            except (BackendError, psycopg.Error, TimeoutError) as error:
                self._lose(error)
            except Exception as error:  # the thread must not end while somebody waits
                logger.error("listener_failed", error=repr(error), exc_info=error)
                self._lose(error)
        self._hang_up()
        self._ear.close()
        self._bell.close()

    def _turn(self) -> None:
        if self._connection is None:
            self._connection = self._listener.connect()
            # For what comes together with an answer.
            self._connection.add_notify_handler(self._notifications.append)
            told = None
        else:
            told = self._hear(self._connection)
        self._listener.look(self._connection, self._listener.awaited(told))
        if not self._listener.idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()

    def _hear(self, connection: Connection) -> list[str] | None:
        """Wait for what happens next; returns the keys that we were told of, or None when it is time to look for all."""
        told = self._told(connection)
        if told:
            return told
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._ear, selectors.EVENT_READ)
            if not selector.select(LOOK_EVERY):
                return None
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)
        return self._told(connection)

    def _told(self, connection: Connection) -> list[str]:
        payloads = [notification.payload.encode() for notification in self._notifications]
        self._notifications.clear()
        connection.pgconn.consume_input()
        while notification := connection.pgconn.notifies():
            payloads.append(notification.extra)
        return [key for payload in payloads for key in _keys(payload)]

    def _lose(self, error: Exception) -> None:
        """The connection is gone. A server that restarts is back soon; one that is not must not be waited for for ever."""
        self._hang_up()
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since > PATIENCE:
            self._listener.fail(self._listener.refusal(error))
        time.sleep(PAUSE)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _keys(payload: bytes) -> list[str]:
    """Whose ends a notification tells of; anybody may send one that says something else."""
    try:
        return decoded(_decode, payload, "a notification")
    except MessageError as error:
        logger.warning("notification_ignored", channel=CHANNEL, error=str(error))
        return []


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for listener in _listeners:
        listener.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
