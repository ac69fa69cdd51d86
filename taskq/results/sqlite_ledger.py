"""The ledger in an SQLite file. Beside the embedded broker, a change of it is part of the transaction that sends the tick."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from taskq.results.ledger import Change
from taskq.sqlite import Database

_READ = "select key, cast(entry as blob) from ledger where key in (select value from json_each(?)) and expires > ?"
_WRITE = """
insert into ledger (key, entry, expires) values (?, ?, ?)
on conflict (key) do update set entry = excluded.entry, expires = excluded.expires
"""


class SqliteLedger:
    """The entries in this database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The entries under these keys; raises ``DatabaseError``."""
        return dict(self._database.execute(_READ, (json.dumps(keys), time.time())))

    def swap(self, changes: Sequence[Change], *, durable: bool = True) -> bool:
        """Make all of these changes, or none; raises ``DatabaseError``."""
        with self._database.transaction(durable=durable):
            standing = self.read([change.key for change in changes])
            if any(standing.get(change.key) != change.old for change in changes):
                return False
            now = time.time()
            for change in changes:
                if change.new is None:
                    self._database.execute("delete from ledger where key = ?", (change.key,))
                elif change.new != change.old:
                    self._database.execute(_WRITE, (change.key, change.new, now + change.ttl))
        return True
