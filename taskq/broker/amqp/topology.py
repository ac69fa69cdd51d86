"""What taskq declares on RabbitMQ: queues with their company, and the exchanges that hold delayed messages.

A queue's name says what it is for::

    mail                  the queue
    mail.returned         its lane: messages that have waited their turn and go first
    mail.dead             its dead letters
    mail.<unique>.held    one consumer's own: messages of the queue that it has held for long, see ``renewal``
    taskq.trial.<unique>  there for a moment, to try whether all works

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

from taskq.broker.interface import Check
from taskq.config import Settings, masked
from taskq.errors import BrokerError, BrokerUnreachable, ConnectionLost, PublishRejected, QueueMismatch, UnsupportedFeature
from taskq.message import TRIAL_PREFIX, Publication, dead_letter_queue

MAX_DELAY = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
#: AMQP's limit for names and routing keys, in bytes.
MAX_NAME = 255
#: How long a held queue stays when its consumer is gone, in seconds; what was in it has long moved on by then.
HELD_QUEUE_EXPIRES = 86_400
#: How long a trial queue stays that nobody uses, in seconds.
TRIAL_QUEUE_EXPIRES = 60
#: Where control entries are kept, see ``control``.
PAUSES, REVOCATIONS = "taskq.control.pauses", "taskq.control.revocations"
CONTROL_STREAMS: Mapping[str, Mapping[str, Any]] = {
    PAUSES: {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": 1_000_000},
    REVOCATIONS: {
        "x-queue-type": "stream",
        "x-stream-max-segment-size-bytes": 1_000_000,
        "x-max-age": "30D",
        "x-max-length-bytes": 20_000_000,
    },
}
_LANE = ".returned"
_HELD = re.compile(r"\.[0-9a-f]{32}\.held$")
_PREFIX = "taskq"
_DELIVERY_EXCHANGE = f"{_PREFIX}_{CELERY_DELAYED_DELIVERY_EXCHANGE}"
_DELAY_KEY = "*." * MAX_NUMBER_OF_BITS_TO_USE
_MISMATCH = re.compile(r"inequivalent arg '(?P<argument>[^']+)' for queue '(?P<queue>.+?)' in vhost '.*?': (?P<detail>.*)")


def is_dead_letter_queue(queue: str) -> bool:
    """Whether the queue holds dead letters, and so has neither a lane nor a dead-letter queue of its own."""
    return queue.endswith(dead_letter_queue(""))


def lane(queue: str) -> str:
    """The queue that is consumed together with ``queue``, for what goes first; dead letters have no such order."""
    return queue if is_dead_letter_queue(queue) or is_trial_queue(queue) else f"{queue}{_LANE}"


def lines(queue: str) -> tuple[str, ...]:
    """The queues that hold the messages of ``queue``, what goes first before the rest."""
    return tuple(dict.fromkeys((lane(queue), queue)))


def held_queue(queue: str, unique: str) -> str:
    """The queue in which one consumer keeps what it has held of ``queue`` for long; ``unique`` is a UUID's 32 digits."""
    return f"{queue}.{unique}.held"


def is_trial_queue(queue: str) -> bool:
    """Whether the queue is there for a moment only."""
    return queue.startswith(TRIAL_PREFIX)


def is_held_queue(queue: str) -> bool:
    """Whether the queue is one consumer's own."""
    return _HELD.search(queue) is not None


def queue_arguments(queue: str, settings: Settings) -> Mapping[str, Any]:
    """The arguments of a queue's declaration. Classic queues have none, as those of a Celery fleet."""
    if queue in CONTROL_STREAMS:
        return CONTROL_STREAMS[queue]
    if is_held_queue(queue):
        return _held_arguments(_HELD.sub("", queue))
    if is_trial_queue(queue):
        # Should it never be deleted
        return {"x-queue-type": settings.queue_type, "x-expires": TRIAL_QUEUE_EXPIRES * 1000}
    if settings.queue_type == "classic":
        has_priorities = settings.queue_max_priority and not is_dead_letter_queue(queue)
        return {"x-max-priority": settings.queue_max_priority} if has_priorities else {}
    if is_dead_letter_queue(queue):
        return {"x-queue-type": "quorum"}
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead_letter_queue(queue.removesuffix(_LANE)),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": settings.delivery_limit,
    }


def _held_arguments(queue: str) -> Mapping[str, Any]:
    """What comes back to a held queue, because its consumer is gone, moves on to the lane as soon as it is a second old.

    RabbitMQ expires no message that a consumer holds, and keeps the age of one that comes back. Quorum whatever
    ``queue_type`` says: nobody else uses the queue, and only quorum queues pass on without a loss.
    """
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": lane(queue),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-expires": HELD_QUEUE_EXPIRES * 1000,
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
        """The queue, its lane and its dead-letter queue, unless done before."""
        if queue in self._queues:
            return
        names = company(queue)
        for name in names:
            self._channel.queue_declare(
                name, durable=True, auto_delete=False, nowait=True, arguments=queue_arguments(name, self._settings)
            )
        self._queues.update(names)

    def forget(self, queue: str) -> None:
        """The broker does not know the queue any more: declare it again when it is needed again."""
        self._queues.difference_update(company(queue))
        self._delayed.discard(queue)
        self._levels = False

    def route(self, publication: Publication) -> tuple[str, str]:
        """Exchange and routing key for the publication, everything on the way declared."""
        self.declare(publication.queue)
        if publication.delay <= 0:
            return "", lane(publication.queue) if publication.first else publication.queue
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


def company(queue: str) -> tuple[str, ...]:
    """The queue and what is declared with it."""
    alone = any(of_its_kind(queue) for of_its_kind in (is_dead_letter_queue, is_held_queue, is_trial_queue))
    alone = alone or queue in CONTROL_STREAMS
    return (queue,) if alone else (queue, lane(queue), dead_letter_queue(queue))


def checker(settings: Settings) -> Check:
    """See ``taskq.broker.interface.Check``."""

    def check(publication: Publication) -> None:
        if not publication.reply:
            check_priority(publication, settings)
            check_route(publication)

    return check


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
    size = max(len(name.encode()) for name in company(queue))
    if not queue or size > MAX_NAME:
        raise UnsupportedFeature(f"queue {queue!r}: RabbitMQ takes names of 1 to {MAX_NAME - len(_LANE)} bytes")
    if queue.endswith(_LANE):
        raise UnsupportedFeature(f"queue {queue!r}: taskq keeps in {queue!r} what goes first in another queue; rename yours")
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
