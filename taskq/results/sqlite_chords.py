"""Chords in an SQLite file: their members are rows, and how many there are is kept in the row of the chord.

Invariant: ``counted`` is the number of the chord's rows in ``chord_members`` until it is over, and who completes it is decided
in one transaction.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from taskq.results.store import CLAIM_SECONDS, Barrier, Gathering, Part
from taskq.sqlite import Database

#: Where a member without an index stands: after those that have one. SQLite takes no two nulls for the same member.
_LAST = sys.maxsize

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
    """Counts in this database; what is known of a chord is forgotten ``ttl`` seconds after it was last heard of."""

    def __init__(self, database: Database, ttl: float) -> None:
        self._database = database
        self._ttl = ttl
        self.claim_seconds = CLAIM_SECONDS

    def open(self, barriers: Sequence[Barrier]) -> None:
        """The chords are about to begin; raises ``DatabaseError``."""
        now = time.time()
        with self._database.transaction():
            self._forget_expired([barrier.chord for barrier in barriers], now)
            self._database.execute_many(_OPEN, [(barrier.chord, barrier.size, now + self._ttl) for barrier in barriers])

    def count(self, parts: Sequence[Part], claimant: str) -> list[Gathering]:
        """Count these, and say how their chords stand then; raises ``DatabaseError``."""
        now = time.time()
        with self._database.transaction():
            self._forget_expired([part.chord for part in parts], now)
            return [self._counted(part, claimant, now) for part in parts]

    def close(self, chords: Sequence[str], claimant: str) -> None:
        """What follows these has been started by the holder of the claim; raises ``DatabaseError``."""
        with self._database.transaction():
            closed = self._database.execute(_CLOSE, (time.time() + self._ttl, json.dumps(chords), claimant))
            self._database.execute_many("delete from chord_members where chord = ?", closed)

    def _counted(self, part: Part, claimant: str, now: float) -> Gathering:
        self._database.execute(_MEET, (part.chord, now + self._ttl))
        size, counted, over = self._chord(part.chord)
        if over:
            return Gathering("over")
        place = _LAST if part.index is None else part.index
        if self._database.execute(_COUNT, (part.chord, part.id, place, part.status, part.result)):
            counted += 1
            self._database.execute("update chords set counted = ? where id = ?", (counted, part.chord))
        if size is None or counted < size:
            return Gathering("waiting")
        if not self._database.execute(_CLAIM, (claimant, now + self.claim_seconds, part.chord, claimant, now)):
            return Gathering("contested")
        return Gathering("complete", self._members(part.chord))

    def _chord(self, chord: str) -> tuple[int | None, int, bool]:
        [(size, counted, over)] = self._database.execute("select size, counted, over from chords where id = ?", (chord,))
        return size, counted, bool(over)

    def _members(self, chord: str) -> tuple[Part, ...]:
        rows = self._database.execute(
            "select place, id, status, result from chord_members where chord = ? order by place, rowid", (chord,)
        )
        return tuple(Part(chord, None if place == _LAST else place, *rest) for place, *rest in rows)

    def _forget_expired(self, chords: Sequence[str], now: float) -> None:
        self._database.execute(
            "delete from chords where id in (select value from json_each(?)) and expires <= ?", (json.dumps(chords), now)
        )
