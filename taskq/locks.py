"""Locks over a fork: a child has only the thread that forked, and what another one held in the parent nobody would release."""

from __future__ import annotations

import os
import threading
import weakref


class Lock:
    """A lock that is free in a forked child; what it guards must make sense there, however far another thread had come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Be free, whoever held it."""
        self._lock = threading.Lock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()

#: Held while a driver is imported. Kombu's modules import each other in circles: of two threads that import different ones of
#: them at once, one may find the other's half done.
importing = Lock()


def _after_fork_in_child() -> None:
    for lock in _locks:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
