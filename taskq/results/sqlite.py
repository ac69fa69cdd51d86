"""Results in an SQLite file: the embedded backend. Beside the embedded broker, it shares its file and its transactions.

Invariant: one row per task id at most; who waits for an id is told by the transaction that stores its end.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Sequence

from taskq import liveness
from taskq.liveness import Pipe
from taskq.results.ledger import Ledger
from taskq.results.sqlite_chords import SqliteChords
from taskq.results.sqlite_ledger import SqliteLedger
from taskq.results.store import Chords, Condition, Record
from taskq.sqlite import Database, path_of

#: Seconds between two looks of a waiter, should its bell have been lost with the storing process between commit and bell.
_SAFETY_NET = 1.0
#: How many expired records to delete in one transaction, which keeps everybody else out.
_CHUNK = 1000

# Which record may replace which is the promise of ResultStore; what is over its time to live has no say any more.
_STORE = """
insert into results (id, status, meta, attempt, expires) values (?, ?, ?, ?, ?)
on conflict (id) do update
set status = excluded.status, meta = excluded.meta, attempt = excluded.attempt, expires = excluded.expires
where results.expires <= ? or (
    excluded.attempt >= results.attempt
    and (results.status <> 'SUCCESS' or excluded.status = 'SUCCESS')
    and (results.status = 'STARTED' or excluded.status <> 'STARTED' or excluded.attempt > results.attempt)
)
"""
# Whoever waits is told only of an end that stands: its row is what the next one to store an end finds it by.
_TELL = """
delete from waiters where id in (
    select id from results where id in (select value from json_each(?)) and status <> 'STARTED' and expires > ?
) returning waiter
"""
_EXPIRE = tuple(
    f"delete from {table} where {key} in (select {key} from {table} where expires <= ? limit ?) returning 1"  # noqa: S608  # our names
    for table, key in (("results", "id"), ("chords", "id"), ("documents", "name"), ("ledger", "key"))
)


class SqliteResults:
    """The store in the file of ``url``, whose records live ``ttl`` seconds. Safe from many threads at once and after a fork.

    Given the ``database`` of the consumer on the same file, what is stored and counted becomes a part of its transaction.
    """

    reply_to: str | None = None

    def __init__(self, url: str, ttl: float, database: Database | None = None) -> None:
        path = path_of(url)
        self._ttl = ttl
        self._shared = database is not None and database.path == path
        self._database = database if database is not None and self._shared else Database(path)
        self._folder = liveness.folder_of(self._database)
        self._lock = threading.Lock()
        self._idle: list[Pipe] = []
        self.chords: Chords | None = SqliteChords(self._database, ttl)
        self.ledger: Ledger | None = SqliteLedger(self._database)

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably and wake who waits for an end among them; raises ``DatabaseError``."""
        now = time.time()
        expires = now + self._ttl
        rows = [(r.id, r.status, r.meta, r.attempt, expires if r.is_end or not r.lasting else math.inf, now) for r in records]
        with self._database.transaction():
            self._database.execute_many(_STORE, rows)
            waiters = self._database.execute(_TELL, (json.dumps([record.id for record in records if record.is_end]), now))
            if waiters:
                owners = tuple(waiter for (waiter,) in waiters)
                self._database.after_commit(liveness.ring, self._folder, "waiter", owners, liveness.READY)

    def fetch(self, task_ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, in their order; raises ``DatabaseError``."""
        rows = self._database.execute(
            "select id, status, meta, attempt from results where id in (select value from json_each(?)) and expires > ?",
            (json.dumps(task_ids), time.time()),
        )
        found = {row[0]: Record(*row) for row in rows}
        return [found.get(task_id) for task_id in task_ids]

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The end of this id as soon as there is one, or None after ``timeout`` seconds; raises ``DatabaseError``."""
        give_up = None if timeout is None else time.monotonic() + timeout
        record = self._end(task_id)
        if record is not None or (timeout is not None and timeout <= 0):
            return record
        pipe = self._take_pipe()
        try:
            # A waiter need not survive the loss of power, hence no fsync. Whoever stores from here on rings the pipe, and what
            # was stored before is found by the first look.
            with self._database.transaction(durable=False):
                self._database.execute("insert into waiters values (?, ?)", (task_id, pipe.id))
            while (record := self._end(task_id)) is None:
                left = _SAFETY_NET if give_up is None else min(_SAFETY_NET, give_up - time.monotonic())
                if left <= 0:
                    break
                pipe.wait(left)
                pipe.read()
            if record is None:
                with self._database.transaction(durable=False):
                    self._database.execute("delete from waiters where id = ? and waiter = ?", (task_id, pipe.id))
            return record
        finally:
            with self._lock:
                self._idle.append(pipe)

    def _end(self, task_id: str) -> Record | None:
        [record] = self.fetch([task_id])
        return record if record is not None and record.is_end else None

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete these records; raises ``DatabaseError``."""
        with self._database.transaction():
            self._database.execute("delete from results where id in (select value from json_each(?))", (json.dumps(task_ids),))

    def keep(self, name: str, document: bytes, ttl: float) -> None:
        """Keep a document; raises ``DatabaseError``."""
        with self._database.transaction():
            self._database.execute("insert or replace into documents values (?, ?, ?)", (name, document, time.time() + ttl))

    def document(self, name: str) -> bytes | None:
        """The document of this name, or None; raises ``DatabaseError``."""
        rows = self._database.execute("select document from documents where name = ? and expires > ?", (name, time.time()))
        return rows[0][0] if rows else None

    def expire(self) -> int:
        """Forget what is over its time to live, and the waiters that died; returns how many records went."""
        liveness.reap(self._database, "waiter")
        records, *_ = [self._expire(statement) for statement in _EXPIRE]
        return records

    def _expire(self, statement: str) -> int:
        count = 0
        while True:
            with self._database.transaction(durable=False):
                gone = self._database.execute(statement, (time.time(), _CHUNK))
            count += len(gone)
            if len(gone) < _CHUNK:
                return count

    def condition(self) -> Condition:
        """The library is the server."""
        return Condition(product="SQLite", version=sqlite3.sqlite_version)

    def close(self) -> None:
        """Release the pipes, and the file unless it is the consumer's."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()
        if not self._shared:
            self._database.close()

    def _take_pipe(self) -> Pipe:
        with self._lock:
            while self._idle:
                pipe = self._idle.pop()
                # A forked child finds the pipes of its parent here, closed.
                if pipe.fileno() >= 0 and pipe.in_place():
                    return pipe
                pipe.close()
        return Pipe(self._folder, "waiter")
