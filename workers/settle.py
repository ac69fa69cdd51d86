"""Settling: an outcome takes effect. This is the only place that acks.

The order is what at-least-once rests on: follow-ups confirmed by the broker, then the result stored, then the ack. A crash
between any two repeats something; it never loses anything. Where broker and backend are one database, all three are one
transaction, and nothing is even repeated.

A workflow adds a step on either side: a chord that begins is opened before its members are published, and a chord's member that
has ended is counted when its result is stored. The last one's outcome goes on with the chord's body: published and confirmed,
then the chord is closed, and only then is that member's message acked.

All that waits is settled in one pass. Where that fails, halves of it are, down to the settlement that it fails for: what is
refused for good costs that task alone, which ends as a dead letter (``last_resort``), and its neighbours are settled in the
same pass. Only what is broken for everybody, the connection, the backend or the disk, is the caller's to wait for.
"""

from __future__ import annotations

import math
import select
import time
import uuid
from collections.abc import Sequence

from taskq import log
from taskq.broker.interface import Consumer, Delivery
from taskq.errors import BrokerError, ConfigurationError, ConnectionLost, MessageTooLarge, PublishRejected, TaskqError
from taskq.launch import Member
from taskq.message import TICK, TICK_COPY, Message, Publication
from taskq.results.store import Gathering, Record, ResultStore
from taskq.workers.chords import ask_again, close_chords, count, open_chords
from taskq.workers.ending import chord_ended
from taskq.workers.followups import is_told_only, may_go_out, to_send
from taskq.workers.last_resort import LastResort, in_words, may_pass
from taskq.workers.leave import may_tick, without_leave
from taskq.workers.outcome import Outcome
from taskq.workers.settlement import Answer, Question, Settlement
from taskq.workers.slot import Slot
from taskq.workers.tap import Tap
from taskq.workers.vitals import Vitals

#: How long the broker may take to confirm a follow-up, in seconds; then the connection counts as broken.
CONFIRM_SECONDS = 30.0
#: How long the last settling may take, in seconds.
LAST_SETTLING = 5.0
#: After how many seconds a chord is asked again whose claim is with somebody else.
CONTESTED_SECONDS = 0.5
#: After how many seconds a settlement that failed by itself is tried again, the first time and at most.
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
#: How often an error that nobody has foreseen may come of a settlement, before it counts as one for good.
UNFORESEEN = 3
#: After how many dead letters that could not be written either nothing more is left out.
FOR_SURE = 3
#: How many connections the broker has closed over a settlement that is known to be the cause: the second time it was alone.
PROVEN_BREAKS = 2

logger = log.get_logger("taskq.settle")


class Settler:
    """Holds the outcomes that have not yet taken effect. ``answers`` are for the caller to hand on after each pass."""

    def __init__(
        self, store: ResultStore | None, last_resort: LastResort, vitals: Vitals | None = None, *, replies: bool = False
    ) -> None:
        self.store = store
        self.vitals = Vitals(time.monotonic()) if vitals is None else vitals
        self.tap = Tap()
        self.last_resort = last_resort
        self.settlements: list[Settlement] = []
        self.notes: list[Record] = []
        #: What had leave to begin, has not begun, and never will under this leave: others may have it.
        self.withdrawn: list[Record] = []
        self.questions: list[Question] = []
        self.answers: list[Answer] = []
        #: How many settlements were not due in the last pass.
        self.waiting = 0
        self._replies = replies
        #: Whether the last pass failed for everybody.
        self._failed = False
        # Unlike the worker's name, this is never anybody else's again.
        self._claimant = f"{last_resort.worker} {uuid.uuid4()}"

    @property
    def due(self) -> float | None:
        """When to settle again although nothing has happened, in monotonic seconds; None: there is no need."""
        return min((s.due for s in self.settlements if s.due), default=None)

    def add(self, delivery: Delivery, outcome: Outcome, asked: tuple[Slot, int] | None = None, *, breaks: int = 0) -> None:
        """The delivery has come to this end; ``settle`` makes it so. ``breaks`` is what its last settlement said of them."""
        settlement = Settlement(delivery, outcome, asked, breaks)
        if breaks >= PROVEN_BREAKS:
            settlement.dead_letters = breaks - PROVEN_BREAKS
            self._dead_letter(settlement, PublishRejected("the broker closes the connection that what follows is sent on"))
        self.settlements.append(settlement)

    def note(self, begun: Record | None) -> None:
        """Recorded with the next pass, for whoever looks, and lost should that pass fail: a task of a workflow begins."""
        if begun is not None:
            self.notes.append(begun)

    def ask(self, delivery: Delivery, message: Message, asked: tuple[Slot, int]) -> None:
        """The delivery is a copy of a tick; whether it may run is told with the next pass that reaches the ledger."""
        headers = message.headers
        self.questions.append(Question(delivery, str(headers.get(TICK)), str(headers.get(TICK_COPY)), asked))

    @property
    def idle(self) -> bool:
        """Whether a pass would find nothing to do."""
        return not (self.settlements or self.notes or self.withdrawn or self.questions)

    def settle(self, consumer: Consumer) -> None:
        """One pass over what waits. What fails stays here, its message unacked, and is tried again by a later pass.

        Raises ``BrokerError`` for what is broken for everybody; what concerns one settlement alone never is.
        """
        now = time.monotonic()
        due = [settlement for settlement in self.settlements if settlement.due <= now]
        self.waiting = len(self.settlements) - len(due)
        probing, self._failed, self._proven = self._failed and len(due) > 1, True, False
        if probing:
            # One of them finds out whether it is broken for everybody still, and another one the next time: were the trouble
            # with one of them, the others would wait in vain for it to pass.
            self.settlements.remove(due[0])
            self.settlements.append(due[0])
            self._settle(consumer, due[:1], now)
            self._proven = True
            due = due[1:]
        self._settle(consumer, due, now)
        self._failed = False
        self._answer()
        self._check_confirmations(now)

    def _settle(self, consumer: Consumer, batch: Sequence[Settlement], now: float) -> None:
        """Settle these, together or, where that fails, by halves."""
        try:
            self._pass(consumer, batch, now)
        except ConnectionLost:
            raise
        except Exception as error:  # whatever it is, it must not keep the neighbours from being settled
            of_chord = any(settlement.members for settlement in batch)
            if consumer.database is not None:
                # One transaction, and it was rolled back as a whole.
                for settlement in batch:
                    settlement.begin_anew()
            if may_pass(error) and not self._proven:
                raise
            if len(batch) > 1:
                middle = len(batch) // 2
                self._settle(consumer, batch[:middle], now)
                self._settle(consumer, batch[middle:], now)
            elif batch:
                # What two in a row meet is no trouble of theirs.
                self._proven = self._proven and not may_pass(error)
                self._fail(batch[0], error, now, of_chord=of_chord)
            else:
                logger.warning("beginnings_not_recorded", error=in_words(error))

    def _pass(self, consumer: Consumer, batch: Sequence[Settlement], now: float) -> None:
        """Take these as far as they come, in one transaction."""
        finished = [settlement for settlement in batch if not settlement.stages]
        with consumer.transaction():
            self._store_notes()
            active = [settlement for settlement in batch if settlement.stages]
            while active:
                done, following = self._parted(active)
                if following:
                    self._publish(consumer, following)
                    done += [settlement for settlement in following if self._confirmed(settlement, now)]
                active = self._record(done, now)
                finished += [settlement for settlement in done if not settlement.stages]
            close_chords(self.store, [member for settlement in finished for member in settlement.members], self._claimant)
            for settlement in finished:
                if settlement.asked is None and not settlement.acked:
                    if settlement.delivery.tag is not None:
                        consumer.ack(settlement.delivery)
                    settlement.acked = True
        self.withdrawn.clear()
        self._remove(finished)
        now = time.monotonic()
        for settlement in finished:
            if settlement.asked is not None:
                granted = settlement.leave == "granted"
                self.answers.append(Answer(*settlement.asked, granted=granted, settled=not granted))
                if not granted:
                    self.add(settlement.delivery, without_leave(settlement, self.last_resort))
            else:
                self.vitals.settlements.observe(now - settlement.since)

    def _fail(self, settlement: Settlement, error: Exception, now: float, *, of_chord: bool = False) -> None:
        """The settlement failed by itself: it is tried again later, or ends as a dead letter. ``of_chord``: its chord did."""
        settlement.failures += 1
        passing = may_pass(error)
        unforeseen = not isinstance(error, TaskqError) and settlement.failures < UNFORESEEN
        if passing or unforeseen:
            delay = min(FIRST_DELAY * 2.0 ** min(settlement.failures - 1, 10), LONGEST_DELAY)
            settlement.due = now + delay
            if settlement.failures == 1 or unforeseen:
                about = {"queue": settlement.delivery.queue, "outcome": settlement.outcome.event, "retry_in": delay}
                logger.warning("settlement_delayed", error=in_words(error), **about, exc_info=error if unforeseen else None)
            return
        settlement.due = now
        if of_chord:
            settlement.chord_failures += (in_words(error),)
            if settlement.members:
                *members, last = settlement.members
                settlement.members, settlement.stages = tuple(members), [ask_again(last)]
                settlement.await_nothing()
            return
        if settlement.asked is not None:
            self.answers.append(Answer(*settlement.asked, granted=False, settled=True))
            settlement.asked = None
        self._dead_letter(settlement, error, followed=settlement.receipt is not None or settlement.some_sent)
        if settlement.dead_letters > FOR_SURE:
            # Not even that: its queue is full, or must not be written to. It is kept until somebody has mended that.
            settlement.due = now + LONGEST_DELAY

    def _dead_letter(self, settlement: Settlement, error: Exception, *, followed: bool = False) -> None:
        """Have the settlement's task end as a dead letter, in which is less each time."""
        if settlement.outcome.event == "dead-lettered":
            # This is what was refused: with all that is known of it, it would be again.
            settlement.dead_letters = max(1, settlement.dead_letters)
        outcome = self.last_resort.instead_of(
            settlement.outcome, settlement.delivery, error, tries=settlement.dead_letters, followed=followed
        )
        if settlement.outcome.event != "dead-lettered":
            self.vitals.dead_lettered(outcome)
            self.tap.ended(settlement.delivery, outcome, 0)
        settlement.dead_letters += 1
        settlement.outcome = outcome
        settlement.begin_anew()

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
        """Tell the copies of ticks whether they may run."""
        ledger = None if self.store is None else self.store.ledger
        while self.questions:
            may = may_tick(ledger, self.questions[0])
            self.answers.append(Answer(*self.questions.pop(0).asked, granted=may))

    def _store_notes(self) -> None:
        if self.store is None:
            return
        notes, self.notes = self.notes, []
        if notes:
            self.store.store(notes)
        if self.withdrawn:
            # Before what is published of them in this pass: whoever gets that must not find that it has begun.
            self.store.release(self.withdrawn)

    def _parted(self, settlements: Sequence[Settlement]) -> tuple[list[Settlement], list[Settlement]]:
        """Those that publish nothing, as most do, and those that have something to send or to be confirmed."""
        silent: list[Settlement] = []
        following: list[Settlement] = []
        for settlement in settlements:
            follows = settlement.receipt is not None or to_send(settlement, replies=self._replies)
            (following if follows else silent).append(settlement)
        return silent, following

    def _publish(self, consumer: Consumer, settlements: Sequence[Settlement]) -> None:
        """Open the chords that begin, and send what has not been sent."""
        new = [(s, to_send(s, replies=self._replies)) for s in may_go_out(settlements, self.settlements)]
        flows = [settlement.stages[0].flow for settlement, _ in new]
        open_chords(self.store, [barrier for flow in flows if flow is not None for barrier in flow.barriers])
        for settlement, publish in new:
            try:
                settlement.receipt = consumer.publish(publish)
                settlement.published_at = time.monotonic()
            except (ConfigurationError, MessageTooLarge) as refusal:
                self._refused(settlement, publish, refusal, time.monotonic())

    def _confirmed(self, settlement: Settlement, now: float) -> bool:
        """Whether the broker has taken what follows. What it has refused is that settlement's trouble."""
        if settlement.receipt is None:
            # Its turn has not come, or what it sends was refused at once.
            return not to_send(settlement, replies=self._replies)
        try:
            confirmed = settlement.receipt.confirmed
        except ConnectionLost:
            raise
        except BrokerError as refusal:
            self._refused(settlement, settlement.receipt.unconfirmed, refusal, now)
            return settlement.receipt is None and not to_send(settlement, replies=self._replies)
        if confirmed:
            settlement.breaks = 0
            self.vitals.confirmations.observe(time.monotonic() - settlement.published_at)
            if settlement.unsent:
                settlement.unsent, settlement.some_sent = settlement.unsent[1:], True
                settlement.receipt, settlement.due = None, now
                return not settlement.unsent
        return confirmed

    def _refused(self, settlement: Settlement, refused: Sequence[Publication], error: Exception, now: float) -> None:
        """Something that the settlement publishes was refused: the rest goes out singly, and only that is left out."""
        of_chord, stage, before = bool(settlement.members), settlement.stages[0], settlement.unsent
        settlement.some_sent |= len(refused) < len(to_send(settlement, replies=self._replies))
        settlement.await_nothing()
        settlement.unsent = tuple(refused) if before is None else before
        if not may_pass(error) and len(refused) > 1:
            settlement.due = now
        elif not may_pass(error) and is_told_only(stage, refused[0]):
            # The task's own end stands, whoever cannot be told of it.
            task = refused[0].message.headers.get("task")
            logger.error("errback_not_sent", errback=task, queue=refused[0].queue, error=in_words(error))
            settlement.unsent, settlement.due = settlement.unsent[1:], now
        else:
            self._fail(settlement, error, now, of_chord=of_chord)

    def _record(self, done: Sequence[Settlement], now: float) -> list[Settlement]:
        """Store what these have to record, and take them a stage further; returns those that can go on at once."""
        if self.store is None:
            for settlement in done:
                settlement.stages.clear()
            return []
        records: list[Record] = []
        asking: list[tuple[Settlement, Record]] = []
        members: list[tuple[Settlement, Member]] = []
        for settlement in done:
            stage = settlement.stages[0]
            if stage.record is not None:
                if settlement.asked is None:
                    records.append(stage.record)
                else:
                    asking.append((settlement, stage.record))
            if stage.flow is not None:
                records += stage.flow.records
                members += [(settlement, member) for member in stage.flow.members]
        if records:
            self.store.store(records)
        self._begin(self.store, asking)
        gatherings = count(self.store, [member for _, member in members], self._claimant)
        for settlement in done:
            del settlement.stages[0]
            settlement.await_nothing()
            settlement.due = 0.0
        if members:
            self._gather(members, gatherings, now)
        return [settlement for settlement in done if settlement.stages and settlement.due <= now]

    def _gather(self, members: Sequence[tuple[Settlement, Member]], gatherings: Sequence[Gathering], now: float) -> None:
        """The settlements of these members, whose chords stand so, go on with the bodies of those that are complete."""
        # A member that has ended twice may complete its chord twice, but the claim is the worker's.
        under_way = {member.part.chord for settlement in self.settlements for member in settlement.members}
        for (settlement, member), gathering in zip(members, gatherings, strict=True):
            match gathering.state:
                case "complete" if member.part.chord not in under_way:
                    under_way.add(member.part.chord)
                    route = self.last_resort.route
                    settlement.stages.append(chord_ended(member, gathering, route, settlement.chord_failures))
                    settlement.members += (member,)
                case "complete" | "contested":
                    # Whoever has the claim may be dead: until it is certain that the body has begun, this member asks again.
                    settlement.stages.append(ask_again(member))
                    settlement.due = now + CONTESTED_SECONDS

    def _begin(self, store: ResultStore, asking: Sequence[tuple[Settlement, Record]]) -> None:
        """Record that these begin, where their tasks have not begun. Of a message that was sent twice, one copy runs."""
        leaves = store.begin([begun for _, begun in asking]) if asking else []
        for (settlement, _), leave in zip(asking, leaves, strict=True):
            settlement.leave = leave

    def _remove(self, finished: Sequence[Settlement]) -> None:
        if len(finished) == len(self.settlements):
            self.settlements.clear()
            return
        ids = set(map(id, finished))
        self.settlements = [settlement for settlement in self.settlements if id(settlement) not in ids]

    def _check_confirmations(self, now: float) -> None:
        oldest = min((s.published_at for s in self.settlements if s.receipt is not None), default=math.inf)
        if now - oldest > CONFIRM_SECONDS:
            raise ConnectionLost(f"a follow-up message was not confirmed within {CONFIRM_SECONDS:g} s")

    def forget_beginning(self, delivery: Delivery) -> bool:
        """Whoever asked leave to begin this is dead; returns whether it was still waiting for it."""
        kept = [s for s in self.settlements if s.asked is None or s.delivery is not delivery]
        asking = [question for question in self.questions if question.delivery is not delivery]
        waited = len(kept) < len(self.settlements) or len(asking) < len(self.questions)
        self.settlements, self.questions = kept, asking
        return waited

    def drop_lost(self, *, refused: bool = False) -> list[Settlement]:
        """The connection broke: its deliveries cannot be acked any more. Returns what had not taken effect.

        ``refused``: the broker closed it because of what one of those publishes that are under way.
        """
        lost, self.settlements = self.settlements, []
        for settlement in lost:
            settlement.breaks += refused and settlement.receipt is not None
        return lost
