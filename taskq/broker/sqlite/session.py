"""The application's side of the embedded broker: a publish is one fsynced transaction, then a wake-up of the consumers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import kombu

from taskq import liveness
from taskq.broker.sqlite.channel import Channel
from taskq.config import Settings
from taskq.message import Publication, dead_letter_queue


class SqliteSession:
    """A session on the file of ``settings.broker``; raises ``DatabaseError`` where that is not open in ``timeout`` seconds."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._connection = connect(settings.broker, timeout)
        self._channel: Channel = self._connection.channel()
        self.database = self._channel.database

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

    def close(self) -> None:
        """Close the connection."""
        self._connection.release()


def connect(url: str, timeout: float) -> kombu.Connection:
    """A Kombu connection to the file; raises ``DatabaseError`` where that is not open in ``timeout`` seconds."""
    connection = kombu.Connection(url, connect_timeout=timeout)
    # Kombu's default is to wait for two seconds before it says what is wrong.
    connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout, reraise_as_library_errors=False)
    return connection


def publish(channel: Channel, publications: Iterable[Publication]) -> None:
    """Declare the queues and store the messages in one transaction, or as a part of the current one."""
    declared: set[str] = set()
    with channel.database.transaction():
        for publication in publications:
            if publication.queue not in declared:
                declare(channel, publication.queue)
                declared.add(publication.queue)
            message = publication.message
            channel.put(
                publication.queue,
                {
                    "body": message.body,
                    "content-type": message.content_type,
                    "content-encoding": message.content_encoding,
                    "headers": message.headers,
                    "properties": {
                        "correlation_id": message.correlation_id,
                        "reply_to": message.reply_to,
                        "priority": message.priority,
                        "delay": publication.delay,
                        "delivery_mode": 2,
                        "delivery_info": {"exchange": "", "routing_key": publication.queue},
                    },
                },
            )


def declare(channel: Channel, queue: str) -> None:
    """Make the queue and the one of its dead letters."""
    channel.new_queue(queue)
    if queue != dead_letter_queue(queue.removesuffix(".dead")):
        channel.new_queue(dead_letter_queue(queue))
