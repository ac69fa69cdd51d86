"""Settling: an outcome takes effect. This is the only place that acks.

The order is what at-least-once rests on: follow-ups confirmed by the broker, then the result stored, then the ack. A crash
between any two repeats something; it never loses anything. Where broker and backend are one database, all three are one
transaction, and nothing is even repeated.

A workflow adds a step on either side: a chord that begins is opened before its members are published, and a chord's member that
has ended is counted when its result is stored. The last one's outcome goes on with the chord's body: published and confirmed,
then the chord is closed, and only then is that member's message acked.
"""

from __future__ import annotations

import math
import select
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from taskq import log
from taskq.broker.interface import Consumer, Delivery, Receipt
from taskq.errors import BrokerError, ConnectionLost
from taskq.launch import Member, Route
from taskq.message import TICK, TICK_COPY, Message, Publication
from taskq.results.ledger import may_run
from taskq.results.rpc import reply
from taskq.results.store import Gathering, Record, ResultStore
from taskq.workers.ending import chord_ended
from taskq.workers.outcome import Flow, Outcome
from taskq.workers.tap import Tap
from taskq.workers.vitals import Vitals

#: How long the broker may take to confirm a follow-up, in seconds; then the connection counts as broken.
CONFIRM_SECONDS = 30.0
#: How long the last settling may take, in seconds.
LAST_SETTLING = 5.0
#: After how many seconds a chord is asked again whose claim is with somebody else.
CONTESTED_SECONDS = 0.5

logger = log.get_logger("taskq.settle")


class Settlement:
    """An outcome on its way to take effect.

    ``since`` is when it came about, and ``published_at`` when its follow-ups went out, in monotonic seconds.

    With ``then``, the outcome is a beginning: the message stays unacked, and the record stored is told by ``then(True)``.
    ``stages`` are the outcomes still to take effect: the delivery's own, then those of the ``chords`` that it has completed.
    These are closed together at the end: were one closed before what follows it has taken effect, nobody would make up for
    it. It is not looked at before ``due``.
    """

    __slots__ = ("chords", "delivery", "due", "outcome", "published_at", "receipt", "since", "stages", "then")

    def __init__(self, delivery: Delivery, outcome: Outcome, then: Callable[[bool], None] | None = None) -> None:
        self.delivery = delivery
        self.outcome = outcome
        self.then = then
        self.since = time.monotonic()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing of it has taken effect."""
        self.stages = [self.outcome]
        self.chords: list[str] = []
        self.await_nothing()
        self.due = 0.0

    def await_nothing(self) -> None:
        """What it publishes has yet to go out."""
        self.receipt: Receipt | None = None
        self.published_at = 0.0

    @property
    def stage(self) -> Outcome:
        """The outcome that takes effect now."""
        return self.stages[0]


class Question(NamedTuple):
    """Whether this copy of a schedule's tick may run; ``answer`` is told."""

    delivery: Delivery
    tick: str
    copy: str
    answer: Callable[[bool], None]


class Settler:
    """Holds the outcomes that have not yet taken effect."""

    def __init__(
        self, store: ResultStore | None, route: Route, worker: str, vitals: Vitals | None = None, *, replies: bool = False
    ) -> None:
        self.store = store
        self.vitals = Vitals(time.monotonic()) if vitals is None else vitals
        self.tap = Tap()
        self._replies = replies
        self.settlements: list[Settlement] = []
        self.notes: list[Record] = []
        self.questions: list[Question] = []
        self._route = route
        # Unlike the worker's name, this is never anybody else's again.
        self._claimant = f"{worker} {uuid.uuid4()}"

    @property
    def due(self) -> float | None:
        """When to settle again although nothing has happened, in monotonic seconds; None: there is no need."""
        return min((s.due for s in self.settlements if s.due), default=None)

    def add(self, delivery: Delivery, outcome: Outcome, then: Callable[[bool], None] | None = None) -> None:
        """The delivery has come to this end; ``settle`` makes it so."""
        self.settlements.append(Settlement(delivery, outcome, then))

    def note(self, begun: Record | None) -> None:
        """A task of a workflow begins: recorded with the next pass, for whoever looks, and lost should that pass fail."""
        if begun is not None:
            self.notes.append(begun)

    def ask(self, delivery: Delivery, message: Message, answer: Callable[[bool], None]) -> None:
        """The delivery is a copy of a tick; whether it may run is told with the next pass that reaches the ledger."""
        headers = message.headers
        self.questions.append(Question(delivery, str(headers.get(TICK)), str(headers.get(TICK_COPY)), answer))

    @property
    def idle(self) -> bool:
        """Whether a pass would find nothing to do."""
        return not (self.settlements or self.notes or self.questions)

    def settle(self, consumer: Consumer) -> None:
        """One pass over what waits. Whatever fails stays here, its message unacked, and is tried again by the next pass.

        Raises ``BrokerError`` for what failed, after everything else has been settled as far as it can be.
        """
        refusals: list[BrokerError] = []
        # Where broker and results are one database, whatever fails is rolled back as a whole.
        whole = consumer.database is not None
        finished = [settlement for settlement in self.settlements if not settlement.stages]
        now = time.monotonic()
        try:
            with consumer.transaction():
                self._store_notes()
                active = [settlement for settlement in self.settlements if settlement.stages and settlement.due <= now]
                while active:
                    self._publish(consumer, active)
                    done = [settlement for settlement in active if self._confirmed(settlement, refusals)]
                    active = self._record(done, now)
                    finished += [settlement for settlement in done if not settlement.stages]
                self._close([chord for settlement in finished for chord in settlement.chords])
                for settlement in finished:
                    if settlement.then is None:
                        consumer.ack(settlement.delivery)
        except Exception as error:
            if whole:
                for settlement in self.settlements:
                    settlement.begin_anew()
            elif isinstance(error, ConnectionLost):
                # What went out on a connection that broke has to be published again.
                for settlement in self.settlements:
                    settlement.await_nothing()
            raise
        self._remove(finished)
        now = time.monotonic()
        for settlement in finished:
            if settlement.then is not None:
                settlement.then(True)
            else:
                self.vitals.settlements.observe(now - settlement.since)
        self._answer()
        if refusals:
            raise refusals[0]

    def settle_the_rest(self, consumer: Consumer) -> None:
        """Settle what is left, follow-ups confirmed as ever: a copy without the ack of its original would be a second task."""
        deadline = time.monotonic() + LAST_SETTLING
        try:
            self.settle(consumer)
            while self.settlements and time.monotonic() < deadline:
                select.select([consumer.fileno()], [], [], 0.1)
                consumer.receive()
                self.settle(consumer)
        except BrokerError as error:
            logger.error("broker_failed", error=str(error), unsettled=len(self.settlements))

    def _answer(self) -> None:
        while self.questions and self.store is not None:
            question, ledger = self.questions[0], self.store.ledger
            may = ledger is None or may_run(ledger, question.tick, question.copy)
            self.questions.pop(0).answer(may)

    def _store_notes(self) -> None:
        notes, self.notes = self.notes, []
        if notes and self.store is not None:
            self.store.store(notes)

    def _publish(self, consumer: Consumer, settlements: Sequence[Settlement]) -> None:
        """Open the chords that begin, and send what has not been sent."""
        new = [(s, publish) for s in settlements if s.receipt is None and (publish := self._published(s.stage))]
        if barriers := [barrier for settlement, _ in new if (flow := settlement.stage.flow) for barrier in flow.barriers]:
            if self.store is None or self.store.chords is None:
                logger.error("chords_not_counted", chords=[barrier.chord for barrier in barriers])
            else:
                self.store.chords.open(barriers)
        for settlement, publish in new:
            settlement.receipt = consumer.publish(publish)
            settlement.published_at = time.monotonic()

    def _published(self, stage: Outcome) -> tuple[Publication, ...]:
        """What follows; where results are replies, they do too."""
        if not self._replies:
            return stage.publish
        records = (stage.record, *(stage.flow.records if stage.flow is not None else ()))
        return (*stage.publish, *(sent for record in records if record is not None and (sent := reply(record)) is not None))

    def _confirmed(self, settlement: Settlement, refusals: list[BrokerError]) -> bool:
        """Whether the broker has taken what follows; what it refused goes out again in the next pass."""
        if settlement.receipt is None:
            return True
        try:
            confirmed = settlement.receipt.confirmed
        except BrokerError as refusal:
            settlement.receipt = None
            refusals.append(refusal)
            return False
        if confirmed:
            self.vitals.confirmations.observe(time.monotonic() - settlement.published_at)
        return confirmed

    def _record(self, done: Sequence[Settlement], now: float) -> list[Settlement]:
        """Store what these have to record, and take them a stage further; returns those that can go on at once."""
        if self.store is None:
            for settlement in done:
                settlement.stages.clear()
            return []
        records: list[Record] = []
        for settlement in done:
            stage = settlement.stage
            if stage.record is not None:
                records.append(stage.record)
            if stage.flow is not None:
                records += stage.flow.records
        if records:
            self.store.store(records)
        members = [(s, member) for s in done if s.stage.flow is not None for member in s.stage.flow.members]
        gatherings = self._count([member for _, member in members])
        for settlement in done:
            del settlement.stages[0]
            settlement.await_nothing()
            settlement.due = 0.0
        # A member that has ended twice may complete its chord twice, but the claim is the worker's.
        under_way = {chord for settlement in self.settlements for chord in settlement.chords}
        for (settlement, member), gathering in zip(members, gatherings, strict=True):
            match gathering.state:
                case "complete" if member.part.chord not in under_way:
                    under_way.add(member.part.chord)
                    settlement.stages.append(chord_ended(member, gathering, self._route))
                    settlement.chords.append(member.part.chord)
                case "complete" | "contested":
                    # Whoever has the claim may be dead: until it is certain that the body has begun, this member asks again.
                    settlement.stages.append(_ask_again(member))
                    settlement.due = now + CONTESTED_SECONDS
        return [settlement for settlement in done if settlement.stages and settlement.due <= now]

    def _count(self, members: Sequence[Member]) -> list[Gathering]:
        """Count these members of chords, which have ended; returns how their chords stand."""
        if not members or self.store is None or self.store.chords is None:
            return [Gathering("over")] * len(members)
        return self.store.chords.count([member.part for member in members], self._claimant)

    def _close(self, chords: Sequence[str]) -> None:
        if chords and self.store is not None and self.store.chords is not None:
            self.store.chords.close(chords, self._claimant)

    def _remove(self, finished: Sequence[Settlement]) -> None:
        if len(finished) == len(self.settlements):
            self.settlements.clear()
            return
        ids = set(map(id, finished))
        self.settlements = [settlement for settlement in self.settlements if id(settlement) not in ids]
        oldest = min((s.published_at for s in self.settlements if s.receipt is not None), default=math.inf)
        if time.monotonic() - oldest > CONFIRM_SECONDS:
            raise ConnectionLost(f"a follow-up message was not confirmed within {CONFIRM_SECONDS:g} s")

    def forget_beginning(self, delivery: Delivery) -> bool:
        """Whoever asked leave to begin this is dead; returns whether it was still waiting for it."""
        kept = [s for s in self.settlements if s.then is None or s.delivery is not delivery]
        asking = [question for question in self.questions if question.delivery is not delivery]
        waited = len(kept) < len(self.settlements) or len(asking) < len(self.questions)
        self.settlements, self.questions = kept, asking
        return waited

    def drop_lost(self) -> list[Settlement]:
        """The connection broke: its deliveries cannot be acked any more. Returns what had not taken effect."""
        lost, self.settlements = self.settlements, []
        return lost


def _ask_again(member: Member) -> Outcome:
    return Outcome("gathered", flow=Flow(members=(member,)))
