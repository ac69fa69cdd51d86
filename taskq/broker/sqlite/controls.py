"""Control entries in the file: what operators say to all workers, kept until it is replaced or forgotten.

Invariant: the row ids are the order in which the entries were committed, so whoever has seen all up to one of them misses
nothing by asking for what comes after it.
"""

from __future__ import annotations

import time

from taskq import control, liveness
from taskq.control import REVOKED_SECONDS, Control, Revoke
from taskq.sqlite import Database

_KEEP = "insert or replace into controls (key, entry, expires) values (?, ?, ?)"
_AFTER = "select id, cast(entry as blob) from controls where id > ? and (expires is null or expires > ?) order by id"


def keep(database: Database, entry: Control) -> None:
    """Keep the entry durably in place of an earlier one with its key, and tell the consumers; raises ``DatabaseError``."""
    now = time.time()
    expires = (entry.at or now) + REVOKED_SECONDS if isinstance(entry, Revoke) else None
    with database.transaction():
        database.execute("delete from controls where expires <= ?", (now,))
        database.execute(_KEEP, (control.key(entry), control.encode(entry), expires))
        database.after_commit(liveness.ring_everyone, liveness.folder_of(database), liveness.CONTROL)


class Reader:
    """Reads the entries of a file one after another, beginning with the oldest that stands."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen = 0

    def read(self) -> list[Control]:
        """The entries since the last call, oldest first; those that only a newer taskq knows are left to it."""
        rows = self._database.execute(_AFTER, (self._seen, time.time()))
        if rows:
            self._seen = rows[-1][0]
        return [entry for _, data in rows if (entry := control.decode(data)) is not None]
