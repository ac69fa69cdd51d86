"""Results in an SQLite file: the embedded backend. Beside the embedded broker, it shares its file and its transactions.

Invariant: one row per task id at most; who waits for an id is told by the transaction that stores its end.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence

from taskq import liveness
from taskq.liveness import Pipe
from taskq.results.store import Record
from taskq.sqlite import Database, path_of

#: Seconds between two looks of a waiter, should its bell have been lost with the storing process between commit and bell.
_SAFETY_NET = 1.0
#: How many expired records to delete in one transaction, which keeps everybody else out.
_CHUNK = 1000

# Which record may replace which is the promise of ResultStore; what is over its time to live has no say any more.
_STORE = """
insert into results (id, status, meta, expires) values (?, ?, ?, ?)
on conflict (id) do update set status = excluded.status, meta = excluded.meta, expires = excluded.expires
where excluded.status = 'SUCCESS' or results.status <> 'SUCCESS' or results.expires <= ?
"""


class SqliteResults:
    """The store in the file of ``url``, whose records live ``ttl`` seconds. Safe from many threads at once and after a fork.

    Given the ``database`` of the consumer on the same file, ``store`` becomes a part of its transaction.
    """

    def __init__(self, url: str, ttl: float, database: Database | None = None) -> None:
        path = path_of(url)
        self._ttl = ttl
        self._shared = database is not None and database.path == path
        self._database = database if database is not None and self._shared else Database(path)
        self._folder = liveness.folder_of(self._database)
        self._lock = threading.Lock()
        self._idle: list[Pipe] = []

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably and wake who waits for an end among them; raises ``DatabaseError``."""
        now = time.time()
        expires = now + self._ttl
        rows = [(record.id, record.status, record.meta, expires if record.is_end else math.inf, now) for record in records]
        with self._database.transaction():
            self._database.execute_many(_STORE, rows)
            waiters = self._database.execute(
                "delete from waiters where id in (select value from json_each(?)) returning waiter",
                (json.dumps([record.id for record in records if record.is_end]),),
            )
            if waiters:
                owners = tuple(waiter for (waiter,) in waiters)
                self._database.after_commit(liveness.ring, self._folder, "waiter", owners, liveness.READY)

    def fetch(self, task_id: str) -> Record | None:
        """The record of this id, or None; raises ``DatabaseError``."""
        rows = self._database.execute("select status, meta from results where id = ? and expires > ?", (task_id, time.time()))
        return Record(id=task_id, status=rows[0][0], meta=rows[0][1]) if rows else None

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
        record = self.fetch(task_id)
        return record if record is not None and record.is_end else None

    def expire(self) -> int:
        """Forget what is over its time to live, and the waiters that died; returns how many records went."""
        liveness.reap(self._database, "waiter")
        count = 0
        while True:
            with self._database.transaction(durable=False):
                gone = self._database.execute(
                    "delete from results where id in (select id from results where expires <= ? limit ?) returning 1",
                    (time.time(), _CHUNK),
                )
            count += len(gone)
            if len(gone) < _CHUNK:
                return count

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
