"""Settling: an outcome takes effect. This is the only place that acks.

The order is what at-least-once rests on: follow-ups confirmed by the broker, then the result stored, then the ack. A crash
between any two repeats something; it never loses anything. Where broker and backend are one database, all three are one
transaction, and nothing is even repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from taskq.broker.interface import Consumer, Delivery, Receipt
from taskq.errors import BrokerError, ConnectionLost
from taskq.results.store import ResultStore
from taskq.workers.outcome import Outcome

#: How long the broker may take to confirm a follow-up, in seconds; then the connection counts as broken.
CONFIRM_SECONDS = 30.0


class Settlement:
    """An outcome on its way to take effect. ``published_at`` is when its follow-ups went out, in monotonic seconds.

    With ``then``, the outcome is a beginning: the message stays unacked, and the record stored is told by ``then(True)``.
    """

    __slots__ = ("delivery", "outcome", "published_at", "receipt", "then")

    def __init__(self, delivery: Delivery, outcome: Outcome, then: Callable[[bool], None] | None = None) -> None:
        self.delivery = delivery
        self.outcome = outcome
        self.then = then
        self.receipt: Receipt | None = None
        self.published_at = 0.0


class Settler:
    """Holds the outcomes that have not yet taken effect."""

    def __init__(self, store: ResultStore | None) -> None:
        self.store = store
        self.settlements: list[Settlement] = []

    def add(self, delivery: Delivery, outcome: Outcome, then: Callable[[bool], None] | None = None) -> None:
        """The delivery has come to this end; ``settle`` makes it so."""
        self.settlements.append(Settlement(delivery, outcome, then))

    def settle(self, consumer: Consumer) -> None:
        """One pass over what waits. Whatever fails stays here, its message unacked, and is tried again by the next pass.

        Raises ``BrokerError`` for what failed, after everything else has been settled as far as it can be.
        """
        published: list[Settlement] = []
        refusals: list[BrokerError] = []
        try:
            with consumer.transaction():
                for settlement in self.settlements:
                    if settlement.outcome.publish and settlement.receipt is None:
                        settlement.receipt = consumer.publish(settlement.outcome.publish)
                        settlement.published_at = time.monotonic()
                        published.append(settlement)
                done = [settlement for settlement in self.settlements if _confirmed(settlement, refusals)]
                if self.store is not None and (records := [s.outcome.record for s in done if s.outcome.record is not None]):
                    self.store.store(records)
                for settlement in done:
                    if settlement.then is None:
                        consumer.ack(settlement.delivery)
        except Exception as error:
            # What was rolled back, or went out on a connection that broke, has to be published again. Where the broker is
            # another than the database that failed, what went out stays out.
            transactional = consumer.database is not None
            for settlement in self.settlements if isinstance(error, ConnectionLost) else published if transactional else ():
                settlement.receipt = None
            raise
        self._remove(done)
        for settlement in done:
            if settlement.then is not None:
                settlement.then(True)
        if refusals:
            raise refusals[0]

    def _remove(self, done: list[Settlement]) -> None:
        if len(done) == len(self.settlements):
            self.settlements.clear()
            return
        finished = set(map(id, done))
        self.settlements = [settlement for settlement in self.settlements if id(settlement) not in finished]
        oldest = min((s.published_at for s in self.settlements if s.receipt is not None), default=math.inf)
        if time.monotonic() - oldest > CONFIRM_SECONDS:
            raise ConnectionLost(f"a follow-up message was not confirmed within {CONFIRM_SECONDS:g} s")

    def forget_beginning(self, delivery: Delivery) -> bool:
        """Whoever asked leave to begin this is dead; returns whether it was still waiting for it."""
        kept = [s for s in self.settlements if s.then is None or s.delivery is not delivery]
        waited = len(kept) < len(self.settlements)
        self.settlements = kept
        return waited

    def drop_lost(self) -> list[Settlement]:
        """The connection broke: its deliveries cannot be acked any more. Returns what had not taken effect."""
        lost, self.settlements = self.settlements, []
        return lost


def _confirmed(settlement: Settlement, refusals: list[BrokerError]) -> bool:
    """Whether the broker has taken what follows; what it refused goes out again in the next pass."""
    try:
        return settlement.receipt is None or settlement.receipt.confirmed
    except BrokerError as refusal:
        settlement.receipt = None
        refusals.append(refusal)
        return False
