"""Hears of results: one subscribed connection and one thread for all that this process waits for.

The thread owns the connection. Others tell it what to subscribe to by saying so under the lock and calling it over Redis
itself, on a channel of its own. Invariant: whoever listens is told ``LOOK`` after each moment from which on the server passes
everything on to it; so what was stored before is found by looking, and what is stored later is heard. Nothing of it outlives
its process, and with nobody to listen for the thread ends by itself.
"""

from __future__ import annotations

import os
import queue
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from redis.exceptions import ConnectionError as ConnectionFailed
from redis.exceptions import RedisError

from taskq import log
from taskq.errors import BackendError
from taskq.results.redis.connection import Server

#: Told in the place of a message: something may have been missed, look for yourself.
LOOK = b""
#: Seconds of silence after which the server is asked for a sign of life, or nobody left to listen for is given up.
_QUIET = 10.0
#: Seconds between two attempts to connect.
_PAUSE = 0.2
#: Seconds that the thread has to end.
_GOODBYE = 1.0

# Known to the module because Python's fork hooks take no arguments. A dictionary: no thread can get between its ``valuerefs``.
_listeners: weakref.WeakValueDictionary[int, Listener] = weakref.WeakValueDictionary()

logger = log.get_logger("taskq.results")

Ear = queue.SimpleQueue[bytes]


class Listener:
    """Listens at channels on behalf of threads."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._start_anew()
        _listeners[id(self)] = self

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._call = f"taskq-call-{uuid.uuid4()}"
        self._ears: dict[bytes, set[Ear]] = {}
        #: The channels that were subscribed to, and those of them that the server has confirmed.
        self._subscribed: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._thread: threading.Thread | None = None
        self._pubsub: Any = None

    @contextmanager
    def listening(self, channel: bytes) -> Iterator[Ear]:
        """What is published in this channel, and ``LOOK``; raises ``BackendError``."""
        ear: Ear = queue.SimpleQueue()
        with self._lock:
            self._ears.setdefault(channel, set()).add(ear)
            if channel in self._confirmed:
                ear.put(LOOK)
            known = channel in self._subscribed
            running = self._thread is not None
            if not running:
                self._closed.clear()
                self._thread = threading.Thread(target=self._run, name="taskq-listener", daemon=True)
                self._thread.start()
        try:
            if running and not known:
                with self._server.asked() as client:
                    client.publish(self._call, b"")
            yield ear
        finally:
            with self._lock:
                ears = self._ears[channel]
                ears.discard(ear)
                if not ears:
                    del self._ears[channel]

    def close(self) -> None:
        """End the thread; who listens still hears nothing more."""
        self._closed.set()
        if (thread := self._thread) is not None:
            # Where the server is away, the thread has noticed, or ends when nobody has listened for a while.
            with suppress(BackendError), self._server.asked() as client:
                client.publish(self._call, b"")
            thread.join(_GOODBYE)

    def disown(self) -> None:
        """Begin with nothing in a forked child, which must neither use nor keep open what its parent listens with."""
        pubsub = self._pubsub
        self._start_anew()
        if pubsub is not None and pubsub.connection is not None:
            # Closes the descriptor alone: redis-py leaves the connection as it is where another process has opened it.
            pubsub.connection.disconnect()

    def _run(self) -> None:
        client: Any = self._server.client
        while True:
            try:
                with closing(client.pubsub()) as self._pubsub:
                    self._listen(self._pubsub)
            except (RedisError, OSError):
                # Whoever waits is none the wiser and looks for itself in a while; that call tells it what is wrong.
                self._closed.wait(_PAUSE)
            except Exception as error:  # the thread must not end while somebody listens
                logger.error("listener_failed", error=repr(error), exc_info=error)
                self._closed.wait(_PAUSE)
            with self._lock:
                self._subscribed.clear()
                self._confirmed.clear()
                if self._closed.is_set() or not self._ears:
                    self._thread = self._pubsub = None
                    return

    def _listen(self, pubsub: Any) -> None:
        """Pass on what comes, until there is nobody left to listen for."""
        pubsub.subscribe(self._call)
        asked = False
        while not self._closed.is_set():
            message: dict[str, Any] | None = pubsub.get_message(timeout=_QUIET)
            self._adjust(pubsub)
            if message is not None:
                asked = False
                self._hear(message["type"], message["channel"], message["data"])
            elif not self._subscribed:
                return
            elif asked:
                raise ConnectionFailed("the server is silent")
            else:
                asked = True
                pubsub.ping()

    def _adjust(self, pubsub: Any) -> None:
        """Subscribe to what is wanted, and to nothing else."""
        with self._lock:
            wanted = self._ears.keys() - self._subscribed
            unwanted = self._subscribed - self._ears.keys()
            self._subscribed = set(self._ears)
            self._confirmed -= unwanted
        if wanted:
            pubsub.subscribe(*wanted)
        if unwanted:
            pubsub.unsubscribe(*unwanted)

    def _hear(self, kind: str, channel: Any, data: Any) -> None:
        if kind not in {"subscribe", "message"}:
            return
        with self._lock:
            if kind == "subscribe" and channel in self._subscribed:
                self._confirmed.add(channel)
            for ear in self._ears.get(channel, ()):
                ear.put(LOOK if kind == "subscribe" else data)


def _after_fork_in_child() -> None:
    for reference in _listeners.valuerefs():
        if listener := reference():
            listener.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
