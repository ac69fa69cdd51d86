"""How a publication becomes a row, for the application's side and for the supervisor's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskq.broker.sqlite.channel import Channel
from taskq.decoding import UNREADABLE
from taskq.errors import ConfigurationError, UnsupportedFeature
from taskq.message import TRIAL_PREFIX, Publication, dead_letter_queue

#: The longest delay, in seconds: some hundred years.
_LONGEST_DELAY = 1e10


def check(publication: Publication) -> None:
    """Raises ``ConfigurationError`` for what no row can hold, and for a reply: nobody would ever take it out of its queue."""
    if not publication.delay <= _LONGEST_DELAY:
        raise ConfigurationError(f"a delay of {publication.delay} seconds: messages can wait for {_LONGEST_DELAY:g} at most")
    try:
        publication.queue.encode()
    except UnicodeEncodeError:
        text = f"queue={publication.queue!r} holds half a character, as file names do that are no UTF-8; name another queue"
        raise ConfigurationError(text) from None
    if publication.reply:
        raise UnsupportedFeature("an SQLite broker has no reply queues; backend='rpc://' needs an amqp:// broker")


def publish(channel: Channel, publications: Iterable[Publication]) -> None:
    """Declare the queues and store the messages in one transaction, or as a part of the current one.

    Raises as ``check``, and ``UnsupportedFeature`` for properties and headers that can't be written down.
    """
    declared: set[str] = set()
    with channel.database.transaction():
        for publication in publications:
            check(publication)
            if publication.queue not in declared:
                declare(channel, publication.queue)
                declared.add(publication.queue)
            try:
                channel.put(publication.queue, _prepared(publication), first=publication.first)
            except UNREADABLE as error:
                reason = f"a message for {publication.queue!r} cannot be stored as JSON: {type(error).__name__}: {error}"
                raise UnsupportedFeature(reason) from error


def _prepared(publication: Publication) -> dict[str, Any]:
    """The message as Kombu's channels take it."""
    message = publication.message
    return {
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
    }


def declare(channel: Channel, queue: str) -> None:
    """Make the queue and the one of its dead letters."""
    for name in company(queue):
        channel.new_queue(name)


def company(queue: str) -> tuple[str, ...]:
    """The queue and what is declared with it."""
    alone = queue == dead_letter_queue(queue.removesuffix(".dead")) or queue.startswith(TRIAL_PREFIX)
    return (queue,) if alone else (queue, dead_letter_queue(queue))
