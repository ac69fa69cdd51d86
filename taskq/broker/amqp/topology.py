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
from functools import cache, lru_cache
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
from taskq.errors import BrokerError, BrokerUnreachable, ConnectionLost, PublishRejected, QueueMismatch, Unroutable
from taskq.message import TRIAL_PREFIX, Publication, dead_letter_queue

MAX_DELAY = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
#: As good as none, and explicit: where a queue says nothing, RabbitMQ 4 deletes a message that has come back 20 times, and to
#: be looked at is to come back. RabbitMQ 4 takes -1 for none, and RabbitMQ 3 would take that for less than once.
NO_DELIVERY_LIMIT = 2**31 - 1
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
LANE = ".returned"
_HELD = re.compile(r"\.[0-9a-f]{32}\.held$")
_PREFIX = "taskq"
_DELIVERY_EXCHANGE = f"{_PREFIX}_{CELERY_DELAYED_DELIVERY_EXCHANGE}"
DELAY_KEY = "*." * MAX_NUMBER_OF_BITS_TO_USE
#: Frame, syntax, command, channel, unexpected frame, resource, not allowed, not implemented, internal error.
_BROKEN_BY_CONTENT = frozenset({501, 502, 503, 504, 505, 506, 530, 540, 541})
_MISMATCH = re.compile(r"inequivalent arg '(?P<argument>[^']+)' for queue '(?P<queue>.+?)' in vhost '.*?': (?P<detail>.*)")


@lru_cache(maxsize=4096)
def is_dead_letter_queue(queue: str) -> bool:
    """Whether the queue holds dead letters, and so has neither a lane nor a dead-letter queue of its own."""
    return queue.endswith(dead_letter_queue(""))


def lane(queue: str) -> str:
    """The queue that is consumed together with ``queue``, for what goes first; dead letters have no such order."""
    return queue if is_dead_letter_queue(queue) or is_trial_queue(queue) else f"{queue}{LANE}"


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
        limit = {"x-delivery-limit": NO_DELIVERY_LIMIT} if settings.queue_type == "quorum" else {}
        return {"x-queue-type": settings.queue_type, "x-expires": TRIAL_QUEUE_EXPIRES * 1000, **limit}
    if settings.queue_type == "classic":
        has_priorities = settings.queue_max_priority and not is_dead_letter_queue(queue)
        return {"x-max-priority": settings.queue_max_priority} if has_priorities else {}
    if is_dead_letter_queue(queue):
        return {"x-queue-type": "quorum", "x-delivery-limit": NO_DELIVERY_LIMIT}
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead_letter_queue(queue.removesuffix(LANE)),
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
        "x-delivery-limit": NO_DELIVERY_LIMIT,
        "x-expires": HELD_QUEUE_EXPIRES * 1000,
    }


@cache
def as_they_are(broker: str) -> set[str]:  # noqa: ARG001  # the key
    """The dead-letter queues of an earlier taskq that this process has met on the broker: these are declared no more.

    Kept for the process, because to meet one costs its channel, and what is on its way there is sent twice.
    """
    return set()


class Topology:
    """What one channel has declared so far; each declaration is sent once per channel."""

    def __init__(self, channel: Any, settings: Settings) -> None:
        self.channel = channel
        self._settings = settings
        self._as_they_are = as_they_are(settings.broker)
        self._queues: set[str] = set()
        self._delayed: set[str] = set()
        self._levels = False

    def declare(self, queue: str) -> None:
        """The queue, its lane and its dead-letter queue, unless done before."""
        if queue in self._queues:
            return
        names = company(queue)
        for name in names:
            if name not in self._as_they_are:
                self.channel.queue_declare(
                    name, durable=True, auto_delete=False, nowait=True, arguments=queue_arguments(name, self._settings)
                )
        self._queues.update(names)

    def forget(self, queue: str) -> None:
        """The broker does not know the queue any more: declare it again when it is needed again."""
        self._queues.difference_update(company(queue))
        self._as_they_are.difference_update(company(queue))
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
        self.channel.queue_bind(queue, _DELIVERY_EXCHANGE, DELAY_KEY + queue, nowait=True)
        self._delayed.add(queue)

    def _declare_levels(self) -> None:
        """Kombu's native delayed delivery, without its waits: level n holds a message for 2**n seconds, or passes it on."""
        channel = self.channel
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


@lru_cache(maxsize=4096)
def company(queue: str) -> tuple[str, ...]:
    """The queue and what is declared with it."""
    alone = any(of_its_kind(queue) for of_its_kind in (is_dead_letter_queue, is_held_queue, is_trial_queue))
    alone = alone or queue in CONTROL_STREAMS
    return (queue,) if alone else (queue, lane(queue), dead_letter_queue(queue))


def lacks_limit(error: Exception) -> str | None:
    """The dead-letter queue that a declaration was refused for because it has another delivery limit, or none.

    Those of an earlier taskq have none. That is no reason not to use them: ``doctor`` tells what to do.
    """
    found = _mismatch(error)
    if found is not None and found["argument"] == "x-delivery-limit" and is_dead_letter_queue(found["queue"]):
        return str(found["queue"])
    return None


def met(error: Exception, settings: Settings) -> bool:
    """Whether the declaration was refused for that reason alone; it is not sent again."""
    queue = lacks_limit(error)
    if queue is None or queue in as_they_are(settings.broker):
        return False
    as_they_are(settings.broker).add(queue)
    return True


def refusal(error: Exception, settings: Settings) -> BrokerError:
    """What an error of py-amqp or of the socket means to us."""
    url = masked(settings.broker)
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, exceptions.PreconditionFailed) and error.method_sig == spec.Queue.Declare:
        return _queue_mismatch(error, settings)
    if isinstance(error, exceptions.ResourceLocked):
        return QueueMismatch(f"{url}: another connection holds a queue for itself ({error.reply_text}); use another queue name")
    if isinstance(error, exceptions.PreconditionFailed) and error.method_sig == spec.Basic.Publish:
        return PublishRejected(f"{url} refused the message: {error.reply_text}", passing=False)
    if isinstance(error, (exceptions.AccessRefused, exceptions.NotAllowed)):
        return BrokerUnreachable(f"{url} refused access: {error.reply_text}; check user, permissions and virtual host")
    lost = ConnectionLost(f"the connection to {url} broke: {str(error) or type(error).__name__}")
    lost.refused = _broken_by_content(error)
    return lost


def publication_refusal(error: Exception, settings: Settings) -> BrokerError:
    """What it means to a publication that the channel was closed, with nothing else on its way there."""
    if isinstance(error, exceptions.NotFound):
        # Declared just before: the node that has it is away, or somebody deletes faster than we declare.
        return Unroutable(f"{masked(settings.broker)} has no way for the message: {error.reply_text}")
    refused = refusal(error, settings)
    if isinstance(refused, QueueMismatch):
        return refused
    text = f"{masked(settings.broker)} refused the message: {error}"
    if isinstance(error, exceptions.AccessRefused):
        text = str(refused)
    return PublishRejected(text, passing=False)


def _broken_by_content(error: Exception) -> bool:
    """Whether the broker broke the connection because it could not take what was sent.

    It does so too where it cannot declare a queue now, for lack of a majority of its nodes.
    """
    return (
        isinstance(error, exceptions.AMQPError)
        and error.method_sig is not None
        and error.reply_code in _BROKEN_BY_CONTENT
        and error.method_sig != spec.Queue.Declare
    )


def _mismatch(error: Exception) -> re.Match[str] | None:
    if isinstance(error, exceptions.PreconditionFailed) and error.method_sig == spec.Queue.Declare:
        return _MISMATCH.search(error.reply_text or "")
    return None


def _queue_mismatch(error: exceptions.PreconditionFailed, settings: Settings) -> QueueMismatch:
    url = masked(settings.broker)
    if found := _mismatch(error):
        queue, argument, detail = found["queue"], found["argument"], found["detail"]
        way_out = f"delete queue {queue!r} once it is empty, or use another queue name"
        if settings.queue_type == "quorum":
            way_out += ", or set queue_type='classic' if it is a Celery fleet's, to share it"
        elif argument == "x-queue-type":
            way_out += ", or set queue_type='quorum' to share it"
        return QueueMismatch(f"queue {queue!r} on {url} exists with another {argument} ({detail}); {way_out}")
    return QueueMismatch(f"a queue on {url} exists with other arguments: {error.reply_text}")
