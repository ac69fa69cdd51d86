"""What RabbitMQ would refuse, found without asking it: at the call, and where the outcome of a task is made.

RabbitMQ answers most of this by closing the channel or the connection, and whatever else is on its way there is broken off too.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from taskq.broker.amqp.properties import encode, named
from taskq.broker.amqp.topology import DELAY_KEY, LANE, MAX_DELAY, company, is_dead_letter_queue
from taskq.broker.interface import Check
from taskq.config import Settings
from taskq.errors import MessageTooLarge, UnsupportedFeature
from taskq.message import Message, Publication

#: AMQP's limit for names, routing keys and short properties, in bytes.
MAX_NAME = 255
#: Properties and headers travel in one frame; RabbitMQ's are of this size, unless its operator has set another.
FRAME_MAX = 131_072
#: What the frame and the content header add to the properties.
FRAME_OVERHEAD = 20
#: What a new message leaves free for what is added on its way: counters, the history of its attempts, why it is dead.
RESERVE = 32_768
#: A name and a value are at most so many bytes longer than their text; what has no text is no longer than that.
_VALUE = 10


def checker(settings: Settings) -> Check:
    """See ``taskq.broker.interface.Check``."""

    def check(publication: Publication) -> None:
        if publication.reply:
            check_name(publication.queue)
        else:
            check_route(publication)
            check_priority(publication, settings)
        check_properties(publication)

    return check


def check_priority(publication: Publication, settings: Settings) -> None:
    """Raises ``UnsupportedFeature`` for a priority that the queue does not have.

    What is published again, or dies, keeps the priority that it came with, whoever gave it.
    """
    queue, message = publication.queue, publication.message
    priority = message.priority
    if not priority or message.attempt > 1 or is_dead_letter_queue(queue):
        return
    if settings.queue_type == "quorum":
        raise UnsupportedFeature(
            f"priority {priority} for queue {queue!r}: RabbitMQ's quorum queues have no priorities; "
            "send without, or set queue_type='classic' and queue_max_priority"
        )
    if not 0 <= priority <= settings.queue_max_priority:
        raise UnsupportedFeature(
            f"priority {priority} for queue {queue!r} is not within 0 and queue_max_priority={settings.queue_max_priority}; "
            "raise the setting (a queue that exists must be deleted and declared anew) or send another priority"
        )


def check_route(publication: Publication) -> None:
    """Raises ``UnsupportedFeature`` for a queue name or a delay that RabbitMQ cannot carry."""
    queue, delay = publication.queue, publication.delay
    check_queue(queue)
    if not delay <= MAX_DELAY:
        raise UnsupportedFeature(
            f"a delay of {delay:g} s for queue {queue!r}: RabbitMQ holds a message for {MAX_DELAY} s at most"
        )
    if delay > 0:
        check_delay(queue)


@lru_cache(maxsize=4096)
def check_queue(queue: str) -> None:
    """Raises ``UnsupportedFeature`` for a queue that RabbitMQ would not let us declare, with what belongs to it."""
    for name in company(queue):
        check_name(name, of=queue)
    if queue.startswith("amq."):
        raise UnsupportedFeature(f"queue {queue!r}: RabbitMQ keeps names that begin with 'amq.' for itself; rename it")
    if any(ord(character) < ord(" ") or character == "\x7f" for character in queue):
        raise UnsupportedFeature(f"queue {queue!r}: RabbitMQ drops control characters from a name; rename it")
    if queue.endswith(LANE):
        raise UnsupportedFeature(f"queue {queue!r}: taskq keeps in {queue!r} what goes first in another queue; rename yours")


def check_name(name: str, of: str | None = None) -> None:
    """Raises ``UnsupportedFeature`` for a name that AMQP has no room for; ``of`` is the queue that it belongs to."""
    queue = name if of is None else of
    if not queue or _size(name, f"queue {queue!r}") > MAX_NAME:
        raise UnsupportedFeature(f"queue {queue!r}: RabbitMQ takes names of 1 to {MAX_NAME - len(LANE)} bytes")


@lru_cache(maxsize=4096)
def check_delay(queue: str) -> None:
    """Raises ``UnsupportedFeature`` for a queue whose messages RabbitMQ could not delay."""
    if _size(DELAY_KEY + queue, f"queue {queue!r}") > MAX_NAME:
        raise UnsupportedFeature(f"queue {queue!r}: for delays, its name may have {MAX_NAME - len(DELAY_KEY)} bytes")
    if {"*", "#"} & set(queue.split(".")):
        raise UnsupportedFeature(f"queue {queue!r}: '*' and '#' between dots are wildcards where RabbitMQ delays; rename it")


def check_properties(publication: Publication) -> None:
    """Raises ``UnsupportedFeature`` for headers and properties that AMQP cannot carry, ``MessageTooLarge`` for too many."""
    message, room = publication.message, FRAME_MAX - FRAME_OVERHEAD
    if _most(message) <= room - RESERVE:
        return
    size = len(encode(named(message)))
    if message.attempt == 1 and not is_dead_letter_queue(publication.queue):
        room -= RESERVE
    if size > room:
        raise too_large(publication, size, room)


def too_large(publication: Publication, size: int, room: int) -> MessageTooLarge:
    """The error that says what is too large, and what to do about it."""
    headers = publication.message.headers
    biggest = max(headers, key=lambda name: len(repr(headers[name])), default="")
    return MessageTooLarge(
        f"the headers of a message of task {headers.get('task')!r} for queue {publication.queue!r} are {size} bytes, "
        f"over {room}, which is what one frame of RabbitMQ has room for; the largest is {biggest!r}: "
        "pass what is large as an argument, since the body has no such limit"
    )


def _size(name: str, what: str) -> int:
    try:
        return len(name.encode())
    except UnicodeEncodeError as error:
        raise UnsupportedFeature(f"{what} cannot be encoded as UTF-8: {error}") from error


def _most(message: Message) -> float:
    """How many bytes the properties are at most; infinitely many where only encoding them can tell.

    Written for speed: each message that is sent comes by, nearly all of them short and plain.
    """
    shorts = (message.content_type, message.content_encoding, message.correlation_id, message.reply_to)
    headers = message.headers
    try:
        names = "".join(headers)
        short = "".join([text for text in shorts if text is not None])
    except TypeError:
        return math.inf
    if not names.isascii() or not short.isascii() or len(short) > MAX_NAME:
        return math.inf
    if len(names) > MAX_NAME and max(map(len, headers)) > MAX_NAME:
        return math.inf
    size: float = len(names) + len(short) + _VALUE * (len(headers) + len(shorts))
    for value in headers.values():
        if type(value) is str:
            if not value.isascii():
                return math.inf
            size += len(value)
        elif value is not None and value is not True and value is not False:
            size += _most_of(value)
    return size


def _most_of(value: Any) -> float:
    """As ``_most``, of a header's value beyond its type and length."""
    kind = type(value)
    if (kind is int and -(2**63) <= value < 2**63) or (kind is float and math.isfinite(value)):
        return 0
    if kind is list and all(item is None or item is True or item is False for item in value):
        return _VALUE * len(value)
    return math.inf
