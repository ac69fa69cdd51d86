"""Connections to PostgreSQL: opened when a call needs one, kept for the next call, given up when the server falls silent.

Invariant: one call at a time uses a connection, and whatever goes wrong in a call ends its connection. So none is ever found in
the middle of something. A connection belongs to the process that opened it; a forked child leaves its parent's alone.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from taskq.config import masked, without_secrets
from taskq.errors import BackendError, ConfigurationError, RecordRefused
from taskq.results.postgres.schema import prepare

T = TypeVar("T")
#: Seconds for a connection, and for each answer after that.
PATIENCE = 1.0
#: Connections at once: each call takes one for a millisecond.
MOST = 8
#: How long a thread waits for its turn while others have all of them, in seconds.
TURN = 5.0
#: What the slowest server takes in.
_BYTES_PER_SECOND = 4_000_000
#: Seconds for creating the tables, or for somebody else who does.
_PREPARING = 10.0
#: What a URL may say otherwise. A peer that is gone without a word is noticed although nothing is sent; the timeout is short so
#: that a server that is back is found soon.
_DEFAULTS = {
    "connect_timeout": "2",
    "fallback_application_name": "taskq",
    "client_encoding": "utf8",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
}
# Whatever the defaults of database and role are. The server waits for a row no longer than we wait for the server: it need not
# work for those who have given up. Who is stopped in the middle of a transaction does not keep its rows for ever. And members
# of chords are counted right only where each statement sees what was committed before it.
_SETTINGS = """
select set_config('lock_timeout', '900ms', false),
       set_config('idle_in_transaction_session_timeout', '5s', false),
       set_config('default_transaction_isolation', 'read committed', false)
"""


def patience_for(size: int) -> float:
    """Seconds for a call that sends so many bytes: a disk may be slow, and a call that gives up is made again, for ever."""
    return PATIENCE + size / _BYTES_PER_SECOND


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose every wait for the server ends with a ``TimeoutError`` after ``patience`` seconds of silence.

    ``used`` says that it has served a call before, so that its server may be gone since.
    """

    patience = PATIENCE
    used = False

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        """psycopg's hook for every wait."""
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, waiting: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """psycopg asks each tenth of a second whether to go on."""
        give_up = time.monotonic() + self.patience
        try:
            wanted = next(waiting)
            while True:
                if ready := (yield wanted):
                    give_up = time.monotonic() + self.patience
                elif time.monotonic() > give_up:
                    raise TimeoutError(f"no answer within {self.patience:g} s")
                wanted = waiting.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer


class Connections:
    """The connections of one process to the server at ``url``, a few at most. Safe for many threads, and across ``fork``."""

    def __init__(self, url: str) -> None:
        try:
            self._conninfo = make_conninfo("", **{**_DEFAULTS, **conninfo_to_dict(url)})
        except psycopg.Error as error:
            raise ConfigurationError(f"backend={_shown(url)!r} is no URL of PostgreSQL's: {_reason(error, url)}") from None
        self._url = url
        self._inherited: list[list[Connection]] = []
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._open = 0
        self._opening = 0
        self._waiting = 0
        # The last try that failed, and when it had begun.
        self._failure: tuple[Exception, float] | None = None
        self._closed = False

    def run(self, work: Callable[[Connection], T], patience: float = PATIENCE) -> T:
        """What ``work`` makes of a connection; it may be run twice. Raises ``BackendError`` within ``patience`` or little more.

        A connection that stood idle may have lost its server, which shows only now: then the work is done on a new one.
        """
        while True:
            connection = self._take()
            used, connection.used, connection.patience = connection.used, True, patience
            try:
                answer = work(connection)
            except (psycopg.Error, TimeoutError, ValueError, OverflowError) as error:
                stale = used and connection.broken
                self._discard(connection)
                if not stale:
                    raise self.refusal(error) from error
                self._discard_idle()
            except BaseException:
                # KeyboardInterrupt too
                self._discard(connection)
                raise
            else:
                self._put_back(connection)
                return answer

    def connect(self) -> Connection:
        """A connection of the caller's own; raises ``BackendError``."""
        connection = self._take()
        with self._changed:
            self._open -= 1
            self._changed.notify()
        return connection

    def refusal(self, error: Exception) -> BackendError:
        """What an error of psycopg's means to us."""
        if isinstance(error, BackendError):
            return error
        about_values = isinstance(error, psycopg.DataError | psycopg.errors.ProgramLimitExceeded | ValueError | OverflowError)
        return (RecordRefused if about_values else BackendError)(f"{_shown(self._url)}: {_reason(error, self._url)}")

    def close(self) -> None:
        """Close the connections; those that are in use, afterwards."""
        with self._changed:
            self._closed = True
        self._discard_idle()

    def _take(self) -> Connection:
        began = time.monotonic()
        with self._changed:
            self._waiting += 1
            try:
                while not self._idle:
                    # One that had begun before says nothing of now.
                    if self._failure is not None and self._failure[1] >= began:
                        raise self.refusal(self._failure[0]) from self._failure[0]
                    if self._opening < self._waiting and self._open < MOST:
                        self._open_another()
                    # A server that does not answer is given up soon; connections that are all in use come back.
                    patience = TURN if self._open > self._opening else PATIENCE
                    if not self._changed.wait(began + patience - time.monotonic()) and not self._idle:
                        raise BackendError(f"{_shown(self._url)}: no connection within {patience:g} s")
                return self._idle.pop()
            finally:
                self._waiting -= 1

    def _open_another(self) -> None:
        """In a thread: name services know no deadline. A connection that comes too late for its call serves the next one."""
        threading.Thread(target=self._connect, name="taskq-connect", daemon=True).start()
        self._opening += 1
        self._open += 1

    def _connect(self) -> None:
        connection: Connection | None = None
        failure: tuple[Exception, float] | None = None
        began = time.monotonic()
        try:
            connection = Connection.connect(self._conninfo, autocommit=True, prepare_threshold=None)
            connection.patience = _PREPARING
            connection.execute(_SETTINGS)
            prepare(connection)
            connection.patience = PATIENCE
        except Exception as error:  # noqa: BLE001  # raised again in the threads that wait
            failure = error, began
        with self._changed:
            self._opening -= 1
            if failure is None and connection is not None and not self._closed:
                self._idle.append(connection)
                connection = None
            else:
                self._open -= 1
                self._failure = failure
            self._changed.notify_all()
        if connection is not None:
            connection.close()

    def _put_back(self, connection: Connection) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(connection)
                self._changed.notify()
                return
        self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        connection.close()
        with self._changed:
            self._open -= 1
            self._changed.notify()

    def _discard_idle(self) -> None:
        with self._changed:
            idle = self._idle.copy()
            self._idle.clear()
        for connection in idle:
            self._discard(connection)

    def after_fork_in_child(self) -> None:
        """The parent's connections stay the parent's: not used here, nor closed, which would end them for the parent."""
        self._inherited.append(self._idle)
        self._begin()


def _shown(url: str) -> str:
    """The URL without what is secret in it; parameters may be."""
    return masked(url).partition("?")[0]


def _reason(error: Exception, url: str) -> str:
    """What the error says, on one line. libpq quotes pieces of a URL that it cannot read, and so pieces of a password."""
    return without_secrets(" ".join(str(error).split()) or type(error).__name__, url)


_pools: weakref.WeakSet[Connections] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pool in _pools:
        pool.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
