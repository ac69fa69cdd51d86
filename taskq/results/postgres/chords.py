"""Chords in PostgreSQL: who counts a member holds the chord's row.

Each statement sees what was committed before it began. So the row is locked by one statement and what it says is read by the
next: of all that count members of a chord, exactly one sees the last one come. All statements of a call travel together.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from taskq.results.keys import integer, key_of
from taskq.results.postgres.connections import Connection, Connections, patience_for
from taskq.results.store import CHORD_SECONDS, CLAIM_SECONDS, Barrier, Gathering, Part

#: The keys of a chord and of a member, and the member's place.
Member = tuple[str, str, int]
State = Literal["complete", "contested", "over"]
#: The place of a member without an index: behind those that have one.
_LAST = integer(sys.maxsize)

# Changes nothing where there is a row, but locks it, which a mere look would find gone if somebody else forgets it just then.
_LOCK = """
insert into taskq_chords as standing (id, expires)
select id, now() + %s * interval '1 second' from unnest(%s::text[]) as given (id) order by id collate "C"
on conflict (id) do update set over = standing.over
"""
_BEGIN_ANEW = """
with expired as (
    update taskq_chords set
        size = null, counted = 0, claimant = null, claimed_until = null, over = false,
        expires = now() + %s * interval '1 second'
    where id = any(%s) and expires <= now() returning id
)
delete from taskq_members using expired where chord = expired.id
"""
_OPEN = """
update taskq_chords set size = given.size, expires = now() + %s * interval '1 second'
from unnest(%s::text[], %s::bigint[]) as given (id, size) where taskq_chords.id = given.id and taskq_chords.size is null
"""
# The members of a chord that is over are gone, and late ones count for nothing. The time to live is moved rarely, because each
# move costs an entry in an index.
_COUNT = """
with given as (
    select * from unnest(%(chords)s::text[], %(ids)s::text[], %(places)s::bigint[], %(statuses)s::text[], %(results)s::bytea[])
        with ordinality as given (chord, id, place, status, result, number)
), counted as (
    insert into taskq_members (chord, id, place, status, result)
    select chord, given.id, place, status, result from given join taskq_chords on taskq_chords.id = chord where not over
    order by number
    on conflict do nothing
    returning chord, id, place
), fresh as (
    select chord, count(*) as members from counted group by chord
), tallied as (
    update taskq_chords set
        counted = counted + members,
        expires = case when expires < now() + %(ttl)s * interval '0.5 seconds' then now() + %(ttl)s * interval '1 second'
            else expires end
    from fresh where taskq_chords.id = chord
)
select chord, id, place from counted
"""
_CLAIM = """
update taskq_chords set claimant = %(claimant)s, claimed_until = clock_timestamp() + %(seconds)s * interval '1 second'
where id = any(%(chords)s) and not over and counted >= size
    and (claimant is null or claimant = %(claimant)s or claimed_until <= clock_timestamp())
"""
_STANDING = """
select id, size, counted, case when over then 'over' when claimant = %s then 'complete' else 'contested' end
from taskq_chords where id = any(%s)
"""
_MEMBERS = """
select chord, taskq_members.id, place, status, result from taskq_members join taskq_chords on taskq_chords.id = chord
where chord = any(%s) and not over and counted >= size and claimant = %s
order by chord, place, arrival
"""
_CLOSE = """
with standing as (
    select id from taskq_chords where id = any(%s) and claimant = %s and not over order by id for update
), closed as (
    update taskq_chords set over = true, expires = now() + %s * interval '1 second'
    from standing where taskq_chords.id = standing.id returning taskq_chords.id
)
delete from taskq_members using closed where chord = closed.id
"""
# The members before the chord itself, so that each statement has little to do, however large a chord is.
EXPIRE = (
    """
    with due as (
        select chord, taskq_members.id, place from taskq_chords join taskq_members on chord = taskq_chords.id
        where expires <= now() limit %s for update skip locked
    )
    delete from taskq_members using due
    where taskq_members.chord = due.chord and taskq_members.id = due.id and taskq_members.place = due.place
    """,
    """
    with due as (
        select id from taskq_chords
        where expires <= now() and not exists (select from taskq_members where chord = taskq_chords.id)
        order by expires limit %s for update skip locked
    )
    delete from taskq_chords using due where taskq_chords.id = due.id
    """,
)


class PostgresChords:
    """See ``taskq.results.store.Chords``. That a chord is over is forgotten after ``ttl`` seconds."""

    def __init__(self, connections: Connections, ttl: float) -> None:
        self._connections = connections
        self._ttl = ttl
        self.claim_seconds = CLAIM_SECONDS
        self.keep_seconds = max(ttl, CHORD_SECONDS)

    def open(self, barriers: Sequence[Barrier]) -> None:
        """The chords are about to begin; one that is open, or over, stays as it is. Raises ``BackendError``."""
        sizes: dict[str, int] = {}
        for barrier in barriers:
            sizes.setdefault(key_of(barrier.chord), integer(barrier.size))

        def work(connection: Connection) -> None:
            with connection.pipeline(), connection.transaction():
                _lock(connection, sorted(sizes), self.keep_seconds)
                connection.execute(_OPEN, (self.keep_seconds, list(sizes), list(sizes.values())))

        self._connections.run(work)

    def count(self, parts: Sequence[Part], claimant: str) -> list[Gathering]:
        """Count these, durably, and say how the chord of each stands after it; raises ``BackendError``."""
        members = [
            (key_of(part.chord), key_of(part.id), _LAST if part.index is None else integer(part.index)) for part in parts
        ]
        arrays = {
            "chords": [chord for chord, _, _ in members],
            "ids": [member for _, member, _ in members],
            "places": [place for _, _, place in members],
            "statuses": [part.status for part in parts],
            "results": [part.result for part in parts],
            "ttl": self.keep_seconds,
        }
        claim = {"claimant": claimant, "seconds": self.claim_seconds}
        work = functools.partial(_count, arrays=arrays, claim=claim)
        account = self._connections.run(work, patience_for(sum(len(part.result) for part in parts)))
        return account.gatherings(members, [part.chord for part in parts])

    def close(self, chords: Sequence[str], claimant: str) -> None:
        """What follows these has been started by the holder of the claim; raises ``BackendError``."""
        values = ([key_of(chord) for chord in chords], claimant, self._ttl)
        self._connections.run(lambda connection: connection.execute(_CLOSE, values))


class _Account(msgspec.Struct):
    """What the database says after a count: which members are new, how the chords stand, and who is in those that we claimed.

    A chord's standing is its size, how many were counted, and what that means once they suffice.
    """

    new: set[Member]
    standing: dict[str, tuple[int | None, int, State]]
    members: dict[str, dict[Member, Part]]

    def gatherings(self, counted: Sequence[Member], names: Sequence[str]) -> list[Gathering]:
        """How the chord of each member stood after it: worked out from the last one back to the first."""
        backwards = list(enumerate(counted))[::-1]
        first = {member: number for number, member in backwards}
        gatherings: list[Gathering] = []
        for number, member in backwards:
            gatherings.append(self._gathering(member[0], names[number]))
            if member in self.new and first[member] == number:
                self._uncount(member)
        return gatherings[::-1]

    def _gathering(self, chord: str, name: str) -> Gathering:
        size, count, state = self.standing[chord]
        if state != "over" and (size is None or count < size):
            return Gathering("waiting")
        members = self.members.get(chord, {}).values()
        return Gathering(state, tuple(msgspec.structs.replace(part, chord=name) for part in members))

    def _uncount(self, member: Member) -> None:
        size, count, state = self.standing[member[0]]
        self.standing[member[0]] = size, count - 1, state
        self.members.get(member[0], {}).pop(member, None)


def _lock(connection: Connection, chords: Sequence[str], ttl: float) -> None:
    """Have all rows, in one order, until the end of the transaction, those included that there were not."""
    connection.execute(_LOCK, (ttl, chords))
    connection.execute(_BEGIN_ANEW, (ttl, chords))


def _count(connection: Connection, arrays: Mapping[str, Any], claim: Mapping[str, Any]) -> _Account:
    claimant = claim["claimant"]
    chords = sorted(set(arrays["chords"]))
    with connection.pipeline(), connection.transaction():
        _lock(connection, chords, arrays["ttl"])
        new = connection.execute(_COUNT, arrays)
        connection.execute(_CLAIM, {**claim, "chords": chords})
        standing = connection.execute(_STANDING, (claimant, chords))
        gathered = connection.execute(_MEMBERS, (chords, claimant), binary=True)
    members: dict[str, dict[Member, Part]] = {}
    for chord, member, place, status, result in gathered:
        part = Part(chord, None if place == _LAST else place, member, status, bytes(result))
        members.setdefault(chord, {})[chord, member, place] = part
    return _Account(
        {(chord, member, place) for chord, member, place in new},
        {chord: (size, counted, state) for chord, size, counted, state in standing},
        members,
    )
