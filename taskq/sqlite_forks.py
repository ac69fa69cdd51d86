"""Forks of a process that uses SQLite: every connection is closed before, and opened again on both sides at its next use.

A copy would do harm even unused: SQLite keeps its file locks in a table per process, and a child that inherits the table
believes in locks that only its parent holds. Then it can never write, or the write-ahead log is deleted under its hands.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol


class Forked(Protocol):
    """What of a database a fork has to do with. ``lock`` is held by whoever uses it."""

    lock: threading.RLock

    def park(self) -> None:
        """Close the connection before a fork, unless the forking thread is inside a transaction; the caller holds ``lock``."""

    def disown(self) -> None:
        """Forget the parent's state in a forked child."""


# Known to the module because Python's fork hooks take no arguments. A dictionary: no thread can get between its ``valuerefs``.
_databases: weakref.WeakValueDictionary[int, Forked] = weakref.WeakValueDictionary()
_held: list[Forked] = []
# Held while a database becomes known, and throughout a fork: nobody opens another one meanwhile.
_registering = threading.Lock()


def watch(database: Forked) -> None:
    """Heed the database from now on; to be called before it is opened, by who holds its lock."""
    with _registering:
        _databases[id(database)] = database


def _before_fork() -> None:
    """Wait for what is under way in other threads, and close every connection."""
    give_up = time.monotonic() + 10.0
    while True:
        # Long enough for a thread that waits for other processes: the more locks are held here, the sooner it has its turn.
        held = [database for database in _known() if database.lock.acquire(timeout=0.5)]
        _registering.acquire()
        # Others may have become known while these were waited for.
        if set(map(id, _known())) <= set(map(id, held)) or time.monotonic() > give_up:
            break
        _registering.release()
        # Another thread is in a transaction, and may need one of the others to end it.
        for database in held:
            database.lock.release()
    for database in held:
        database.park()
    _held[:] = held


def _known() -> list[Forked]:
    return [database for reference in _databases.valuerefs() if (database := reference())]


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().lock.release()
    _registering.release()


def _after_fork_in_child() -> None:
    _registering.release()
    _held.clear()
    for database in _known():
        database.disown()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
