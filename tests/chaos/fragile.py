"""A consumer and a result store that fail at a boundary of one's choice: the real ones, with a fuse between their steps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from taskq.broker.interface import Delivery
from taskq.broker.sqlite.consumer import Committed, SqliteConsumer
from taskq.config import Settings
from taskq.errors import DatabaseError
from taskq.message import Publication
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record
from taskq.sqlite import Database


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing of the process runs after it, so nobody may handle it but the test."""


class Fuse:
    """Counts the boundaries that are passed, and blows at the one that it is set to."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._killing = False

    def set(self, boundary: int | None, *, killing: bool = False) -> None:
        """Blow at the boundary of this number, with a kill or with an error of the database; None: never."""
        self._left, self._killing = boundary, killing

    def passed(self) -> None:
        """One boundary further."""
        if self._left is None:
            return
        if self._left == 0:
            self._left = None
            raise KilledError if self._killing else DatabaseError("the fuse has blown")
        self._left -= 1

    def passed_commit(self) -> None:
        """What is committed can only be followed by a kill: no error can undo it."""
        if self._killing:
            self.passed()


class FragileConsumer(SqliteConsumer):
    """A consumer with a fuse before every step of a settlement, before the commit and after it."""

    def __init__(self, settings: Settings, queues: Sequence[str], fuse: Fuse) -> None:
        super().__init__(settings, queues)
        self._fuse = fuse
        self._acking: list[Delivery] = []
        #: What was acked in a transaction that was committed.
        self.settled: list[Delivery] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._acking.clear()
        with super().transaction():
            self._fuse.passed()
            yield
            self._fuse.passed()
        self.settled += self._acking
        self._fuse.passed_commit()

    def publish(self, publications: Iterable[Publication]) -> Committed:
        self._fuse.passed()
        return super().publish(publications)

    def ack(self, delivery: Delivery) -> None:
        self._fuse.passed()
        super().ack(delivery)
        self._acking.append(delivery)

    def vanish(self) -> None:
        """What a SIGKILL leaves: the rows claimed, the pipe in its folder, and nobody who has it open."""
        watch = self._transport.watch
        for peer in list(watch._peers):
            watch._forget(peer)
        watch._selector.close()
        watch.pipe.disown()
        self._channel.database.close()


class FragileResults(SqliteResults):
    """A store with a fuse before and after it stores."""

    def __init__(self, url: str, database: Database, fuse: Fuse) -> None:
        super().__init__(url, 3600.0, database)
        self._fuse = fuse

    def store(self, records: Sequence[Record]) -> None:
        self._fuse.passed()
        super().store(records)
        self._fuse.passed()


@contextmanager
def interrupted(database: Database, steps: int | None) -> Iterator[None]:
    """Whatever SQLite does inside is interrupted once, after so many of its own smallest steps; None: not at all."""
    connection = database._opened()
    left, statement = steps, ""

    def note(sql: str) -> None:
        nonlocal statement
        statement = sql

    def handler() -> bool:
        nonlocal left
        # SQLite would report a commit as interrupted that it has carried out already; no fault of a disk looks like that.
        if left is None or (statement == "commit" and not connection.in_transaction):
            return False
        left = left - 1 if left else None
        return left is None

    connection.set_trace_callback(note)
    connection.set_progress_handler(handler, 1)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 1)
        connection.set_trace_callback(None)


@contextmanager
def full_disk(database: Database, spare_pages: int) -> Iterator[None]:
    """The database can grow by so many pages only."""
    connection: sqlite3.Connection = database._opened()
    (pages,) = connection.execute("pragma page_count").fetchone()
    connection.execute(f"pragma max_page_count = {pages + spare_pages}")
    try:
        yield
    finally:
        connection.execute("pragma max_page_count = 1000000")
