"""The application's side of the embedded broker: a publish is one fsynced transaction, then a wake-up of the consumers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import kombu
import msgspec

from taskq import liveness
from taskq.broker.sqlite import controls
from taskq.broker.sqlite.channel import Channel
from taskq.broker.sqlite.letters import SqliteLetters
from taskq.broker.sqlite.publication import publish
from taskq.config import Settings
from taskq.control import Control
from taskq.message import Publication, dead_letter_queue


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

    def purge(self, queue: str) -> int:
        """Delete the ready messages of the queue; returns how many."""
        liveness.reap(self.database, "consumer")
        count: int = self._channel.queue_purge(queue)
        return count

    def holds(self, task_id: str) -> bool | None:
        """Whether a message of this task waits, or is in a worker's custody."""
        liveness.reap(self.database, "consumer")
        sought = f'"id":{msgspec.json.encode(task_id).decode()}'.encode()
        dead = dead_letter_queue("")
        rows = self.database.execute(
            "select 1 from messages where instr(properties, ?) and substr(queue, ?) <> ? limit 1", (sought, -len(dead), dead)
        )
        return bool(rows)

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


def connect(url: str, timeout: float) -> kombu.Connection:
    """A Kombu connection to the file; raises ``DatabaseError`` where that is not open in ``timeout`` seconds."""
    connection = kombu.Connection(url, connect_timeout=timeout)
    # Kombu's default is to wait for two seconds before it says what is wrong.
    connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout, reraise_as_library_errors=False)
    return connection
