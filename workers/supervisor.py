"""The supervisor: one event loop that owns the broker connection, the results, the children, the timers and the signals.

It imports no application code and never forks, so nothing that a task does can reach it. One turn of the loop::

    what children report ──► settle ──► what the broker delivers ──► children

    SIGTERM, SIGINT    stop fetching, take back what has not begun, let tasks run for ``grace`` seconds, then kill and give back
    a second one       do so at once
    SIGHUP             take the application's new code in, see ``reload``
    SIGTTIN, SIGTTOU   one child more, one child less
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

from taskq import broker, log
from taskq.broker.interface import Consumer
from taskq.config import Settings, masked
from taskq.control import Control
from taskq.errors import BrokerError, ConfigurationError, ConnectionLost, DatabaseError, TaskqError
from taskq.results import open_store
from taskq.workers import note
from taskq.workers.callbacks import Callbacks, Trouble
from taskq.workers.children import Children
from taskq.workers.crashes import Blame, Coroner
from taskq.workers.custody import Custody
from taskq.workers.desk import Desk
from taskq.workers.last_resort import LastResort, in_words
from taskq.workers.launcher import Death, Launcher
from taskq.workers.limits import Limits
from taskq.workers.link import Link
from taskq.workers.notify import Notifier
from taskq.workers.obituary import Register
from taskq.workers.pace import worth_a_change
from taskq.workers.rate import Rate
from taskq.workers.reload import Reloader
from taskq.workers.settle import Settler
from taskq.workers.slot import Slot
from taskq.workers.vitals import Vitals
from taskq.workers.wakeup import Signals
from taskq.workers.watchdog import Watchdog, given_up
from taskq.workers.zygote import Ready

#: How long the loop pauses while all children have enough to do, in seconds.
PAUSE = 0.001
#: How often the loop turns at least, in seconds: it is a sign of life.
PULSE = 1.0
#: How many tasks more may end while the first of their ends can't be stored.
MOST_UNSETTLED = 1000
#: How long children get to end once they have nothing more to do, in seconds.
CHILD_EXIT_SECONDS = 5.0

logger = log.get_logger("taskq.supervisor")


class Supervisor:
    """A worker's parent process, from the imported application to the exit. ``children`` are its own before it runs."""

    children: Children
    reloader: Reloader

    def __init__(
        self,
        settings: Settings,
        queues: tuple[str, ...],
        worker: str,
        register: Register,
        signals: Signals,
        routes: Mapping[str, str],
        notifier: Notifier,
    ) -> None:
        self.settings = settings
        self.queues = queues
        self.worker = worker
        self.callbacks = Callbacks()
        self.routes = routes
        self.register = register
        self.slots = [self.new_slot(index) for index in range(settings.concurrency)]
        self.vitals = Vitals(time.monotonic())
        self.notifier = notifier
        self.rate = Rate(time.monotonic())
        read, identify = broker.decoder(settings), broker.identifier(settings)
        self.settler = Settler(None, LastResort(settings, worker, read, self.route), self.vitals, replies=settings.replies)
        self.coroner = Coroner(settings, worker, self.route)
        self.custody = Custody(self.slots, self.settler, settings, identify, register.begun_of, self.coroner)
        self.limits = Limits(self.slots, settings)
        self.consumer: Consumer | None = None
        self.fatal: TaskqError | None = None
        self.window = 0
        self.settling = Trouble()
        self.receiving = Trouble()
        self.settled_before = 0
        self.kill_at: float | None = None
        self.signals = signals
        self.desk: Desk[Supervisor] = Desk(signals.wake_loop)
        self.watch(signals.wake, self.woken)
        self.watchdog = Watchdog(settings, broker.open_session, queues, signals.wake_loop, time.monotonic())
        self.link = Link(lambda: broker.open_consumer(settings, queues), settings.broker, signals.wake_loop)

    def watch(self, what: Any, act: Callable[[], None]) -> None:
        """Have ``act`` called when ``what`` is readable."""
        self.callbacks.watch(what, act)

    def unwatch(self, what: Any) -> None:
        """Not any more, if it was."""
        self.callbacks.unwatch(what)

    def new_slot(self, index: int) -> Slot:
        """The place for a child, with its note in the register."""
        return Slot(index, note.Note(self.register.descriptor, index))

    def route(self, task: str) -> str:
        """The queue of a task by its name, where a call names none."""
        return self.routes.get(task, self.settings.default_queue)

    @property
    def stopping(self) -> bool:
        """Whether a signal has begun the end."""
        return self.kill_at is not None

    def run(self, reloader: Reloader) -> int:
        """Serve until a signal or an error that no retry mends; returns the exit code."""
        self.reloader = reloader
        self.zygote_started(self.children.launcher)
        self.link.connect()
        now = time.monotonic()
        while not self.done(now):
            try:
                timeout = self.turn(now)
                self.callbacks.worked()
            except Exception as error:  # noqa: BLE001  # nothing from outside may end the worker, and it must not spin either
                timeout = self.callbacks.failed(error)
            if self.custody.busy:
                # What comes in meanwhile is dealt with in one turn: a turn costs as much for one report as for fifty.
                time.sleep(PAUSE)
            self.callbacks.wait(timeout)
            now = time.monotonic()
        self.close()
        return 0

    def turn(self, now: float) -> float:
        """Everything that is due; returns in how many seconds at the latest the next turn is."""
        self.vitals.turned(now, self.slots, held=self.custody.held, failing=self.settling.failing or self.receiving.failing)
        self.rate.mark(now, self.vitals)
        for slot in [slot for slot in self.slots if slot.worn and slot.idle]:
            self.children.retire(slot, now)
        self.reloader.look(now)
        times = [self.children.start_missing(now), self.limits.enforce(now), self.custody.relieve(now)]
        times += [now + PULSE, self.notifier.beat(now, self.vitals)]
        if self.consumer is not None:
            try:
                times.append(self.exchange(self.consumer, now))
            except ConnectionLost as error:
                self.lose(self.consumer, error)
            except Exception as error:  # noqa: BLE001  # nobody knows how the connection stands then, so another one is made
                self.callbacks.failed(error)
                self.lose(self.consumer, error)
        self.custody.feed()
        self.settler.tap.look(self.slots)
        for slot in self.slots:
            self.flush(slot)
        if self.kill_at is not None:
            times.append(self.kill_at)
        return max(0.0, min(when for when in times if when is not None) - now)

    def flush(self, slot: Slot) -> None:
        """Send the slot's child what its pipe takes; a full pipe calls again when it takes more."""
        blocked, slot.blocked = slot.blocked, not slot.flush()
        if slot.blocked != blocked and slot.pipe is not None and not slot.ended:
            self.callbacks.watch_writing(slot.pipe, wanted=slot.blocked)

    def exchange(self, consumer: Consumer, now: float) -> float:
        """Settle what has ended, fetch what there is room for; returns when to come back."""
        self.settle(consumer, now)
        window = 0 if self.stopping else self.custody.window
        waiting = len(self.settler.settlements) if self.settling.failing else self.settler.waiting
        if window and waiting:
            # Tasks go on while their ends cannot be stored, but the worker must not take in without end.
            window += min(waiting, MOST_UNSETTLED)
        # A slot with nothing to do is reason enough to ask for more.
        if worth_a_change(self.window, window) or (window > self.window and (waiting or self.custody.idle)):
            self.window = window
            consumer.set_window(window)
        tick_at = self.receive(consumer, now) if now >= self.receiving.again_at else self.receiving.again_at
        # Receiving may have brought the confirmations that a settlement waits for.
        self.settle(consumer, now)
        self.custody.limbo.forget_old(now)
        settle_at = self.settling.again_at or self.settler.due
        return tick_at if settle_at is None else min(tick_at, settle_at)

    def receive(self, consumer: Consumer, now: float) -> float:
        """Take in what the broker has to deliver and to say; returns when to do so again."""
        try:
            arrived = consumer.receive()
            self.vitals.arrived(arrived, now)
            self.settler.tap.received(arrived)
            self.custody.take(arrived)
            if controls := consumer.controls():
                self.obey(consumer, controls, now)
            tick_at = now + consumer.tick()
            self.watch_for_deafness(len(arrived), now)
        except ConnectionLost:
            raise
        except BrokerError as error:
            self.receiving.met(error)
            return self.receiving.again_at
        self.receiving.over()
        return tick_at if self.watchdog.due is None else min(tick_at, self.watchdog.due)

    def watch_for_deafness(self, delivered: int, now: float) -> None:
        """Where messages wait and slots are free, and nothing comes: connect anew, and if that does not help, give up."""
        free = self.custody.idle and not self.stopping and not (self.settling.failing or self.receiving.failing)
        verdict = self.watchdog.observe(now, free_slots=free, delivered=delivered)
        self.vitals.deaf = self.watchdog.deaf
        match verdict:
            case "reconnect":
                raise ConnectionLost("messages wait, slots are free, and nothing is delivered")
            case "give up":
                self.fatal = given_up(self.settings.broker)

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
        if now < self.settling.again_at:
            return
        try:
            if not self.settler.idle:
                self.settler.settle(consumer)
            self.settling.over()
        except ConnectionLost:
            raise
        except BrokerError as error:
            self.settling.met(error, kept=len(self.settler.settlements))
        finally:
            self.custody.beginnings.answer()

    def woken(self) -> None:
        """A signal came, a child of this process ended, the link has something, or another thread asks."""
        self.signals.hear()
        while not self.link.arrived.empty():
            arrived = self.link.arrived.get()
            if isinstance(arrived, TaskqError):
                self.fatal = arrived
                continue
            try:
                self.connected(arrived)
            except Exception as error:  # noqa: BLE001  # of whatever kind: the next connection may be of more use
                match error:
                    case ConfigurationError() | DatabaseError(passing=False):
                        self.fatal = error
                    case _:
                        self.lose(arrived, error)
        self.desk.attend(self)
        while self.signals.received:
            self.stop(self.signals.received.pop(0))
        while self.signals.requests:
            self.grant(self.signals.requests.pop(0))

    def grant(self, request: int) -> None:
        """Somebody sent a signal that asks for something."""
        if request == signal.SIGHUP:
            self.reloader.begin(time.monotonic())
            return
        try:
            self.scale(self.children.count + (1 if request == signal.SIGTTIN else -1))
        except ConfigurationError as error:
            logger.warning("not_scaled", error=str(error))

    def scale(self, count: int) -> int:
        """Have so many children from here on, see ``Children.scale``; returns how many there are to be."""
        self.children.scale(count)
        return self.children.count

    def connected(self, consumer: Consumer) -> None:
        """A connection stands: everything goes through it from here on."""
        self.consumer = consumer
        self.vitals.connected(time.monotonic())
        self.watch(consumer, lambda: None)
        self.window = 0
        self.settling.over()
        self.receiving.over()
        self.settled_before = self.vitals.settled
        url = self.settings.backend_url
        if url is not None and not self.settings.replies:
            # Anew for each connection: where broker and results are one file, the store is part of the consumer's transactions.
            database = consumer.database if url == self.settings.broker else None
            self.settler.store = open_store(url, self.settings.result_ttl, database)
        self.custody.secure = consumer.secure
        # Before anything is fetched: what was revoked or paused while nobody ran must not begin now.
        self.custody.orders.forget()
        self.custody.limbo.connected(time.monotonic())
        self.obey(consumer, consumer.controls(), time.monotonic())
        self.watchdog.queues = frozenset(self.queues) - self.custody.orders.paused
        logger.info("worker_consuming", queues=list(self.queues))

    def lose(self, consumer: Consumer, error: Exception) -> None:
        """The connection broke: what runs goes on, and a new connection is made."""
        logger.warning("broker_lost", broker=masked(self.settings.broker), error=in_words(error))
        self.unwatch(consumer)
        self.consumer = None
        self.vitals.disconnected(time.monotonic())
        refused = isinstance(error, ConnectionLost) and error.refused
        self.custody.lose_connection(time.monotonic(), refused=refused)
        if not self.stopping:
            self.link.connect(at_once=not refused and self.vitals.settled > self.settled_before)
        with closing(consumer), closing(self.settler.store or ExitStack()):
            self.settler.store = None

    def hear_zygote(self, launcher: Launcher) -> None:
        """The zygote reports, or is gone."""
        self.children.hear(launcher)
        if launcher.lost:
            self.unwatch(launcher)
            self.children.lose_zygote(launcher)

    def zygote_started(self, launcher: Launcher) -> None:
        """There is a zygote to listen to."""
        self.watch(launcher, lambda: self.hear_zygote(launcher))

    def zygote_ready(self, ready: Ready) -> None:
        """In place of a zygote that died, this one has imported the application."""
        self.reloader.took_over(ready)

    def slot_opened(self, slot: Slot) -> None:
        """A child is being started in the slot."""
        self.watch(slot.pipe, lambda: self.hear_child(slot))

    def hear_child(self, slot: Slot) -> None:
        """The slot's child reports, or has closed its pipe: then it is dead, or of no use any more."""
        self.custody.hear(slot)
        if slot.ended:
            slot.kill()
            # It would be readable until the zygote says how the child ended.
            self.slot_closes(slot)

    def slot_closes(self, slot: Slot) -> None:
        """The slot's child is gone, or told to go."""
        if slot.pipe is not None:
            self.unwatch(slot.pipe)

    def child_died(self, slot: Slot, death: Death, blame: Blame) -> None:
        """The slot's child died."""
        self.vitals.child_died(death.cause, slot.condemned.reason if slot.condemned is not None else "")
        self.custody.child_died(slot, death, blame)

    def stop(self, number: int) -> None:
        """A first signal begins the end, a second one hurries it."""
        now = time.monotonic()
        if self.stopping:
            self.kill_at = now
            return
        self.kill_at = now + self.settings.grace
        self.vitals.draining = True
        self.notifier.stopping()
        running = sum(1 for slot in self.slots if slot.running())
        self.reloader.cancel()
        logger.info("worker_stopping", signal=signal.Signals(number).name, running=running, grace=self.settings.grace)
        self.custody.drain(now)

    def done(self, now: float) -> bool:
        """Whether the loop may end: nothing runs and nothing is left to settle, or time is up."""
        if self.fatal is not None or self.kill_at is None:
            return self.fatal is not None
        return now >= self.kill_at or not (self.custody.held or self.settler.settlements)

    def close(self) -> None:
        """The end: kill what still runs, give everything back, and leave nothing behind."""
        self.notifier.stopping()
        self.desk.close()
        self.link.close()
        self.watchdog.close()
        self.reloader.close()
        self.children.stopping = True
        for slot in self.slots:
            if slot.running():
                slot.kill()
            self.custody.child_died(slot, Death(), Blame.NOBODY)
        self.custody.give_back()
        if self.consumer is not None:
            self.settler.settle_the_rest(self.consumer)
            self.consumer.close()
        self.children.stop(CHILD_EXIT_SECONDS)
        if self.settler.store is not None:
            self.settler.store.close()
        if self.fatal is None:
            logger.info("worker_stopped")
