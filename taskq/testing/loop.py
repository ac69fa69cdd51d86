"""A worker in one thread: what a supervisor, its loop and a child do to a message, turn by turn and on the same code.

Missing is what needs processes: nothing here is killed, so time limits, memory limits and the end of a running task by
``revoke(terminate=True)`` are not enforced, and a task that ends its process ends the test's.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from taskq import broker
from taskq.app import TaskQ
from taskq.broker.interface import Consumer, Decode, Delivery
from taskq.errors import DeadLettered, MessageError, Terminated
from taskq.message import DEAD_DETAIL, DEAD_REASON, undecodable
from taskq.results import open_store
from taskq.results.store import Record, ResultStore
from taskq.sqlite import Database
from taskq.task import router
from taskq.testing.clock import due_in, pass_time
from taskq.workers import note
from taskq.workers.crashes import Coroner
from taskq.workers.custody import Custody
from taskq.workers.execute import Executor
from taskq.workers.last_resort import LastResort
from taskq.workers.note import NO_TERMS, Terms
from taskq.workers.outcome import Event, Outcome
from taskq.workers.pipe import ASKED, BEGUN, DONE, SKIPPED, Report, pack_report, unpack_reports
from taskq.workers.settle import Settler
from taskq.workers.slot import Slot

#: As which worker dead letters and attempts name it.
NAME = f"testing-{os.getpid()}"
CONNECT_SECONDS = 5.0


class LimitNotEnforced(UserWarning):
    """A task ran longer than its time limit. A worker would have interrupted or killed it; a test can't."""


@dataclass(frozen=True, slots=True)
class Run:
    """A message that was handled, and what became of it.

    ``event`` is ``succeeded``, ``failed``, ``retried``, ``dead-lettered``, ``revoked`` or what else a worker logs. ``error`` is
    what the task raised, with its traceback; ``reason`` says why a message was dead-lettered.
    """

    event: Event
    task: str | None
    id: str | None
    error: BaseException | None = None
    reason: str | None = None

    @property
    def failure(self) -> BaseException | None:
        """The error of a task that has failed for good; None of one that has not."""
        if self.event not in ("failed", "dead-lettered"):
            return None
        return self.error or DeadLettered("DeadLettered", self.reason or "")


class Unbound:
    """What a task's run is told of its surroundings: nobody enforces anything. Keeps what the task raised."""

    def __init__(self, ask: Callable[[Record], bool], tell: Callable[[Record], None]) -> None:
        self.may_begin = ask
        self.begins = tell
        self.error: BaseException | None = None
        self.terms = NO_TERMS
        self.overrun: str | None = None
        self._handled: BaseException | None = None

    def met(self, task: str, waited: float) -> None:
        """Nobody counts."""

    def is_the_one(self) -> bool:
        """Nobody sends a tick here a second time."""
        return True

    def agree(self, terms: Terms) -> None:
        """The task begins."""
        self.terms, self.overrun, self.error = terms, None, None
        self._handled = sys.exception()

    def release(self) -> bool:
        """The task has ended; where it raised, that is being handled now."""
        raised = sys.exception()
        self.error = None if raised is self._handled else raised
        now = time.monotonic()
        for name, limit in (("soft_time_limit", self.terms.soft), ("time_limit", self.terms.hard)):
            if 0 < limit < now:
                self.overrun = name
        return False


class LocalSlot(Slot):
    """A slot whose child is the thread that calls ``work``. What it reports is encoded as for the pipe."""

    def __init__(
        self,
        execute: Callable[[Delivery], Outcome | None],
        unreportable: Callable[[Delivery, MessageError], Outcome],
    ) -> None:
        descriptor = note.create(1)
        super().__init__(0, note.Note(descriptor, 0))
        os.close(descriptor)
        self.ready = self.has_served = True
        self.answers: dict[int, bool] = {}
        self._execute = execute
        self._unreportable = unreportable
        self._reported = b""

    def give(self, number: int, delivery: Delivery) -> None:
        """Keep the delivery for ``work``."""
        self.pending[number] = delivery

    def answer(self, number: int, granted: bool) -> None:
        """Keep the answer for the task that asked."""
        self.answers[number] = granted

    def report(self, number: int, kind: int, microseconds: int = 0, outcome: Outcome | None = None) -> None:
        """Say this to whoever reads ``reports``."""
        self._reported += (
            pack_report(number, kind, microseconds) if outcome is None else pack_report(number, kind, microseconds, outcome)
        )

    def reports(self) -> list[Report]:
        """What ``work`` has to report."""
        reports, self._reported = unpack_reports(self._reported)
        return reports

    def work(self) -> bool:
        """Run what was given; returns whether there was anything."""
        given = list(self.pending.items())
        for number, delivery in given:
            started = time.monotonic()
            if not self.note.begin(number, started):
                self.report(number, SKIPPED)
                continue
            # As a child gets it: without the broker's handle.
            outcome = self._execute(Delivery(delivery.queue, None, delivery.properties, delivery.body, delivery.redelivered))
            microseconds = min(int((time.monotonic() - started) * 1e6), 0xFFFFFFFF)
            try:
                self.report(number, SKIPPED if outcome is None else DONE, microseconds, outcome)
            except MessageError as error:
                self.report(number, DONE, microseconds, self._unreportable(delivery, error))
            self.note.end()
        return bool(given)


class WatchedSettler(Settler):
    """A settler that tells of each outcome that is to take effect."""

    def __init__(self, store: ResultStore | None, last_resort: LastResort, tell: Callable[[Delivery, Outcome], None]) -> None:
        super().__init__(store, last_resort)
        self._tell = tell

    def add(self, delivery: Delivery, outcome: Outcome, asked: tuple[Slot, int] | None = None, *, breaks: int = 0) -> None:
        """The delivery has come to this end; ``settle`` makes it so."""
        super().add(delivery, outcome, asked, breaks=breaks)
        if asked is None:
            self._tell(delivery, outcome)


class Loop:
    """One connection of a worker that consumes these queues of an app in memory; ``tell`` hears of each run."""

    def __init__(self, app: TaskQ, queues: Sequence[str], tell: Callable[[Run], None]) -> None:
        # One message at a time, so that a test sees one order; the rest would have a child replaced, and there is none.
        self.settings = replace(app.settings, prefetch=1, max_tasks_per_child=0)
        self.queues = tuple(queues)
        self.tell = tell
        self.consumer = self.open_consumer()
        self.consumer.connect(CONNECT_SECONDS)
        assert self.consumer.database is not None  # noqa: S101  # an SQLite broker has one
        self.database: Database = self.consumer.database
        self.read: Decode = broker.decoder(self.settings)
        self.surroundings = Unbound(self._may_begin, self._begins)
        self.executor = Executor(app.tasks, self.settings, self.read, NAME)
        self.executor.surroundings = self.surroundings
        self.slot = LocalSlot(self.execute, self.executor.unreportable)
        route = router(app.tasks, self.settings.default_queue)
        last_resort = LastResort(self.settings, NAME, self.read, route)
        self.settler = WatchedSettler(self.open_store(), last_resort, self._tell_of)
        self.custody = Custody(
            [self.slot],
            self.settler,
            self.settings,
            broker.identifier(self.settings),
            lambda _: set(),
            Coroner(self.settings, NAME, route),
        )
        self.custody.secure = self.consumer.secure
        self._obey()

    def open_consumer(self) -> Consumer:
        """The worker's hold on the broker, not yet connected."""
        return broker.open_consumer(self.settings, self.queues)

    def open_store(self) -> ResultStore | None:
        """Where the worker records the ends of tasks, in the consumer's transactions."""
        url = self.settings.backend_url
        return None if url is None else open_store(url, self.settings.result_ttl, self.consumer.database)

    def execute(self, delivery: Delivery) -> Outcome | None:
        """Run the delivery's task."""
        self.surroundings.error = None
        return self.executor(delivery)

    def settle(self) -> None:
        """Let take effect what has ended."""
        if self.settler.settlements:
            self.settler.settle(self.consumer)
            self.custody.beginnings.answer()

    @property
    def holds_nothing(self) -> bool:
        """Whether no message is in custody: then it may be closed."""
        return not self.custody.held and not self.settler.settlements

    def turn(self) -> bool:
        """Do what a worker's loop does in one turn; returns whether there was anything to do."""
        self.custody.relieve(time.monotonic())
        self.settle()
        self.consumer.set_window(self.custody.window)
        arrived = self.consumer.receive()
        # It may have become due a moment ago, of which the first call has just brought word.
        self.consumer.tick()
        arrived += self.consumer.receive()
        self.custody.take(arrived)
        obeyed = self._obey()
        self.custody.feed()
        worked = self.slot.work()
        self.custody.hear(self.slot)
        self.settle()
        if worked:
            self._look_at_the_end()
        return worked or obeyed or bool(arrived) or not self.holds_nothing

    def due_in(self) -> float | None:
        """In how many seconds the next delayed message is due; None where none is delayed."""
        return due_in(self.database, self.queues)

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass for everything that the broker and the results hold."""
        pass_time(self.database, seconds)

    def fileno(self) -> int:
        """A descriptor that is readable when there may be something to do."""
        return self.consumer.fileno()

    def close(self) -> None:
        """Give back what is held, and close the connections."""
        self.consumer.close()
        if self.settler.store is not None:
            self.settler.store.close()

    def _tell_of(self, delivery: Delivery, outcome: Outcome) -> None:
        """The delivery has come to this end."""
        try:
            headers = self.read(delivery.properties, delivery.body).headers
        except MessageError:
            headers = undecodable(delivery.body).headers
        dead = outcome.publish[0].message.headers if outcome.event == "dead-lettered" else {}
        reason = f"{dead[DEAD_REASON]}: {dead[DEAD_DETAIL]}" if dead else None
        self.tell(Run(outcome.event, headers.get("task"), headers.get("id"), self.surroundings.error, reason))

    def _may_begin(self, begun: Record) -> bool:
        """A task that runs once at most asks: it is recorded before it begins."""
        number = self.slot.note.number
        self.slot.report(number, ASKED, 0, Outcome("begun", record=begun))
        self.custody.hear(self.slot)
        self.settle()
        return self.slot.answers.pop(number, False)

    def _begins(self, begun: Record) -> None:
        """A task of a workflow begins, which is recorded by the pass that settles it."""
        self.slot.report(self.slot.note.number, BEGUN, 0, Outcome("begun", record=begun))

    def _obey(self) -> bool:
        """Take in what operators have said; returns whether there was anything."""
        controls = self.consumer.controls()
        if controls:
            self.custody.obey(controls)
            self.consumer.set_paused(self.custody.orders.paused)
        return bool(controls)

    def _look_at_the_end(self) -> None:
        """Say how a task ended that concerns not the task but the test."""
        error, overrun, terms = self.surroundings.error, self.surroundings.overrun, self.surroundings.terms
        self.surroundings.error = self.surroundings.overrun = None
        if error is not None and not isinstance(error, (Exception, SystemExit, Terminated)):
            # Ctrl-C, or a test's own end that a task ran into: it is for whoever runs the test.
            raise error
        if overrun is not None:
            warnings.warn(
                f"task {terms.task_id} ran past its {overrun}, which is not enforced here", LimitNotEnforced, stacklevel=2
            )
