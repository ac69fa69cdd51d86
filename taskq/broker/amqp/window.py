"""The window: a bound on what all subscriptions hold together.

What is free is offered to every subscription in equal shares, because nobody knows which queue has messages. Then those that
have used theirs up share what the others leave, so that one queue can fill the window. Several exceed it by one message each,
or by a share where two that were idle wake up at once. A consumer gets its room back by itself as its deliveries are settled:
while short tasks flow, nothing is said to the broker at all.

While nothing is free, no consumer may keep room: its message would wait here for a slot that another worker has. So they are
all cancelled after ``LINGER`` seconds, which short tasks don't take, and at once where the window is smaller than what is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from taskq.broker.amqp.subscription import Subscription

#: How long what was offered may take to arrive, in seconds; who has had no delivery for so long has none to expect.
PATIENCE = 0.01
LINGER = 0.05
#: AMQP's largest prefetch.
MOST = 65_535


class Window:
    """Hands ``size`` out among the subscriptions whose queue is not ``paused``."""

    def __init__(self, subscriptions: Sequence[Subscription]) -> None:
        self.size = 0
        self.paused: frozenset[str] = frozenset()
        self._subscriptions = subscriptions
        self._was_free = True
        self._since = -math.inf

    def resize(self, size: int, held: int) -> None:
        """Hold so many from now on."""
        self.size = size
        if size < held or not size:
            _stop(self._subscriptions)

    def adjust(self, held: int, now: float) -> float:
        """Have the consumers fit what is held now; returns when to call again at the latest (infinity: no need)."""
        free = self.size - held
        if self._was_free != (free > 0):
            self._was_free, self._since = free > 0, now
        if free > 0:
            return self._offer(free, now)
        far_over = free < -len(self._subscriptions)
        stopped = all(subscription.stopped for subscription in self._subscriptions)
        if not far_over and not stopped and now < self._since + LINGER:
            return self._since + LINGER
        _stop(self._subscriptions)
        return math.inf

    def _offer(self, free: int, now: float) -> float:
        """Let each subscription have a share, and those that use theirs have the rest."""
        _stop(subscription for subscription in self._subscriptions if subscription.queue in self.paused)
        # What a cancelled consumer still brings is not counted yet; the broker's answer leads here again.
        fetching = [one for one in self._subscriptions if one.queue not in self.paused and not one.stopping]
        share = math.ceil(free / max(1, len(fetching)))
        for one in fetching:
            if one.stopped:
                one.begin(min(share, MOST), now)
        hungry = [one for one in fetching if not one.room]
        if not hungry:
            return math.inf
        due = PATIENCE + max([self._since, *(one.moved_at for one in fetching if one.room)])
        if now < due:
            return due
        self._since = now
        _stop(one for one in fetching if one.room > 2 * share)
        for one in hungry:
            one.begin(min(math.ceil(free / len(hungry)), MOST), now)
        return math.inf


def _stop(subscriptions: Iterable[Subscription]) -> None:
    for subscription in subscriptions:
        if not subscription.stopped:
            subscription.stop()
