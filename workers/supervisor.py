"""The supervisor: one event loop that owns the broker connection, the results, the children, the timers and the signals.

It imports no application code and never forks, so nothing that a task does can reach it. One turn of the loop::

    what children report ──► settle ──► what the broker delivers ──► children

    SIGTERM, SIGINT    stop fetching, take back what has not begun, let tasks run for ``grace`` seconds, then kill and give back
    a second one       do so at once
"""

from __future__ import annotations

import select
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from taskq import broker, log
from taskq.broker.interface import Consumer
from taskq.config import Settings, masked
from taskq.control import Control
from taskq.errors import BrokerError, ConfigurationError, ConnectionLost, DatabaseError, TaskqError
from taskq.results import open_store
from taskq.workers import note
from taskq.workers.children import Children
from taskq.workers.crashes import Blame, Coroner
from taskq.workers.custody import Custody
from taskq.workers.launcher import Death, Launcher
from taskq.workers.limits import Limits
from taskq.workers.link import Link
from taskq.workers.obituary import Register
from taskq.workers.pace import worth_a_change
from taskq.workers.settle import Settler
from taskq.workers.slot import Slot
from taskq.workers.wakeup import Signals
from taskq.workers.watchdog import Watchdog

#: How long the loop pauses while all children have enough to do, in seconds.
PAUSE = 0.001
#: How long after a failed settling the next one is tried, in seconds.
SETTLE_AGAIN = 0.5
#: How many tasks more may end while the first of their ends can't be stored.
MOST_UNSETTLED = 1000
#: How long children get to end once they have nothing more to do, in seconds.
CHILD_EXIT_SECONDS = 5.0
#: How long the last settling may take, in seconds.
LAST_SETTLING = 5.0
#: How often results over their time to live are forgotten, in seconds.
EXPIRE_EVERY = 60.0

logger = log.get_logger("taskq.supervisor")


class Supervisor:
    """A worker's parent process, from the imported application to the exit."""

    def __init__(
        self,
        settings: Settings,
        queues: tuple[str, ...],
        worker: str,
        register: Register,
        signals: Signals,
        routes: Mapping[str, str],
    ) -> None:
        self.settings = settings
        self.queues = queues
        self.worker = worker
        self.selector = selectors.DefaultSelector()
        self.slots = [Slot(index, note.Note(register.descriptor, index)) for index in range(settings.concurrency)]

        def route(task: str) -> str:
            return routes.get(task, settings.default_queue)

        self.settler = Settler(None, route, worker, replies=settings.replies)
        self.custody = Custody(
            self.slots,
            self.settler,
            settings,
            broker.decoder(settings),
            broker.identifier(settings),
            register.begun,
            Coroner(settings, worker, route),
        )
        self.limits = Limits(self.slots, settings)
        self.consumer: Consumer | None = None
        self.fatal: TaskqError | None = None
        self.window = 0
        self.settle_at = 0.0
        self.expire_at = 0.0
        self.settling_failed = False
        self.kill_at: float | None = None
        self.signals = signals
        self.watch(signals.wake, self.woken)
        self.watchdog = Watchdog(settings, broker.open_session, queues, signals.wake_loop, time.monotonic())
        self.link = Link(lambda: broker.open_consumer(settings, queues), settings.broker, signals.wake_loop)

    def watch(self, what: Any, act: Callable[[], None]) -> None:
        """Have ``act`` called when ``what`` is readable."""
        self.selector.register(what, selectors.EVENT_READ, act)

    @property
    def stopping(self) -> bool:
        """Whether a signal has begun the end."""
        return self.kill_at is not None

    def run(self, children: Children) -> int:
        """Serve until a signal or an error that no retry mends; returns the exit code."""
        self.children = children
        self.zygote_started(children.launcher)
        self.link.connect()
        now = time.monotonic()
        while not self.done(now):
            timeout = self.turn(now)
            if self.custody.busy:
                # What comes in meanwhile is dealt with in one turn: a turn costs as much for one report as for fifty.
                time.sleep(PAUSE)
            for key, _ in self.selector.select(timeout):
                key.data()
            now = time.monotonic()
        self.close()
        return 0

    def turn(self, now: float) -> float:
        """Everything that is due; returns in how many seconds at the latest the next turn is."""
        for slot in self.slots:
            if slot.worn and not slot.pending:
                self.children.retire(slot, now)
        times = [self.children.start_missing(now), self.limits.enforce(now), self.custody.relieve(now)]
        if self.consumer is not None:
            try:
                times.append(self.exchange(self.consumer, now))
            except ConnectionLost as error:
                self.lose(self.consumer, error)
        self.custody.feed()
        for slot in self.slots:
            self.flush(slot)
        if self.kill_at is not None:
            times.append(self.kill_at)
        return max(0.0, min((when for when in times if when is not None), default=now + 60.0) - now)

    def flush(self, slot: Slot) -> None:
        """Send the slot's child what its pipe takes; a full pipe calls again when it takes more."""
        blocked, slot.blocked = slot.blocked, not slot.flush()
        if slot.blocked != blocked and slot.pipe is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if slot.blocked else 0)
            self.selector.modify(slot.pipe, events, self.selector.get_key(slot.pipe).data)

    def exchange(self, consumer: Consumer, now: float) -> float | None:
        """Settle what has ended, fetch what there is room for; returns when to come back."""
        self.settle(consumer, now)
        window = 0 if self.stopping else self.custody.window
        if window and self.settling_failed:
            # Tasks go on while their ends cannot be stored, but the worker must not take in without end.
            window += min(len(self.settler.settlements), MOST_UNSETTLED)
        if worth_a_change(self.window, window) or (self.settling_failed and window > self.window):
            self.window = window
            consumer.set_window(window)
        try:
            arrived = consumer.receive()
            self.custody.take(arrived)
            if controls := consumer.controls():
                self.obey(consumer, controls, now)
            tick_at = now + consumer.tick()
            self.watch_for_deafness(len(arrived), now)
        except ConnectionLost:
            raise
        except BrokerError as error:
            self.complain(error)
            return now + SETTLE_AGAIN
        # Receiving may have brought the confirmations that a settlement waits for.
        self.settle(consumer, now)
        times = [tick_at, self.settle_at if self.settling_failed else None, self.settler.due, self.watchdog.due]
        return min(when for when in times if when is not None)

    def watch_for_deafness(self, delivered: int, now: float) -> None:
        """Where messages wait and slots are free, and nothing comes: connect anew, and if that does not help, give up."""
        free = self.custody.idle and not self.stopping and not self.settling_failed
        match self.watchdog.observe(now, free_slots=free, delivered=delivered):
            case "reconnect":
                raise ConnectionLost("messages wait, slots are free, and nothing is delivered")
            case "give up":
                self.fatal = ConnectionLost(
                    f"{masked(self.settings.broker)} delivers nothing although messages wait and slots are free, not even on "
                    "new connections; the worker ends, so that whoever watches over it starts another one"
                )

    def obey(self, consumer: Consumer, controls: list[Control], now: float) -> None:
        """Operators have said something."""
        paused = self.custody.orders.paused
        self.limits.terminate(self.custody.obey(controls), now)
        now_paused = self.custody.orders.paused
        if now_paused != paused:
            consumer.set_paused(now_paused)
            self.watchdog.queues = frozenset(self.queues) - now_paused
            logger.info("queues_paused", queues=sorted(now_paused & set(self.queues)))

    def settle(self, consumer: Consumer, now: float) -> None:
        """Let what has ended take effect; after a failure, again in a while."""
        if now < self.settle_at:
            return
        try:
            if now >= self.expire_at and self.settler.store is not None:
                self.expire_at = now + EXPIRE_EVERY
                self.settler.store.expire()
                self.custody.limbo.forget_old(now)
            if not self.settler.idle:
                self.settler.settle(consumer)
                self.settling_failed = False
        except ConnectionLost:
            raise
        except BrokerError as error:
            self.complain(error)
            self.settle_at = now + SETTLE_AGAIN

    def complain(self, error: BrokerError) -> None:
        """Say that settling or fetching fails: once, until it works again."""
        if not self.settling_failed:
            logger.error("broker_failed", error=str(error), kept=len(self.settler.settlements), retry_every=SETTLE_AGAIN)
        self.settling_failed = True

    def woken(self) -> None:
        """A signal came, or the link has something."""
        self.signals.wake.recv(4096)
        while not self.link.arrived.empty():
            arrived = self.link.arrived.get()
            if isinstance(arrived, TaskqError):
                self.fatal = arrived
                continue
            try:
                self.connected(arrived)
            except ConfigurationError as error:
                self.fatal = error
            except (ConnectionLost, DatabaseError) as error:
                if isinstance(error, DatabaseError) and not error.passing:
                    self.fatal = error
                else:
                    self.lose(arrived, error)
        while self.signals.received:
            self.stop(self.signals.received.pop(0))

    def connected(self, consumer: Consumer) -> None:
        """A connection stands: everything goes through it from here on."""
        self.consumer = consumer
        self.watch(consumer, lambda: None)
        self.window = 0
        self.settle_at = 0.0
        url = self.settings.backend_url
        if url is not None and not self.settings.replies:
            # Anew for each connection: where broker and results are one file, the store is part of the consumer's transactions.
            database = consumer.database if url == self.settings.broker else None
            self.settler.store = open_store(url, self.settings.result_ttl, database)
        self.custody.secure = consumer.secure
        # Before anything is fetched: what was revoked or paused while nobody ran must not begin now.
        self.custody.orders.forget()
        self.obey(consumer, consumer.controls(), time.monotonic())
        logger.info("worker_consuming", queues=list(self.queues))

    def lose(self, consumer: Consumer, error: BrokerError) -> None:
        """The connection broke: what runs goes on, and a new connection is made."""
        logger.warning("broker_lost", broker=masked(self.settings.broker), error=str(error))
        self.selector.unregister(consumer)
        self.consumer = None
        consumer.close()
        if self.settler.store is not None:
            self.settler.store.close()
            self.settler.store = None
        self.custody.lose_connection(time.monotonic())
        if not self.stopping:
            self.link.connect()

    def hear_zygote(self) -> None:
        """The zygote reports, or is gone."""
        launcher = self.children.launcher
        self.children.hear()
        if launcher.lost:
            self.selector.unregister(launcher)
            self.children.lose_zygote()

    def zygote_started(self, launcher: Launcher) -> None:
        """There is a zygote to listen to."""
        self.watch(launcher, self.hear_zygote)

    def slot_opened(self, slot: Slot) -> None:
        """A child is being started in the slot."""
        self.watch(slot.pipe, lambda: self.hear_child(slot))

    def hear_child(self, slot: Slot) -> None:
        """The slot's child reports, or has closed its pipe: then it is dead, or of no use any more."""
        self.custody.hear(slot)
        if slot.ended:
            slot.kill()

    def slot_closes(self, slot: Slot) -> None:
        """The slot's child is gone, or told to go."""
        if slot.pipe is not None:
            self.selector.unregister(slot.pipe)

    def child_died(self, slot: Slot, death: Death, blame: Blame) -> None:
        """The slot's child died."""
        self.custody.child_died(slot, death, blame)

    def stop(self, number: int) -> None:
        """A first signal begins the end, a second one hurries it."""
        now = time.monotonic()
        if self.stopping:
            self.kill_at = now
            return
        self.kill_at = now + self.settings.grace
        running = sum(1 for slot in self.slots if slot.running())
        logger.info("worker_stopping", signal=signal.Signals(number).name, running=running, grace=self.settings.grace)
        self.custody.drain(now)

    def done(self, now: float) -> bool:
        """Whether the loop may end: nothing runs and nothing is left to settle, or time is up."""
        if self.fatal is not None:
            return True
        if self.kill_at is None:
            return False
        idle = not self.custody.held and not self.settler.settlements
        return idle or now >= self.kill_at

    def close(self) -> None:
        """The end: kill what still runs, give everything back, and leave nothing behind."""
        self.link.close()
        self.watchdog.close()
        self.children.stopping = True
        for slot in self.slots:
            if slot.running():
                slot.kill()
            self.custody.child_died(slot, Death(), Blame.NOBODY)
        self.custody.give_back()
        if self.consumer is not None:
            self.settle_the_rest(self.consumer)
            self.consumer.close()
        self.children.stop(CHILD_EXIT_SECONDS)
        if self.settler.store is not None:
            self.settler.store.close()
        if self.fatal is None:
            logger.info("worker_stopped")

    def settle_the_rest(self, consumer: Consumer) -> None:
        """Settle what is left, follow-ups confirmed as ever: a copy without the ack of its original would be a second task."""
        deadline = time.monotonic() + LAST_SETTLING
        try:
            self.settler.settle(consumer)
            while self.settler.settlements and time.monotonic() < deadline:
                select.select([consumer.fileno()], [], [], 0.1)
                consumer.receive()
                self.settler.settle(consumer)
        except BrokerError as error:
            logger.error("broker_failed", error=str(error), unsettled=len(self.settler.settlements))
