"""Chords in an SQLite file: their members are rows, and how many there are is kept in the row of the chord.

Invariant: ``counted`` is the number of the chord's rows in ``chord_members`` until it is over, and who completes it is decided
in one transaction.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from taskq.errors import RecordRefused
from taskq.results.keys import integer, key_of
from taskq.results.store import CHORD_SECONDS, CLAIM_SECONDS, Barrier, Gathering, Part
from taskq.sqlite import Database

#: Where a member without an index stands: after those that have one. SQLite takes no two nulls for the same member.
_LAST = integer(sys.maxsize)
#: What a row has beside its blob, in bytes at most; together they must be no more than SQLite takes.
_BESIDE = 2_000

_OPEN = """
insert into chords (id, size, expires) values (?, ?, ?)
on conflict (id) do update set size = coalesce(chords.size, excluded.size), expires = excluded.expires where not over
"""
_MEET = """
insert into chords (id, expires) values (?, ?) on conflict (id) do update set expires = excluded.expires where not over
"""
_COUNT = """
insert into chord_members (chord, id, place, status, result) values (?, ?, ?, ?, ?) on conflict do nothing returning 1
"""
_CLAIM = """
update chords set claimant = ?, claimed_until = ?
where id = ? and (claimant is null or claimant = ? or claimed_until <= ?) returning 1
"""
_CLOSE = """
update chords set over = 1, claimant = null, expires = ?
where id in (select value from json_each(?)) and claimant = ? and not over returning id
"""


class SqliteChords:
    """Counts in this database; that a chord is over is forgotten after ``ttl`` seconds."""

    def __init__(self, database: Database, ttl: float) -> None:
        self._database = database
        self._ttl = ttl
        self.claim_seconds = CLAIM_SECONDS
        self.keep_seconds = max(ttl, CHORD_SECONDS)

    def open(self, barriers: Sequence[Barrier]) -> None:
        """The chords are about to begin; raises ``DatabaseError``."""
        now = time.time()
        rows = [(key_of(barrier.chord), integer(barrier.size), now + self.keep_seconds) for barrier in barriers]
        with self._database.transaction():
            self._forget_expired([key for key, *_ in rows], now)
            self._database.execute_many(_OPEN, rows)

    def count(self, parts: Sequence[Part], claimant: str) -> list[Gathering]:
        """Count these, and say how their chords stand then; raises ``DatabaseError`` and ``RecordRefused``."""
        now = time.time()
        for part in parts:
            check_size(self._database, part.id, part.result)
        with self._database.transaction():
            self._forget_expired([key_of(part.chord) for part in parts], now)
            return [self._counted(part, key_of(part.chord), claimant, now) for part in parts]

    def close(self, chords: Sequence[str], claimant: str) -> None:
        """What follows these has been started by the holder of the claim; raises ``DatabaseError``."""
        with self._database.transaction():
            keys = json.dumps([key_of(chord) for chord in chords])
            closed = self._database.execute(_CLOSE, (time.time() + self._ttl, keys, claimant))
            self._database.execute_many("delete from chord_members where chord = ?", closed)

    def _counted(self, part: Part, key: str, claimant: str, now: float) -> Gathering:
        self._database.execute(_MEET, (key, now + self.keep_seconds))
        size, counted, over = self._chord(key)
        if over:
            return Gathering("over")
        place = _LAST if part.index is None else integer(part.index)
        if self._database.execute(_COUNT, (key, key_of(part.id), place, part.status, part.result)):
            counted += 1
            self._database.execute("update chords set counted = ? where id = ?", (counted, key))
        if size is None or counted < size:
            return Gathering("waiting")
        if not self._database.execute(_CLAIM, (claimant, now + self.claim_seconds, key, claimant, now)):
            return Gathering("contested")
        return Gathering("complete", self._members(part.chord, key))

    def _chord(self, key: str) -> tuple[int | None, int, bool]:
        [(size, counted, over)] = self._database.execute("select size, counted, over from chords where id = ?", (key,))
        return size, counted, bool(over)

    def _members(self, chord: str, key: str) -> tuple[Part, ...]:
        rows = self._database.execute(
            "select place, id, status, result from chord_members where chord = ? order by place, rowid", (key,)
        )
        return tuple(Part(chord, None if place == _LAST else place, *rest) for place, *rest in rows)

    def _forget_expired(self, keys: Sequence[str], now: float) -> None:
        self._database.execute(
            "delete from chords where id in (select value from json_each(?)) and expires <= ?", (json.dumps(keys), now)
        )


def check_size(database: Database, task_id: str, result: bytes) -> None:
    """Raises ``RecordRefused`` for a result that no row can hold: refused by SQLite, it would undo the whole transaction."""
    most = database.most_bytes - _BESIDE
    if len(result) > most:
        raise RecordRefused(f"the result of {task_id!r} has {len(result):,} bytes, and SQLite takes {most:,}")
