"""What taskq declares on RabbitMQ: queues, their dead-letter queues, and the exchanges that hold delayed messages.

Everything is declared without waiting for the answer: on one channel RabbitMQ works in order, so that a declaration stands
before the message that needs it, and a refused one closes the channel. ``refusal`` puts that into words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from amqp import exceptions, spec
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
    level_name,
)

from taskq.config import Settings, masked
from taskq.errors import BrokerError, BrokerUnreachable, ConnectionLost, PublishRejected, QueueMismatch, UnsupportedFeature
from taskq.message import Publication, dead_letter_queue

MAX_DELAY = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
#: AMQP's limit for names and routing keys, in bytes.
MAX_NAME = 255
_PREFIX = "taskq"
_DELIVERY_EXCHANGE = f"{_PREFIX}_{CELERY_DELAYED_DELIVERY_EXCHANGE}"
_DELAY_KEY = "*." * MAX_NUMBER_OF_BITS_TO_USE
_MISMATCH = re.compile(r"inequivalent arg '(?P<argument>[^']+)' for queue '(?P<queue>.+?)' in vhost '.*?': (?P<detail>.*)")


def is_dead_letter_queue(queue: str) -> bool:
    """Whether the queue holds dead letters, and so has no dead-letter queue of its own."""
    return queue.endswith(dead_letter_queue(""))


def queue_arguments(queue: str, settings: Settings) -> Mapping[str, Any]:
    """The arguments of a queue's declaration. Classic queues have none, as those of a Celery fleet."""
    if settings.queue_type == "classic":
        if settings.queue_max_priority and not is_dead_letter_queue(queue):
            return {"x-max-priority": settings.queue_max_priority}
        return {}
    if is_dead_letter_queue(queue):
        return {"x-queue-type": "quorum"}
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead_letter_queue(queue),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": settings.delivery_limit,
    }


class Topology:
    """What one channel has declared so far; each declaration is sent once per connection."""

    def __init__(self, channel: Any, settings: Settings) -> None:
        self._channel = channel
        self._settings = settings
        self._queues: set[str] = set()
        self._delayed: set[str] = set()
        self._levels = False

    def declare(self, queue: str) -> None:
        """The queue and its dead-letter queue, unless done before."""
        if queue in self._queues:
            return
        names = [queue] if is_dead_letter_queue(queue) else [queue, dead_letter_queue(queue)]
        for name in names:
            self._channel.queue_declare(
                name, durable=True, auto_delete=False, nowait=True, arguments=queue_arguments(name, self._settings)
            )
        self._queues.update(names)

    def forget(self, queue: str) -> None:
        """The broker does not know the queue any more: declare it again when it is needed again."""
        self._queues -= {queue, dead_letter_queue(queue)}
        self._delayed.discard(queue)
        self._levels = False

    def route(self, publication: Publication) -> tuple[str, str]:
        """Exchange and routing key for the publication, everything on the way declared."""
        self.declare(publication.queue)
        if publication.delay <= 0:
            return "", publication.queue
        self._declare_delayed(publication.queue)
        return level_name(MAX_LEVEL, _PREFIX), calculate_routing_key(math.ceil(publication.delay), publication.queue)

    def _declare_delayed(self, queue: str) -> None:
        if queue in self._delayed:
            return
        if not self._levels:
            self._declare_levels()
            self._levels = True
        # as many words as there are levels: with '#', a queue named 'mail' would also get what is meant for 'old.mail'
        self._channel.queue_bind(queue, _DELIVERY_EXCHANGE, _DELAY_KEY + queue, nowait=True)
        self._delayed.add(queue)

    def _declare_levels(self) -> None:
        """Kombu's native delayed delivery, without its waits: level n holds a message for 2**n seconds, or passes it on."""
        channel = self._channel
        exchanges = [_DELIVERY_EXCHANGE, *(level_name(level, _PREFIX) for level in range(MAX_LEVEL + 1))]
        for exchange in exchanges:
            channel.exchange_declare(exchange, "topic", durable=True, auto_delete=False, nowait=True)
        for level in range(MAX_LEVEL, -1, -1):
            name, below = exchanges[level + 1], exchanges[level]
            arguments = {
                # Whatever queue_type says, because all applications on a broker share the levels.
                "x-queue-type": "quorum",
                "x-overflow": "reject-publish",
                "x-message-ttl": 2**level * 1000,
                "x-dead-letter-exchange": below,
                "x-dead-letter-strategy": "at-least-once",
            }
            any_higher_bits = "*." * (MAX_LEVEL - level)
            channel.queue_declare(name, durable=True, auto_delete=False, nowait=True, arguments=arguments)
            channel.queue_bind(name, name, f"{any_higher_bits}1.#", nowait=True)
            channel.exchange_bind(below, name, f"{any_higher_bits}0.#", nowait=True)


def check_priority(publication: Publication, settings: Settings) -> None:
    """Raises ``UnsupportedFeature`` for a priority that the queue does not have."""
    queue, priority = publication.queue, publication.message.priority or 0
    if priority and settings.queue_type == "quorum":
        raise UnsupportedFeature(
            f"priority {priority} for queue {queue!r}: RabbitMQ's quorum queues have no priorities; "
            "send without, or set queue_type='classic' and queue_max_priority"
        )
    if priority > settings.queue_max_priority and settings.queue_type == "classic":
        raise UnsupportedFeature(
            f"priority {priority} for queue {queue!r} is above queue_max_priority={settings.queue_max_priority}; "
            "raise the setting (a queue that exists must be deleted and declared anew) or send a lower priority"
        )


def check_route(publication: Publication) -> None:
    """Raises ``UnsupportedFeature`` for a queue name or a delay that RabbitMQ cannot carry."""
    queue, delay = publication.queue, publication.delay
    size = len(dead_letter_queue(queue).encode())
    if not queue or size > MAX_NAME:
        raise UnsupportedFeature(f"queue {queue!r}: RabbitMQ takes names of 1 to {MAX_NAME - len(dead_letter_queue(''))} bytes")
    if delay > MAX_DELAY:
        raise UnsupportedFeature(
            f"a delay of {delay:g} s for queue {queue!r}: RabbitMQ holds a message for {MAX_DELAY} s at most"
        )
    if delay > 0:
        check_delay(queue)


def check_delay(queue: str) -> None:
    """Raises ``UnsupportedFeature`` for a queue whose messages RabbitMQ could not delay."""
    if len((_DELAY_KEY + queue).encode()) > MAX_NAME:
        raise UnsupportedFeature(f"queue {queue!r}: for delays, its name may have {MAX_NAME - len(_DELAY_KEY)} bytes")
    if {"*", "#"} & set(queue.split(".")):
        raise UnsupportedFeature(f"queue {queue!r}: '*' and '#' between dots are wildcards where RabbitMQ delays; rename it")


def refusal(error: Exception, settings: Settings) -> BrokerError:
    """What an error of py-amqp or of the socket means to us."""
    url = masked(settings.broker)
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, exceptions.PreconditionFailed) and error.method_sig == spec.Queue.Declare:
        return _mismatch(error, settings)
    if isinstance(error, exceptions.ResourceLocked):
        return QueueMismatch(f"{url}: another connection holds a queue for itself ({error.reply_text}); use another queue name")
    if isinstance(error, exceptions.PreconditionFailed) and error.method_sig == spec.Basic.Publish:
        return PublishRejected(f"{url} refused the message: {error.reply_text}")
    if isinstance(error, (exceptions.AccessRefused, exceptions.NotAllowed)):
        return BrokerUnreachable(f"{url} refused access: {error.reply_text}; check user, permissions and virtual host")
    return ConnectionLost(f"the connection to {url} broke: {str(error) or type(error).__name__}")


def _mismatch(error: exceptions.PreconditionFailed, settings: Settings) -> QueueMismatch:
    url = masked(settings.broker)
    if found := _MISMATCH.search(error.reply_text or ""):
        queue, argument, detail = found["queue"], found["argument"], found["detail"]
        way_out = f"delete queue {queue!r} once it is empty, or use another queue name"
        if settings.queue_type == "quorum":
            way_out += ", or set queue_type='classic' if it is a Celery fleet's, to share it"
        elif argument == "x-queue-type":
            way_out += ", or set queue_type='quorum' to share it"
        return QueueMismatch(f"queue {queue!r} on {url} exists with another {argument} ({detail}); {way_out}")
    return QueueMismatch(f"a queue on {url} exists with other arguments: {error.reply_text}")
