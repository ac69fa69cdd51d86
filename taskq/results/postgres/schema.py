"""The tables in PostgreSQL, and how an older set of them comes to the newest.

Names are compared byte by byte (``collate "C"``), which is also the order in which every statement locks rows: two that lock
the same rows in two orders would wait for each other.
"""

from __future__ import annotations

import psycopg

from taskq.errors import BackendError

#: Of all that share a database, one at a time creates or changes the tables; a number that nobody else locks: "taskq".
_LOCK = int.from_bytes(b"taskq", "big")
# How the tables come from each version to the next; a new database takes all the steps. A step that has been released is never
# changed, since there are databases that took it.
#
# ``counted`` is how many members of a chord there are, so that nobody has to count them again for each one that comes.
# ``run`` of a result is the run of the task that has begun, where it runs at most once; ``own``: it wrote the record.
_STEPS: tuple[tuple[str, ...], ...] = (
    (
        """
        create table taskq_results (
            id text collate "C" primary key,
            status text not null,
            attempt bigint not null,
            meta bytea not null,
            expires timestamptz not null
        )
        """,
        "create index taskq_results_expires on taskq_results (expires)",
        """
        create table taskq_documents (
            name text collate "C" primary key, document bytea not null, expires timestamptz not null
        )
        """,
        "create index taskq_documents_expires on taskq_documents (expires)",
        """
        create table taskq_chords (
            id text collate "C" primary key,
            size bigint,
            counted bigint not null default 0,
            claimant text,
            claimed_until timestamptz,
            over boolean not null default false,
            expires timestamptz not null
        )
        """,
        "create index taskq_chords_expires on taskq_chords (expires)",
        """
        create table taskq_members (
            chord text collate "C" not null,
            id text collate "C" not null,
            place bigint not null,
            status text not null,
            result bytea not null,
            arrival bigint generated always as identity,
            primary key (chord, id, place)
        )
        """,
    ),
    (
        """
        create table taskq_ledger (key text collate "C" primary key, entry bytea not null, expires timestamptz not null)
        """,
        "create index taskq_ledger_expires on taskq_ledger (expires)",
    ),
    (
        """
        alter table taskq_results
            add column round bigint not null default 0, add column run text, add column own boolean not null default false
        """,
    ),
)
#: Of the tables. Those of a newer taskq are refused, as their rows may mean something else.
VERSION = len(_STEPS)


def prepare(connection: psycopg.Connection) -> None:
    """Create the tables, or bring them to this version; safe when many do so at once. Raises ``BackendError``."""
    if _version(connection) < VERSION:
        with connection.transaction():
            # Whoever comes second waits for the first one's work, and finds it done.
            connection.execute("set local lock_timeout = '9s'")
            connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute("create table if not exists taskq_schema (version integer not null)")
            found = _version(connection)
            for statement in (statement for step in _STEPS[found:] for statement in step):
                connection.execute(statement.encode())
            connection.execute("delete from taskq_schema")
            connection.execute("insert into taskq_schema values (%s)", (max(found, VERSION),))
    found = _version(connection)
    if found > VERSION:
        raise BackendError(
            f"the tables taskq_… in PostgreSQL are of version {found}, a newer taskq's; this one knows {VERSION}: upgrade it"
        )


def _version(connection: psycopg.Connection) -> int:
    """0 where there are no tables."""
    if connection.execute("select to_regclass('taskq_schema')").fetchone() == (None,):
        return 0
    row = connection.execute("select max(version) from taskq_schema").fetchone()
    return int(row[0] or 0) if row else 0
