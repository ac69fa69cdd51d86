"""The ledger in PostgreSQL: rows that are locked before they are compared, in the order of their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskq.results.keys import key_of
from taskq.results.ledger import Change
from taskq.results.postgres.connections import Connection, Connections

_READ = "select key, entry from taskq_ledger where key = any(%s)"
# What another transaction changes meanwhile is waited for, and read as that one leaves it.
_LOCK = "select key, entry from taskq_ledger where key = any(%s) order by key for update"
# An entry that another transaction makes meanwhile is waited for too, and found to be in the way.
_MAKE = """
insert into taskq_ledger (key, entry, expires) values (%s, %s, now() + %s * interval '1 second') on conflict do nothing
"""
_CHANGE = "update taskq_ledger set entry = %s, expires = now() + %s * interval '1 second' where key = %s"
_DROP = "delete from taskq_ledger where key = %s"
EXPIRE = """
with due as (select key from taskq_ledger where expires <= now() order by expires limit %s for update skip locked)
delete from taskq_ledger using due where taskq_ledger.key = due.key
"""


class _InTheWayError(Exception):
    """Somebody else has made an entry; undoes the transaction."""


class PostgresLedger:
    """The entries in this database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The entries under these keys; raises ``BackendError``."""
        names = {key_of(key): key for key in keys}
        rows = self._connections.run(lambda one: one.execute(_READ, (list(names),), binary=True).fetchall())
        return {names[key]: bytes(entry) for key, entry in rows}

    def swap(self, changes: Sequence[Change], *, durable: bool = True) -> bool:
        """Make all of these changes, or none; raises ``BackendError``."""

        def work(connection: Connection) -> bool:
            try:
                with connection.transaction():
                    return _swapped(connection, changes, durable)
            except _InTheWayError:
                return False

        return self._connections.run(work)


def _swapped(connection: Connection, changes: Sequence[Change], durable: bool) -> bool:
    if not durable:
        connection.execute("set local synchronous_commit = off")
    keys = [key_of(change.key) for change in changes]
    standing = {key: bytes(entry) for key, entry in connection.execute(_LOCK, (keys,), binary=True).fetchall()}
    if any(standing.get(key) != change.old for key, change in zip(keys, changes, strict=True)):
        return False
    for key, change in sorted(zip(keys, changes, strict=True), key=lambda pair: pair[0].encode()):
        if change.new == change.old:
            continue
        if change.new is None:
            connection.execute(_DROP, (key,))
        elif change.old is not None:
            connection.execute(_CHANGE, (change.new, change.ttl, key))
        elif connection.execute(_MAKE, (key, change.new, change.ttl)).rowcount != 1:
            raise _InTheWayError
    return True
