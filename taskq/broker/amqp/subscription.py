"""One queue's consumers on a channel: how many more deliveries they may bring, and how many of theirs are held.

RabbitMQ fixes a consumer's prefetch when it begins, and what a consumer holds stays its own after it is cancelled. So more
room means one consumer more, with the difference; less room means to cancel them all and to begin again. A tag is never used
again: RabbitMQ 3.10 closes the connection with an internal error when a tag that holds deliveries of a quorum queue consumes
anew.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from kombu import Queue

from taskq.broker.amqp.delivered import Delivered


class Subscription:
    """Consumes ``source``, which is ``queue`` or its lane; ``arrive`` is called for each delivery.

    ``room`` is how many more it may bring, ``moved_at`` when one came or began to be able to, ``begun`` counts consumers.
    """

    def __init__(
        self, channel: Any, queue: str, source: str, name: str, arrive: Callable[[Subscription, Delivered], None]
    ) -> None:
        self.queue = queue
        self.source = source
        self._channel = channel
        self._bound = Queue(source, channel=channel)
        self._name = name
        self._arrive = arrive
        self._prefetch: dict[str, int] = {}
        self._held: Counter[str] = Counter()
        self._cancelling: set[str] = set()
        self.room = 0
        self.begun = 0
        self.moved_at = 0.0

    @property
    def stopping(self) -> bool:
        """Whether a cancelled consumer may still bring something."""
        return bool(self._cancelling)

    @property
    def stopped(self) -> bool:
        """Whether no consumer is left that could bring anything once what it holds is settled."""
        return not self._prefetch

    def begin(self, count: int, now: float) -> None:
        """Have one consumer more, with this prefetch."""
        self.moved_at = now
        self.begun += 1
        tag = f"{self._name}.{self.begun}"
        self._prefetch[tag] = count
        self.room += count
        self._channel.request_prefetch(count)
        self._bound.consume(tag, self._on_message, no_ack=False, nowait=True)

    def stop(self) -> None:
        """Cancel the consumers; what is on its way still arrives."""
        self._cancelling.update(self._prefetch)
        for tag in self._prefetch:
            self._channel.request_cancel(tag, functools.partial(self._cancelling.discard, tag))
        self._prefetch.clear()
        self.room = 0

    def settled(self, consumer_tag: str) -> None:
        """One delivery less is held by this consumer."""
        self._held[consumer_tag] -= 1
        if not self._held[consumer_tag]:
            del self._held[consumer_tag]
        if consumer_tag in self._prefetch:
            self.room += 1

    def _on_message(self, message: Delivered) -> None:
        tag = message.consumer_tag
        self._held[tag] += 1
        if tag in self._prefetch:
            self.room -= 1
        self.moved_at = time.monotonic()
        self._arrive(self, message)
