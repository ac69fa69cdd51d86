"""Looking at a queue's messages, and taking some out.

They are consumed, and held unacked while the queue is open; when it is closed, what was neither moved nor removed goes back.
RabbitMQ then marks it as redelivered. That says nothing of a dead letter, but to a worker it says that the holder vanished: so
this is not for queues that workers consume.

RabbitMQ counts each look, and deletes a message that has come back more often than its queue's delivery limit says. Ours have
one that nobody reaches; those of an earlier taskq have none, which RabbitMQ 4 takes for 20, so that what was looked at often is
written anew there.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.properties import decode
from taskq.broker.amqp.subscription import Subscription
from taskq.broker.amqp.topology import is_dead_letter_queue
from taskq.broker.amqp.transport import Connection
from taskq.errors import MessageError, MessageTooLarge, UnsupportedFeature
from taskq.message import DEAD_AT, DEAD_REASON, Message, Publication, undecodable

#: How many messages may be on their way at once.
AHEAD = 500
#: How long none may come before the rest counts as somebody else's, in seconds.
SILENCE = 2.0
#: How long the broker gets for the last removals, in seconds.
SETTLING = 0.1
#: How long it gets for what goes back, in seconds; it is done sooner, unless somebody else takes that.
RETURNING = 1.0
RETURNS = "x-delivery-count"
#: How often a message may come back before it is written anew.
WORN = 10
#: How long it may take to answer at the end, in seconds.
GOODBYE = 5.0


class AmqpLetters:
    """The ``count`` messages of a queue on a channel of their own; see ``taskq.broker.interface.Letters``.

    ``publish`` returns once the broker has taken responsibility; ``guard`` turns what a broken connection raises into
    ``ConnectionLost``. ``limited`` says whether the queue has a delivery limit of ours.
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        count: int,
        publish: Callable[[Publication], None],
        guard: Callable[[], AbstractContextManager[None]],
        limited: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._left = count
        self._publish = publish
        self._guard = guard
        self._limited = limited
        self._worn: list[tuple[Delivered, Message]] = []
        self._arrived: deque[Delivered] = deque()
        self._held = 0
        self._settled_at = 0.0
        with guard():
            self._channel = connection.channel()
            self._subscription = Subscription(self._channel, queue, queue, "letters", self._arrive)

    def __iter__(self) -> Iterator[tuple[Any, Message]]:
        """Each message that was there when the queue was opened, oldest first."""
        while self._left and self._wait_for_next():
            self._left -= 1
            letter = self._arrived.popleft()
            message = _read(letter)
            if message.count(RETURNS) >= WORN:
                self._worn.append((letter, message))
            # RabbitMQ's count goes up with every look, and so says nothing
            yield letter, message.without(RETURNS)

    def move(self, handle: Delivered, publication: Publication) -> bool:
        """Publish, and remove the original once the copy is confirmed. What we hold, nobody else can have: always true."""
        self._publish(publication)
        return self.remove(handle)

    def remove(self, handle: Delivered) -> bool:
        """Delete the message."""
        with self._guard():
            handle.ack()
        self._subscription.settled(handle.consumer_tag)
        self._held -= 1
        self._settled_at = time.monotonic()
        return True

    def close(self) -> None:
        """Let go of the queue; what was removed is gone for good, and the rest is back."""
        self._write_anew([(letter, message) for letter, message in self._worn if not letter.acknowledged])
        self._connection.deadline = time.monotonic() + GOODBYE
        with self._guard():
            # A channel forgets the acks that it has not passed on when it closes, and its goodbye comes before the returns.
            while time.monotonic() < self._settled_at + SETTLING:
                self._count()
            self._channel.close()
            self._channel = self._connection.channel()
            until = time.monotonic() + RETURNING
            while self._held and self._count() < self._held and time.monotonic() < until:
                pass
            self._channel.close()

    def _write_anew(self, worn: Sequence[tuple[Delivered, Message]]) -> None:
        if not worn or not is_dead_letter_queue(self._queue) or self._limited():
            return
        for letter, message in worn:
            # One that cannot be encoded again stays as it is.
            with contextlib.suppress(UnsupportedFeature, MessageTooLarge):
                self.move(letter, Publication(self._queue, _with_reason(message)))

    def _count(self) -> int:
        count: int = self._channel.queue_declare(self._queue, passive=True).message_count
        return count

    def _arrive(self, _subscription: Subscription, message: Delivered) -> None:
        self._held += 1
        self._arrived.append(message)

    def _wait_for_next(self) -> bool:
        with self._guard():
            if not self._arrived and not self._subscription.room:
                self._subscription.begin(min(AHEAD, self._left), time.monotonic())
            self._connection.deadline = time.monotonic() + SILENCE
            try:
                while not self._arrived:
                    self._connection.drain_events()
            except TimeoutError:
                return False
            return True


def _read(letter: Delivered) -> Message:
    try:
        return decode(letter.raw_properties, letter.raw_body)
    except MessageError:
        return undecodable(letter.raw_body)


def _with_reason(message: Message) -> Message:
    """The dead letter with RabbitMQ's reason in our words: its own are not sent again."""
    match message.headers.get("x-death"):
        case [{"reason": str(reason), "time": int(at)}, *_] if DEAD_REASON not in message.headers:
            return message.with_headers(**{DEAD_REASON: reason.replace("_", " "), DEAD_AT: at})
    return message
