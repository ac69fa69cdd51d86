"""The schema of an SQLite file of taskq's, and how an older file comes to it."""

from __future__ import annotations

#: In the header of every file of ours, so that a foreign database is recognised before anything is written to it.
APPLICATION_ID = int.from_bytes(b"tskq", "big")
# How a file comes from each version of the schema to the next; a new file takes all the steps. A step that has been released is
# never changed, since there are files that took it.
#
# Row ids of messages are delivery tags, hence autoincrement: a late ack must never meet a younger message under the same tag.
# The three partial indexes hold each message once at most, so a message costs one index entry in whatever state it is.
# The triggers delete what depends on a queue or a consumer together with it, whoever deletes it: a peer of a dead consumer too.
# ``run`` of a result is the run of the task that has begun, where it runs at most once; ``own``: it wrote the record.
# Row ids of controls are their order, hence autoincrement: one that replaces the last one must come after it all the same.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """
        create table messages (
            id integer primary key autoincrement,
            queue text not null,
            priority integer not null,
            due real,
            owner integer,
            redelivered integer not null default 0,
            properties blob not null,
            body blob not null
        )
        """,
        "create index messages_ready on messages (queue, priority desc) where owner is null and due is null",
        "create index messages_delayed on messages (due) where due is not null",
        "create index messages_owned on messages (owner) where owner is not null",
        "create table queues (name text primary key, auto_delete integer not null) without rowid",
        "create table exchanges (name text primary key, type text not null, options text not null) without rowid",
        """
        create table bindings (
            exchange text not null, queue text not null, routing_key text not null, pattern text,
            primary key (exchange, queue, routing_key)
        ) without rowid
        """,
        "create table consumers (queue text not null, owner integer not null, primary key (queue, owner)) without rowid",
        "create table results (id text primary key, status text not null, meta blob not null, expires real not null)",
        "create index results_expires on results (expires)",
        "create table waiters (id text not null, waiter integer not null, primary key (id, waiter)) without rowid",
        """
        create trigger exchange_deleted after delete on exchanges begin
            delete from bindings where exchange = old.name;
        end
        """,
        """
        create trigger queue_deleted after delete on queues begin
            delete from bindings where queue = old.name;
            delete from messages where queue = old.name and owner is null and due is null;
            delete from messages where due is not null and queue = old.name;
            delete from messages where owner is not null and queue = old.name;
        end
        """,
        """
        create trigger consumer_deleted after delete on consumers
        when not exists (select 1 from consumers where queue = old.queue) begin
            delete from queues where name = old.queue and auto_delete;
        end
        """,
    ),
    (
        """
        create table controls (
            id integer primary key autoincrement, key text not null unique, entry blob not null, expires real
        )
        """,
        "create index controls_expires on controls (expires) where expires is not null",
    ),
    (
        "alter table results add column attempt integer not null default 0",
        """
        create table chords (
            id text primary key,
            size integer,
            counted integer not null default 0,
            claimant text,
            claimed_until real not null default 0,
            over integer not null default 0,
            expires real not null
        ) without rowid
        """,
        "create index chords_expires on chords (expires)",
        """
        create table chord_members (
            chord text not null, id text not null, place integer not null, status text not null, result blob not null,
            primary key (chord, id, place)
        )
        """,
        """
        create trigger chord_deleted after delete on chords begin
            delete from chord_members where chord = old.id;
        end
        """,
        "create table documents (name text primary key, document blob not null, expires real not null)",
        "create index documents_expires on documents (expires)",
    ),
    (
        "create table ledger (key text primary key, entry blob not null, expires real not null) without rowid",
        "create index ledger_expires on ledger (expires)",
    ),
    (
        "alter table results add column round integer not null default 0",
        "alter table results add column run text",
        "alter table results add column own integer not null default 0",
    ),
)
#: Of the schema. A file of a newer taskq is refused, as its rows may mean something else.
VERSION = len(STEPS)
