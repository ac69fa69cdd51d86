"""Results in an SQLite file: the embedded backend. Beside the embedded broker, it shares its file and its transactions.

Invariant: one row per task id at most; who waits for an id is told by the transaction that stores its end.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from taskq import liveness
from taskq.liveness import Pipe
from taskq.results.keys import integer, key_of
from taskq.results.ledger import Ledger
from taskq.results.sqlite_chords import SqliteChords, check_size
from taskq.results.sqlite_ledger import SqliteLedger
from taskq.results.store import EXPIRE_SECONDS, Chords, Condition, Leave, Record
from taskq.sqlite import Database, path_of

#: Seconds between two looks of a waiter, should its bell have been lost with the storing process between commit and bell.
_SAFETY_NET = 1.0
#: How many expired rows to delete in one transaction, which keeps everybody else out.
_CHUNK = 50

_INSERT = """
insert into results (id, status, meta, attempt, round, run, own, expires) values (?1, ?2, ?3, ?4, ?5, ?6, ?6 is not null, ?7)
"""
# Which record may replace which is the promise of ResultStore; what is over its time to live has no say any more.
_STORE = f"""{_INSERT}
on conflict (id) do update set
    status = excluded.status, meta = excluded.meta, attempt = excluded.attempt, expires = excluded.expires,
    run = iif(excluded.run is null and excluded.round <= results.round and results.expires > ?8, results.run, excluded.run),
    round = excluded.round, own = excluded.own
where results.expires <= ?8 or (
    excluded.run = results.run and excluded.status <> 'STARTED'
    and (results.status <> 'SUCCESS' or excluded.status = 'SUCCESS')
) or (
    (results.run is null or excluded.round > results.round
        or (excluded.round = results.round and (results.status = 'STARTED' or not results.own)))
    and excluded.attempt >= results.attempt
    and (results.status <> 'SUCCESS' or excluded.status = 'SUCCESS')
    and (results.status in ('STARTED', 'RETRY') or excluded.status not in ('STARTED', 'RETRY')
        or excluded.attempt > results.attempt)
)
"""
_BEGIN = f"""{_INSERT}
on conflict (id) do update set
    status = excluded.status, meta = excluded.meta, attempt = excluded.attempt, expires = excluded.expires,
    run = excluded.run, round = excluded.round, own = excluded.own
where results.expires <= ?8
    or (results.status = 'STARTED' and results.run = excluded.run)
    or (results.status = 'STARTED' and results.run is null and excluded.round >= results.round)
    or (results.status <> 'SUCCESS' and excluded.round > results.round)
returning 1
"""
# The round stays: what belongs to an earlier one must not begin.
_RELEASE = "update results set run = null, own = 0 where id = ? and run = ? and status = 'STARTED'"
_REPLACE = "update results set meta = ? where id = ? and meta = ? and status = 'STARTED' returning 1"
# Whoever waits is told only of an end that stands: its row is what the next one to store an end finds it by.
_TELL = """
delete from waiters where id in (
    select id from results where id in (select value from json_each(?)) and status not in ('STARTED', 'RETRY')
    and expires > ?
) returning waiter
"""
# The members of a chord before the chord itself, whose deletion would take all of them with it at once.
_EXPIRE = (
    """
    delete from chord_members where rowid in (
        select member.rowid from chords join chord_members member on member.chord = chords.id where chords.expires <= ? limit ?
    )
    """,
    *(
        f"delete from {table} where {key} in (select {key} from {table} where expires <= ? limit ?)"  # noqa: S608  # our names
        for table, key in (("chords", "id"), ("documents", "name"), ("ledger", "key"), ("results", "id"))
    ),
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
        self._idle: list[Pipe] = []
        self.chords: Chords | None = SqliteChords(self._database, ttl)
        self.ledger: Ledger | None = SqliteLedger(self._database)

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably and wake who waits for an end among them; raises ``DatabaseError`` and ``RecordRefused``."""
        now = time.time()
        rows = self._rows(records, now)
        ends = [key for key, status, *_ in rows if status not in ("STARTED", "RETRY")]
        with self._database.transaction():
            self._database.execute_many(_STORE, rows)
            waiters = self._database.execute(_TELL, (json.dumps(ends), now))
            if waiters:
                owners = tuple(waiter for (waiter,) in waiters)
                self._database.after_commit(liveness.ring, self._folder, "waiter", owners, liveness.READY)

    def begin(self, records: Sequence[Record]) -> list[Leave]:
        """Which of these may begin; raises as ``store``."""
        rows = self._rows(records, time.time())
        with self._database.transaction():
            return [self._leave(row) for row in rows]

    def release(self, records: Sequence[Record]) -> None:
        """Others may begin these; raises ``DatabaseError``."""
        with self._database.transaction():
            self._database.execute_many(_RELEASE, [(key_of(record.id), record.run) for record in records])

    def replace(self, changes: Sequence[tuple[Record, bytes]]) -> list[bool]:
        """Which of these beginnings stood as they were fetched, and say this now; raises as ``store``."""
        for record, meta in changes:
            check_size(self._database, record.id, meta)
        with self._database.transaction():
            return [bool(self._database.execute(_REPLACE, (meta, key_of(record.id), record.meta))) for record, meta in changes]

    def _leave(self, row: tuple[Any, ...]) -> Leave:
        if self._database.execute(_BEGIN, row):
            return "granted"
        [(status,)] = self._database.execute("select status from results where id = ?", row[:1])
        return "taken" if status == "STARTED" else "over"

    def _rows(self, records: Sequence[Record], now: float) -> list[tuple[Any, ...]]:
        """What is bound to the statements. What SQLite would refuse is refused here: later, it would undo what is shared."""
        for record in records:
            check_size(self._database, record.id, record.meta)
        expires = now + self._ttl
        return [
            (
                key_of(record.id),
                record.status,
                record.meta,
                integer(record.attempt),
                integer(record.round),
                record.run,
                math.inf if record.lasting and not record.is_end else expires,
                now,
            )
            for record in records
        ]

    def fetch(self, task_ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, in their order; raises ``DatabaseError``."""
        keys = [key_of(task_id) for task_id in task_ids]
        rows = self._database.execute(
            """
            select id, status, cast(meta as blob), attempt from results
            where id in (select value from json_each(?)) and expires > ?
            """,
            (json.dumps(keys), time.time()),
        )
        found = {key: rest for key, *rest in rows}
        return [Record(task_id, *found[key]) if key in found else None for task_id, key in zip(task_ids, keys, strict=True)]

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The end of this id as soon as there is one, or None after ``timeout`` seconds; raises ``DatabaseError``."""
        give_up = None if timeout is None else time.monotonic() + timeout
        record = self._end(task_id)
        if record is not None or (timeout is not None and timeout <= 0):
            return record
        key, pipe = key_of(task_id), self._take_pipe()
        try:
            # A waiter need not survive the loss of power, hence no fsync. Whoever stores from here on rings the pipe, and what
            # was stored before is found by the first look.
            with self._database.transaction(durable=False):
                self._database.execute("insert into waiters values (?, ?)", (key, pipe.id))
            while (record := self._end(task_id)) is None:
                left = _SAFETY_NET if give_up is None else min(_SAFETY_NET, give_up - time.monotonic())
                if left <= 0:
                    break
                pipe.wait(left)
                pipe.read()
            if record is None:
                with self._database.transaction(durable=False):
                    self._database.execute("delete from waiters where id = ? and waiter = ?", (key, pipe.id))
            return record
        finally:
            self._idle.append(pipe)

    def _end(self, task_id: str) -> Record | None:
        [record] = self.fetch([task_id])
        return record if record is not None and record.is_end else None

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete these records; raises ``DatabaseError``."""
        keys = json.dumps([key_of(task_id) for task_id in task_ids])
        with self._database.transaction():
            self._database.execute("delete from results where id in (select value from json_each(?))", (keys,))

    def keep(self, name: str, document: bytes, ttl: float) -> None:
        """Keep a document; raises ``DatabaseError``."""
        row = key_of(name), document, time.time() + ttl
        with self._database.transaction():
            self._database.execute("insert or replace into documents values (?, ?, ?)", row)

    def document(self, name: str) -> bytes | None:
        """The document of this name, or None; raises ``DatabaseError``."""
        now = time.time()
        rows = self._database.execute("select document from documents where name = ? and expires > ?", (key_of(name), now))
        return rows[0][0] if rows else None

    def expire(self) -> bool:
        """Forget some of what is over its time to live, and of the waiters that died; raises ``DatabaseError``."""
        stop = time.monotonic() + EXPIRE_SECONDS
        if not liveness.reap(self._database, "waiter", stop):
            return True
        for statement in _EXPIRE:
            gone = _CHUNK
            while gone == _CHUNK:
                if time.monotonic() > stop:
                    return True
                with self._database.transaction(durable=False, patience=EXPIRE_SECONDS):
                    gone = self._database.execute_many(statement, [(time.time(), _CHUNK)])
        return False

    def condition(self) -> Condition:
        """The library is the server."""
        return Condition(product="SQLite", version=sqlite3.sqlite_version)

    def close(self) -> None:
        """Release the pipes, and the file unless it is the consumer's."""
        while (pipe := self._idle_pipe()) is not None:
            pipe.close()
        if not self._shared:
            self._database.close()

    def _take_pipe(self) -> Pipe:
        while (pipe := self._idle_pipe()) is not None:
            # A forked child finds the pipes of its parent here, closed.
            if pipe.fileno() >= 0 and pipe.in_place():
                return pipe
            pipe.close()
        return Pipe(self._folder, "waiter")

    def _idle_pipe(self) -> Pipe | None:
        # Without a lock, which a fork in another thread would leave locked in the child: the list is safe by itself.
        try:
            return self._idle.pop()
        except IndexError:
            return None
