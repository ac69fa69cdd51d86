"""The Kombu transport on SQLite: the connection, its sign of life, and the duties of a consumer.

Owns when to look at the database; what the rows mean belongs to ``channel``. The duties, which every consumer performs for all:
release what dead consumers held, and let delayed messages go when they are due. Invariant: nothing is polled but the safety
net, once a second; all else is told through named pipes.
"""

from __future__ import annotations

import sqlite3
import time
from queue import Empty
from typing import Any

from kombu.transport import virtual

from taskq import liveness
from taskq.broker.sqlite import channel
from taskq.errors import ConnectionLost, DatabaseError
from taskq.sqlite import Database, path_of

#: Seconds between two looks around for what no pipe told: a byte that a full pipe lost, or a clock that was set.
_SAFETY_NET = 1.0
# What is no number was no moment of taskq's, and is not waited for: SQLite sorts it behind infinity, which is what 9e999 is.
_ANY_DUE = "select 1 from messages where due <= ? or due > 9e999 limit 1"
_LET_GO = "update messages set due = null where due <= ? or due > 9e999 returning queue"
_NEXT_DUE = "select min(due) from messages where due <= 9e999"


class Transport(virtual.Transport):  # type: ignore[misc]
    """See ``kombu.transport.virtual.Transport``. A transport is its own connection. Used by one thread at a time."""

    Channel = channel.Channel
    can_parse_url = True
    driver_type = "sqlite"
    driver_name = "sqlite3"
    default_port = None
    connection_errors = (*virtual.Transport.connection_errors, DatabaseError, ConnectionLost)
    implements = virtual.Transport.implements.extend(exchange_type=frozenset(["direct", "topic", "fanout"]), batch_publish=True)

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._watch: liveness.Watch | None = None
        self._next_look = 0.0
        self._next_due: float | None = 0.0
        #: Whether there may be control entries that nobody has read through this connection.
        self.controls_due = True

    def establish_connection(self) -> Transport:
        """Open the file, and release what dead consumers held; raises ``DatabaseError``."""
        client = self.client
        # Kombu hands over the whole URL, except where it fails over to another one, which it takes apart.
        url = client.hostname or f"sqlite:///{client.virtual_host}"
        self.database = Database(path_of(url), 5.0 if client.connect_timeout is None else client.connect_timeout)
        self._identity = self.database.identity
        try:
            liveness.reap(self.database, "consumer")
        except BaseException:
            self.database.close()
            raise
        return self

    def close_connection(self, _: Transport) -> None:
        """Give everything back that this connection holds, and close the file."""
        watch, database = self._watch, self.database
        try:
            for opened in list(self.channels):
                opened.close()
            if watch is not None and watch.pipe.fileno() >= 0:
                liveness.release(database, watch.pipe.id)
        finally:
            # Should giving back have failed, on a full disk for example, then peers do it as for a dead consumer.
            if watch is not None:
                watch.close()
            self._watch = None
            database.close()

    def create_channel(self, connection: Transport) -> channel.Channel:
        """A new channel of the connection, which is another transport than this one where Kombu has just failed over."""
        opened = channel.Channel(connection)
        connection.channels.append(opened)
        return opened

    def driver_version(self) -> str:
        """SQLite's version."""
        return sqlite3.sqlite_version

    def as_uri(self, uri: str, *_: Any) -> str:
        """The URL, which holds no secret."""
        return uri

    @property
    def watch(self) -> liveness.Watch:
        """The sign of life of this connection; raises ``ConnectionLost`` in a process forked from the one that made it."""
        if self._watch is None:
            watch = liveness.Watch(liveness.folder_of(self.database))
            try:
                with self.database.transaction(durable=False):
                    # Under no queue: the dead are found through this table, so who may hold messages has to stand in it.
                    self.database.execute("insert into consumers values ('', ?)", (watch.pipe.id,))
                watch.look_around()
            except BaseException:
                watch.close()
                raise
            self._watch = watch
            liveness.ring_everyone(liveness.folder_of(self.database), liveness.PEERS)
        elif self._watch.pipe.fileno() < 0:
            raise ConnectionLost(f"the consumer of {self.database.path} belongs to the process that this one was forked from")
        return self._watch

    @property
    def owner(self) -> int:
        """What stands in the rows of the messages that this connection holds."""
        return self.watch.pipe.id

    def fileno(self) -> int:
        """Readable when ``attend`` or ``drain_events`` has something to do."""
        return self.watch.fileno()

    def add_consumer(self, queue: str) -> None:
        """Be woken for this queue from now on."""
        with self.database.transaction(durable=False):
            self.database.execute("insert or ignore into consumers values (?, ?)", (queue, self.owner))

    def remove_consumer(self, queue: str) -> None:
        """Be woken for this queue no more; if it was to be deleted with its last consumer, that happens now."""
        with self.database.transaction(durable=False):
            self.database.execute("delete from consumers where queue = ? and owner = ?", (queue, self.owner))

    def announce_delayed(self) -> None:
        """Tell all consumers that a delayed message may be due earlier than what they wait for."""
        self._next_due = 0.0
        liveness.ring_everyone(liveness.folder_of(self.database), liveness.DUE)

    def drain_events(self, _: Transport, timeout: float | None = None) -> None:
        """Deliver what is ready, or wait for it; raises ``TimeoutError`` after ``timeout`` seconds."""
        give_up = None if timeout is None else time.monotonic() + timeout
        self.attend(0.0)
        while True:
            wait = self.perform_duties()
            if self._deliver_ready():
                return
            if give_up is not None:
                wait = min(wait, give_up - time.monotonic())
                if wait <= 0.0:
                    raise TimeoutError(f"no message within {timeout} s")
            self.attend(wait)

    def _deliver_ready(self) -> bool:
        delivered = False
        for opened in list(self.channels):
            try:
                opened.drain_events()
            except Empty:
                continue
            delivered = True
        return delivered

    def attend(self, timeout: float) -> None:
        """Wait for ``timeout`` seconds at most to be woken, and note what for."""
        news = self.watch.poll(timeout)
        if liveness.READY in news:
            for opened in self.channels:
                opened.hungry = True
        if liveness.DUE in news:
            self._next_due = 0.0
        if liveness.CONTROL in news:
            self.controls_due = True
        if liveness.DEATH in news or (liveness.PEERS in news and self.watch.look_around()):
            liveness.reap(self.database, "consumer")

    def perform_duties(self) -> float:
        """Do what is due, and say in how many seconds to come again."""
        now = time.monotonic()
        if now >= self._next_look:
            self._look_around()
            self._next_look = now + _SAFETY_NET
        if self._next_due is not None and self._next_due <= time.time():
            self._let_go()
        wait = self._next_look - now
        return wait if self._next_due is None else max(0.0, min(wait, self._next_due - time.time()))

    def _look_around(self) -> None:
        if not self.watch.pipe.in_place():
            raise ConnectionLost(f"{self.watch.pipe.path} was removed, so others take this consumer for dead; connect again")
        if not self.database.in_place or self.database.identity != self._identity:
            raise ConnectionLost(f"{self.database.path} was deleted or replaced, and its messages with it; connect again")
        self.watch.look_around()
        liveness.reap(self.database, "consumer")
        self._next_due = 0.0
        self.controls_due = True
        for opened in self.channels:
            opened.hungry = True

    def _let_go(self) -> None:
        """Make the delayed messages ready that are due, and note when the next one is."""
        now = time.time()
        if self.database.execute(_ANY_DUE, (now,)):
            # A loss of power that undoes this leaves them delayed and due, so that it is done again.
            with self.database.transaction(durable=False):
                rows = self.database.execute(_LET_GO, (now,))
                for (queue,) in set(rows):
                    liveness.wake(self.database, queue)
        self._next_due = self.database.execute(_NEXT_DUE)[0][0]
