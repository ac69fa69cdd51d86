"""How a publication becomes a row, for the application's side and for the supervisor's."""

from __future__ import annotations

from collections.abc import Iterable

from taskq.broker.sqlite.channel import Channel
from taskq.errors import UnsupportedFeature
from taskq.message import TRIAL_PREFIX, Publication, dead_letter_queue


def check(publication: Publication) -> None:
    """Raises ``UnsupportedFeature`` for a reply: nobody would ever take it out of its queue."""
    if publication.reply:
        raise UnsupportedFeature("an SQLite broker has no reply queues; backend='rpc://' needs an amqp:// broker")


def publish(channel: Channel, publications: Iterable[Publication]) -> None:
    """Declare the queues and store the messages in one transaction, or as a part of the current one.

    Raises as ``check``.
    """
    declared: set[str] = set()
    with channel.database.transaction():
        for publication in publications:
            check(publication)
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
                first=publication.first,
            )


def declare(channel: Channel, queue: str) -> None:
    """Make the queue and the one of its dead letters."""
    for name in company(queue):
        channel.new_queue(name)


def company(queue: str) -> tuple[str, ...]:
    """The queue and what is declared with it."""
    alone = queue == dead_letter_queue(queue.removesuffix(".dead")) or queue.startswith(TRIAL_PREFIX)
    return (queue,) if alone else (queue, dead_letter_queue(queue))
