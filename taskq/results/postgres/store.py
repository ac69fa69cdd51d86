"""Results in PostgreSQL. Whoever waits for an end is told by NOTIFY, within the transaction that stores it.

Invariant: each call that changes anything is one transaction, and may be repeated as a whole: it then changes nothing more.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from taskq.errors import RecordRefused
from taskq.results.keys import integer, key_of
from taskq.results.ledger import Ledger
from taskq.results.postgres.chords import EXPIRE as CHORDS_EXPIRE
from taskq.results.postgres.chords import PostgresChords
from taskq.results.postgres.connections import PATIENCE, Connection, Connections, patience_for
from taskq.results.postgres.ledger import EXPIRE as LEDGER_EXPIRE
from taskq.results.postgres.ledger import PostgresLedger
from taskq.results.postgres.listener import CHANNEL, Listener, payloads
from taskq.results.store import EXPIRE_SECONDS, Chords, Condition, Leave, Record

#: How many expired rows go in one transaction.
_CHUNK = 100
#: What PostgreSQL takes in one message, with room for what is beside the records.
_MOST_BYTES = 1_000_000_000
#: How many records are asked for at once.
_FETCH = 1000

_GIVEN = """
given as (
    select * from unnest(
        %(ids)s::text[], %(statuses)s::text[], %(attempts)s::bigint[], %(rounds)s::bigint[], %(runs)s::text[],
        %(metas)s::bytea[], %(seconds)s::float8[]
    ) as given (id, status, attempt, round, run, meta, seconds)
)
"""
_INSERT = """
    insert into taskq_results as standing (id, status, attempt, round, run, own, meta, expires)
    select id, status, attempt, round, run, run is not null, meta, coalesce(now() + seconds * interval '1 second', 'infinity')
    from given order by id collate "C"
    on conflict (id) do update set
        status = excluded.status, attempt = excluded.attempt, meta = excluded.meta, expires = excluded.expires,
        round = excluded.round, own = excluded.own,
"""
# Which record may replace which is the promise of ResultStore; what is over its time to live has no say any more.
_STORE = f"""
with {_GIVEN}, stored as (
    {_INSERT} run = case
        when excluded.run is null and excluded.round <= standing.round and standing.expires > now() then standing.run
        else excluded.run end
    where standing.expires <= now() or (
        excluded.run = standing.run and excluded.status <> 'STARTED'
        and (excluded.status = 'SUCCESS' or standing.status <> 'SUCCESS')
    ) or (
        (standing.run is null or excluded.round > standing.round
            or (excluded.round = standing.round and (standing.status = 'STARTED' or not standing.own)))
        and excluded.attempt >= standing.attempt
        and (excluded.status not in ('STARTED', 'RETRY') or standing.status in ('STARTED', 'RETRY')
            or excluded.attempt > standing.attempt)
        and (excluded.status = 'SUCCESS' or standing.status <> 'SUCCESS')
    )
)
select pg_notify(%(channel)s, payload) from unnest(%(payloads)s::text[]) as told (payload)
"""  # noqa: S608  # put together from our own pieces
_BEGIN = f"""
with {_GIVEN}
{_INSERT} run = excluded.run
where standing.expires <= now()
    or (standing.status = 'STARTED' and standing.run = excluded.run)
    or (standing.status = 'STARTED' and standing.run is null and excluded.round >= standing.round)
    or (standing.status <> 'SUCCESS' and excluded.round > standing.round)
returning id
"""
# The round stays: what belongs to an earlier one must not begin.
_RELEASE = """
with standing as (
    select taskq_results.id from taskq_results join unnest(%s::text[], %s::text[]) as given (id, run)
        on taskq_results.id = given.id and taskq_results.run = given.run
    where status = 'STARTED' order by taskq_results.id for update of taskq_results
)
update taskq_results set run = null, own = false from standing where taskq_results.id = standing.id
"""
_REPLACE = """
with standing as (
    select taskq_results.id, given.new from taskq_results
    join unnest(%s::text[], %s::bytea[], %s::bytea[]) as given (id, old, new)
        on taskq_results.id = given.id and taskq_results.meta = given.old
    where status = 'STARTED' order by taskq_results.id for update of taskq_results
)
update taskq_results set meta = new from standing where taskq_results.id = standing.id returning taskq_results.id
"""
_STATUSES = "select id, status from taskq_results where id = any(%s)"
_FETCHED = """
select id, status, meta, attempt from taskq_results where id = any(%s) and expires > now()
"""
_FORGET = """
with standing as (select id from taskq_results where id = any(%s) order by id for update)
delete from taskq_results using standing where taskq_results.id = standing.id
"""
_KEEP = """
insert into taskq_documents (name, document, expires) values (%s, %s, now() + %s * interval '1 second')
on conflict (name) do update set document = excluded.document, expires = excluded.expires
"""
_DOCUMENT = "select document from taskq_documents where name = %s and expires > now()"
# Whoever finds a row locked leaves it to who locked it: another worker that expires, or that has something new to say.
_EXPIRE = """
with due as (select id from taskq_results where expires <= now() order by expires limit %s for update skip locked)
delete from taskq_results using due where taskq_results.id = due.id
"""
_EXPIRE_DOCUMENTS = """
with due as (select name from taskq_documents where expires <= now() order by expires limit %s for update skip locked)
delete from taskq_documents using due where taskq_documents.name = due.name
"""

_OPTIONS = ("fsync", "synchronous_commit", "full_page_writes")
_CONDITION = """
select extract(epoch from clock_timestamp()), current_setting('server_version'),
       current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')
"""


class PostgresResults:
    """The store in the database at ``url``, whose records live ``ttl`` seconds. Safe for many threads, and across ``fork``.

    Its tables are made when it is first used. Ids of more than 500 bytes, or with characters that cannot be printed, are kept
    under their SHA-256.
    """

    reply_to: str | None = None

    def __init__(self, url: str, ttl: float) -> None:
        self._ttl = ttl
        self._connections = Connections(url)
        self._listener = Listener(self._connections, _ends)
        self.chords: Chords | None = PostgresChords(self._connections, ttl)
        self.ledger: Ledger | None = PostgresLedger(self._connections)

    def store(self, records: Sequence[Record]) -> None:
        """Keep the records durably and wake who waits for an end among them; raises ``BackendError`` and ``RecordRefused``."""
        told = payloads(dict.fromkeys(key_of(record.id) for record in records if record.is_end))
        statements = [self._row_arrays(batch) for batch in _rounds(records)]

        def work(connection: Connection) -> None:
            if len(statements) == 1:
                connection.execute(_STORE, {**statements[0], "payloads": told})
                return
            with connection.transaction():
                for arrays in statements:
                    connection.execute(_STORE, {**arrays, "payloads": told})

        if statements:
            self._connections.run(work, _patience_for(records))

    def begin(self, records: Sequence[Record]) -> list[Leave]:
        """Which of these may begin; raises as ``store``."""
        leaves: dict[tuple[str, str | None], Leave] = {}
        for batch in _rounds(records):
            arrays = self._row_arrays(batch)
            found = self._connections.run(functools.partial(_begun, arrays=arrays), _patience_for(batch))
            leaves |= {(record.id, record.run): found[key_of(record.id)] for record in batch}
        return [leaves[record.id, record.run] for record in records]

    def release(self, records: Sequence[Record]) -> None:
        """Others may begin these; raises ``BackendError``."""
        self._change(_RELEASE, ([key_of(record.id) for record in records], [record.run for record in records]))

    def replace(self, changes: Sequence[tuple[Record, bytes]]) -> list[bool]:
        """Which of these beginnings stood as they were fetched, and say this now; raises as ``store``."""
        keys = [key_of(record.id) for record, _ in changes]
        values = keys, [record.meta for record, _ in changes], [meta for _, meta in changes]
        replaced = self._connections.run(lambda connection: {key for (key,) in connection.execute(_REPLACE, values)})
        return [key in replaced for key in keys]

    def fetch(self, task_ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, in their order, None where there is none; raises ``BackendError``."""
        found: dict[str, Record] = {}
        keys = [key_of(task_id) for task_id in task_ids]
        for start in range(0, len(keys), _FETCH):
            some = keys[start : start + _FETCH]
            found |= self._connections.run(functools.partial(_fetched, keys=some))
        return [_renamed(found.get(key), task_id) for key, task_id in zip(keys, task_ids, strict=True)]

    def wait(self, task_id: str, timeout: float | None) -> Record | None:
        """The end of this id as soon as there is one, or None after ``timeout`` seconds; raises ``BackendError``.

        A server that is gone for a few seconds meanwhile is waited for too.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        [record] = self.fetch([task_id])
        if record is not None and record.is_end:
            return record
        left = None if give_up is None else give_up - time.monotonic()
        if left is not None and left <= 0:
            return None
        return _renamed(self._listener.wait(key_of(task_id), left), task_id)

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete these records; raises ``BackendError``."""
        self._change(_FORGET, ([key_of(task_id) for task_id in task_ids],))

    def keep(self, name: str, document: bytes, ttl: float) -> None:
        """Keep a document of the caller's for ``ttl`` seconds from now, the last one of a name; raises ``BackendError``."""
        self._change(_KEEP, (key_of(name), document, ttl), patience_for(len(document)))

    def document(self, name: str) -> bytes | None:
        """The document of this name, or None; raises ``BackendError``."""
        row = self._connections.run(lambda one: one.execute(_DOCUMENT, (key_of(name),), binary=True).fetchone())
        return None if row is None else bytes(row[0])

    def expire(self) -> bool:
        """Forget some of what is over its time to live; raises ``BackendError``."""
        stop = time.monotonic() + EXPIRE_SECONDS
        for statement in (*CHORDS_EXPIRE, _EXPIRE_DOCUMENTS, LEDGER_EXPIRE, _EXPIRE):
            gone = _CHUNK
            while gone == _CHUNK:
                if time.monotonic() > stop:
                    return True
                gone = self._change(statement, (_CHUNK,))
        return False

    def condition(self) -> Condition:
        """What decides whether PostgreSQL keeps what it has confirmed; raises ``BackendError``."""

        def work(connection: Connection) -> Condition:
            asked_at = time.time()
            row = connection.execute(_CONDITION).fetchone()
            moment, version, *values = row or ()
            ahead = float(moment) - (asked_at + time.time()) / 2
            options = dict(zip(_OPTIONS, map(str, values), strict=True))
            return Condition(product="PostgreSQL", version=str(version).partition(" ")[0], ahead=ahead, options=options)

        return self._connections.run(work)

    def close(self) -> None:
        """Close the connections."""
        self._listener.close()
        self._connections.close()

    def _change(self, statement: str, values: Sequence[Any], patience: float = PATIENCE) -> int:
        return self._connections.run(lambda connection: connection.execute(statement.encode(), values).rowcount, patience)

    def _row_arrays(self, records: Sequence[Record]) -> dict[str, Any]:
        return {
            "ids": [key_of(record.id) for record in records],
            "statuses": [record.status for record in records],
            "attempts": [integer(record.attempt) for record in records],
            "rounds": [integer(record.round) for record in records],
            "runs": [record.run for record in records],
            "metas": [record.meta for record in records],
            "seconds": [None if record.lasting and not record.is_end else self._ttl for record in records],
            "channel": CHANNEL,
        }


def _rounds(records: Iterable[Record]) -> list[list[Record]]:
    """The records apart, in their order: one statement may change a row only once."""
    rounds: list[list[Record]] = []
    seen: Counter[str] = Counter()
    for record in records:
        key = key_of(record.id)
        number = seen[key]
        seen[key] += 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(record)
    return rounds


def _patience_for(records: Sequence[Record]) -> float:
    """How long to wait for these to be stored; raises ``RecordRefused`` for more than goes in one message."""
    size = sum(len(record.meta) for record in records)
    if size > _MOST_BYTES:
        raise RecordRefused(f"{size:,} bytes of results are more than PostgreSQL takes at once")
    return patience_for(size)


def _begun(connection: Connection, arrays: Mapping[str, Any]) -> dict[str, Leave]:
    granted = {key for (key,) in connection.execute(_BEGIN, arrays).fetchall()}
    others = [key for key in arrays["ids"] if key not in granted]
    standing = dict(connection.execute(_STATUSES, (others,)).fetchall()) if others else {}
    # One that has gone meanwhile had ended: a beginning does not go.
    return {
        key: "granted" if key in granted else "taken" if standing.get(key) == "STARTED" else "over" for key in arrays["ids"]
    }


def _fetched(connection: Connection, keys: Sequence[str]) -> dict[str, Record]:
    rows = connection.execute(_FETCHED, (list(keys),), binary=True).fetchall()
    return {key: Record(key, status, bytes(meta), attempt) for key, status, meta, attempt in rows}


def _ends(connection: Connection, keys: Sequence[str]) -> Mapping[str, Record]:
    return {key: record for key, record in _fetched(connection, keys).items() if record.is_end}


def _renamed(record: Record | None, task_id: str) -> Record | None:
    """The record under the id that it was asked for."""
    if record is None or record.id == task_id:
        return record
    return msgspec.structs.replace(record, id=task_id)
