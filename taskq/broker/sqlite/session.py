"""The application's side of the embedded broker: a publish is one fsynced transaction, then a wake-up of the consumers."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence

import msgspec
from kombu import Connection

from taskq import liveness
from taskq.broker.interface import Found, QueueStats
from taskq.broker.sqlite import controls
from taskq.broker.sqlite.channel import Channel
from taskq.broker.sqlite.letters import SqliteLetters, read
from taskq.broker.sqlite.properties import envelope
from taskq.broker.sqlite.publication import company, publish
from taskq.config import Settings
from taskq.control import Control
from taskq.errors import MessageError
from taskq.message import SENT, Publication, dead_letter_queue

_FIND = """
select id, queue, priority, due, owner, cast(properties as blob), cast(body as blob) from messages
where instr(properties, ?) order by id
"""
# In the order in which workers get them.
_AHEAD = """
select count(*) from messages
where queue = :queue and owner is null and due is null and (priority > :priority or (priority = :priority and id < :id))
"""
_STATS = """
select (select count(*) from messages where queue = :queue and owner is not null),
       (select count(*) from messages where queue = :queue and due is not null),
       (select count(*) from consumers where queue = :queue)
"""
_OLDEST = """
select cast(properties as blob) from messages
where id = (select min(id) from messages where queue = ? and owner is null and due is null)
"""


class SqliteSession:
    """A session on the file of ``settings.broker``; raises ``DatabaseError`` where that is not open in ``timeout`` seconds."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._connection = connect(settings.broker, timeout)
        self._channel: Channel = self._connection.channel()
        self.database = self._channel.database
        self._patience = settings.publish_timeout

    def publish(self, publications: Sequence[Publication], deadline: float) -> None:
        """Store all of the messages durably, or raise ``DatabaseError`` and store none.

        Until ``time.monotonic()`` is ``deadline`` it waits for the transactions of other processes. It raises nothing else:
        the queues are made in the same transaction, so every message has a place to go.
        """
        self.database.set_busy_timeout(deadline - time.monotonic())
        publish(self._channel, publications)

    def depth(self, queue: str) -> int | None:
        """How many messages are ready in the queue, or None where there is no such queue."""
        # Without a worker nobody else releases what a dead one held.
        liveness.reap(self.database, "consumer")
        return self._channel.depth(queue)

    def oldest(self, queue: str) -> float | None:
        """How long the queue's oldest ready message has waited, in seconds; None where it does not say, or there is none."""
        rows = self.database.execute(_OLDEST, (queue,))
        try:
            sent = envelope(rows[0][0]).headers.get(SENT) if rows else None
            return max(0.0, time.time() - sent) if isinstance(sent, int | float) else None
        except (MessageError, OverflowError):
            return None

    def purge(self, queue: str) -> int:
        """Delete the ready messages of the queue; returns how many."""
        liveness.reap(self.database, "consumer")
        count: int = self._channel.queue_purge(queue)
        return count

    def holds(self, task_id: str) -> bool | None:
        """Whether a message of this task waits, or is in a worker's custody."""
        liveness.reap(self.database, "consumer")
        dead = dead_letter_queue("")
        rows = self.database.execute(
            "select 1 from messages where instr(properties, ?) and substr(queue, ?) <> ? limit 1",
            (_identity(task_id), -len(dead), dead),
        )
        return bool(rows)

    def find(self, task_id: str) -> list[Found]:
        """Where the messages of this task are, dead letters too."""
        liveness.reap(self.database, "consumer")
        found = []
        for row in self.database.execute(_FIND, (_identity(task_id),)):
            number, queue, priority, due, owner, properties, body = row
            message = read(properties, body)
            if due is not None:
                found.append(Found(queue=queue, state="delayed", message=message, due=due))
            elif owner is not None:
                holder = liveness.holder(self.database, owner)
                found.append(Found(queue=queue, state="held", message=message, holder=holder))
            else:
                ((ahead,),) = self.database.execute(_AHEAD, {"queue": queue, "priority": priority, "id": number})
                found.append(Found(queue=queue, state="ready", message=message, ahead=ahead))
        return found

    def stats(self, queue: str) -> QueueStats | None:
        """What there is to know of the queue, or None where there is no such queue. A message of Celery's has no age."""
        ready = self.depth(queue)
        if ready is None:
            return None
        ((held, delayed, consumers),) = self.database.execute(_STATS, {"queue": queue})
        return QueueStats(ready=ready, consumers=consumers, held=held, delayed=delayed, oldest=self.oldest(queue))

    def verify(self, queue: str) -> tuple[str, ...]:  # noqa: ARG002  # the interface's signature
        """Queues have no arguments here."""
        return ()

    def delete(self, queue: str) -> None:
        """Delete the queue and that of its dead letters, with what is in them."""
        for name in company(queue):
            self._channel.queue_delete(name)

    def server(self) -> tuple[str, tuple[int, ...]]:
        """The library is the server."""
        return "SQLite", sqlite3.sqlite_version_info

    def letters(self, queue: str) -> SqliteLetters:
        """Open the queue to look at its ready messages and to take some out."""
        # Not what the last publication had left: this is used for long.
        self.database.set_busy_timeout(self._patience)
        return SqliteLetters(self._channel, queue)

    def control(self, control: Control, deadline: float) -> None:
        """Keep the entry durably and hand it to every worker, now and later; raises as ``publish``."""
        self.database.set_busy_timeout(deadline - time.monotonic())
        controls.keep(self.database, control)

    def controls(self) -> list[Control]:
        """The entries that stand, oldest first."""
        return controls.Reader(self.database).read()

    def close(self) -> None:
        """Close the connection."""
        self._connection.release()


def _identity(task_id: str) -> bytes:
    """How the id stands in the properties of a task's message."""
    try:
        return b'"id":' + msgspec.json.encode(task_id)
    except UnicodeEncodeError:
        # Half a character: such properties are written as Python's own encoder does.
        return b'"id":' + json.dumps(task_id).encode()


def connect(url: str, timeout: float) -> Connection:
    """A Kombu connection to the file; raises ``DatabaseError`` where that is not open in ``timeout`` seconds."""
    connection = Connection(url, connect_timeout=timeout)
    # Kombu's default is to wait for two seconds before it says what is wrong.
    connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout, reraise_as_library_errors=False)
    return connection
