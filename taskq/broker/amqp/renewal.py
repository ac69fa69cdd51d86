"""Renewal: what is held for long is put into this consumer's own queue again and again, so that nothing is ever held for long.

RabbitMQ closes the channel of a consumer that has held a delivery for ``consumer_timeout`` (half an hour, or what the node's
operator has set), and hands everything on that channel to others: the long task would run twice, its neighbours too. So a
delivery that has been held for ``every`` seconds is renewed::

    a copy, published to the held queue and confirmed  ──►  consumed from there  ──►  the original is acked

The message is one or two at any moment, never none; it is two where the connection breaks in between. When its holder is
gone, the held queue passes it on to the lane, and its new holder finds that in ``x-death``. This is proof: a held queue has no
other consumer, which is never cancelled. The mark "redelivered" is none, because RabbitMQ takes back what is on its way when a
consumer is cancelled.

The ``Delivered`` that the supervisor's delivery carries stays the same, and stands for whatever is held in its place.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.outbox import Outbox, Receipt
from taskq.broker.amqp.properties import decode
from taskq.broker.amqp.topology import Topology, held_queue, is_held_queue
from taskq.errors import BrokerError, MessageError, MessageTooLarge, UnsupportedFeature
from taskq.message import Publication

RENEW = 20.0
#: Which renewal a copy belongs to.
RENEWAL = "tq-renewal"
NO_LIMIT = 0


def came_from_held(message: Delivered) -> bool:
    """Whether a message of a lane came there because a consumer vanished that had held it for long."""
    if b"x-death" not in message.raw_properties:
        return False
    try:
        deaths = decode(message.raw_properties, b"").headers["x-death"]
        return is_held_queue(str(deaths[0]["queue"]))
    except (MessageError, LookupError, TypeError):
        return False


class _Held:
    """The held queue for one queue's messages; ``begun`` once it is consumed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun = False

    def begin(self) -> None:
        """The broker has begun to deliver from it."""
        self.begun = True


class _Renewal:
    """One on its way: what is held, its copy's confirmation, and the copy once it has come back."""

    def __init__(self, original: Delivered, receipt: Receipt) -> None:
        self.original = original
        self.receipt = receipt
        self.copy: Delivered | None = None


class Renewals:
    """Every delivery that a consumer holds, by the order in which it was taken or renewed, the oldest first."""

    def __init__(self, channel: Any, topology: Topology, outbox: Outbox, every: float) -> None:
        self._channel = channel
        self._topology = topology
        self._outbox = outbox
        self._every = every
        self._held: dict[Delivered, tuple[str, float]] = {}
        self._queues: dict[str, _Held] = {}
        self._under_way: dict[int, _Renewal] = {}
        self._last_number = 0
        self._next = math.inf

    def __len__(self) -> int:
        return len(self._held)

    def add(self, message: Delivered, queue: str, now: float) -> None:
        """The message of this queue is held from now on."""
        self._held[message] = queue, now
        self._next = min(self._next, now + self._every)

    def remove(self, message: Delivered) -> None:
        """It is settled."""
        del self._held[message]

    def secure(self, message: Delivered) -> bool:
        """Whether the message is in its held queue, or says nothing that could be run; else it is renewed as soon as can be."""
        queue, _ = self._held[message]
        held = self._queues.get(queue) or self._open(queue)
        if message.consumer_tag == held.name:
            return True
        if held.begun and not any(renewal.original is message for renewal in self._under_way.values()):
            return not self._begin(message, held.name)
        return False

    def advance(self, now: float) -> list[str]:
        """Renew what is due. Returns the tags of the consumers that hold one delivery less, each as often as that."""
        released = [tag for number in tuple(self._under_way) for tag in self._complete(number)]
        if now >= self._next:
            self._next = math.inf
            self._begin_due(now)
        return released

    @property
    def next(self) -> float:
        """When to call ``advance`` again at the latest."""
        return self._next

    def close(self) -> None:
        """Delete the held queues in which nothing of ours is left: here is the only one who ever used them."""
        in_use = {message.consumer_tag for message in self._held}
        if not self._under_way:
            for held in self._queues.values():
                if held.name not in in_use:
                    self._channel.queue_delete(held.name, nowait=True)

    def _begin_due(self, now: float) -> None:
        for message, (queue, since) in tuple(self._held.items()):
            if since + self._every > now:
                self._next = since + self._every
                return
            held = self._queues.get(queue) or self._open(queue)
            if not held.begun:
                self._next = now + self._every / 10
                return
            self._begin(message, held.name)
            del self._held[message]
            self._held[message] = queue, now
        self._next = now + self._every if self._held else math.inf

    def _open(self, queue: str) -> _Held:
        held = self._queues[queue] = _Held(held_queue(queue, uuid.uuid4().hex))
        self._topology.declare(held.name)
        self._channel.request_prefetch(NO_LIMIT)
        self._channel.request_consume(held.name, held.name, self._on_copy, held.begin)
        return held

    def _begin(self, message: Delivered, held: str) -> bool:
        """Publish the copy; False for a message that cannot be read: who is given it dead-letters it, and runs nothing.

        False too where somebody else has sent headers that leave no room for one more, or that nobody else can encode.
        """
        self._last_number += 1
        try:
            original = decode(message.raw_properties, message.raw_body)
            copy = Publication(held, original.with_headers(**{RENEWAL: self._last_number}))
            self._under_way[self._last_number] = _Renewal(message, self._outbox.send([copy]))
        except (MessageError, MessageTooLarge, UnsupportedFeature):
            return False
        return True

    def _on_copy(self, copy: Delivered) -> None:
        try:
            number = decode(copy.raw_properties, b"").headers.get(RENEWAL)
        except MessageError:
            number = None
        if not isinstance(number, int):
            # Somebody else's: it goes on to the lane, as what is left behind in a held queue does.
            self._channel.basic_reject(copy.delivery_tag, requeue=False)
            return
        renewal = self._under_way.get(number)
        if renewal is None:
            copy.ack()
        else:
            renewal.copy = copy

    def _complete(self, number: int) -> list[str]:
        """Let the copy take the original's place, once it is both confirmed and here."""
        renewal = self._under_way[number]
        original, copy = renewal.original, renewal.copy
        try:
            complete = renewal.receipt.confirmed and copy is not None
        except BrokerError:
            # it is renewed when it is due again, and should the copy come all the same, it goes
            complete, copy = True, None
        if not complete:
            return []
        del self._under_way[number]
        if copy is None:
            return []
        if original not in self._held:
            copy.ack()
            return []
        released = original.consumer_tag
        self._channel.basic_ack(original.delivery_tag)
        original.delivery_tag, original.consumer_tag = copy.delivery_tag, copy.consumer_tag
        return [released]
