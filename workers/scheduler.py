"""The scheduler: sends each tick of an application's schedules once, whoever else tries.

It runs in a thread of a worker's supervisor, with connections of its own, or alone (``taskq scheduler``). The leader takes a
tick by writing into the ledger that it is dealt with, on the condition that it leads and that nobody else has written about
this schedule. Where broker and backend are one SQLite file, that and the message are one transaction. Otherwise::

    claimed ──publish, confirmed──► sent      a tick that stays claimed, whatever became of its sender, is published again as
                                              another copy; ``taskq.results.ledger`` says which one runs
"""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from taskq import log
from taskq.broker import checker, open_session
from taskq.broker.interface import Session
from taskq.compose import NOBODY
from taskq.config import Settings, masked
from taskq.errors import (
    BackendError,
    BrokerError,
    BrokerUnreachable,
    ConfigurationError,
    ConnectionLost,
    DatabaseError,
    PublishTimeout,
    RecordRefused,
    TaskqError,
)
from taskq.launch import Follow, launch
from taskq.results import open_store
from taskq.results.ledger import UNDECIDED, Change, Ledger, tick_entry
from taskq.results.store import ResultStore
from taskq.schedule import Schedule, State, Tick, due
from taskq.workers.entry import Entry
from taskq.workers.leader import RENEW, Leadership

#: How long connecting, and publishing, may take, in seconds: less than a leader may be silent.
SEND_SECONDS = 3.0
#: How long after a failure of the servers everything is tried again, and after a refusal the schedule, in seconds.
AGAIN_SECONDS = 1.0
REFUSED_SECONDS = 5.0
#: The servers are at fault, and no schedule.
UNREACHABLE = (BackendError, BrokerUnreachable, ConnectionLost, DatabaseError, PublishTimeout)


def _is_everybodys(error: Exception) -> bool:
    """Whether other schedules would fail too: the servers are away, and nothing that this one sends has broken anything."""
    if isinstance(error, RecordRefused) or (isinstance(error, ConnectionLost) and error.refused):
        return False
    return isinstance(error, UNREACHABLE)


#: How many ticks of a schedule are sent before it is the next one's turn.
BATCH = 20

logger = log.get_logger("taskq.scheduler")


class Timetable(NamedTuple):
    """What there is to see to. ``routes`` says which queues tasks go to whose calls name none, by the task's name."""

    settings: Settings
    schedules: Sequence[Schedule]
    routes: Mapping[str, str]


def check(settings: Settings, schedules: Collection[Schedule]) -> None:
    """Raise ``ConfigurationError`` where the backend cannot remember what was sent."""
    names = [schedule.name for schedule in schedules]
    if names and not settings.keeps_results:
        raise ConfigurationError(
            f"schedules ({', '.join(names)}) need a result backend that remembers what was sent, which {settings.backend!r}"
            " does not; give backend= an sqlite, redis or postgresql URL, or run this worker with --no-scheduler"
        )


class Connected:
    """An open broker and an open backend. ``database`` is the SQLite file that both are, or None."""

    def __init__(self, settings: Settings) -> None:
        self._settings = dataclasses.replace(settings, publish_timeout=SEND_SECONDS)
        self.session = self._open_session()
        self.check = checker(settings)
        try:
            self.database = self.session.database if settings.backend == settings.broker else None
            self.store: ResultStore = open_store(settings.backend, settings.result_ttl, self.database)
            self.ledger = _ledger_of(self.store, settings)
        except BaseException:
            self.session.close()
            raise

    def renew_session(self) -> None:
        """After a refusal of RabbitMQ's a session is of no further use."""
        if self.database is None:
            self.session.close()
            self.session = self._open_session()

    def publish(self, follow: Follow) -> None:
        """Have this sent, or raise ``BrokerError``."""
        if follow.barriers and self.store.chords is not None:
            self.store.chords.open(follow.barriers)
        self.session.publish(follow.publish, time.monotonic() + SEND_SECONDS)

    def close(self) -> None:
        """Close both."""
        try:
            self.store.close()
        finally:
            self.session.close()

    def _open_session(self) -> Session:
        return open_session(self._settings, SEND_SECONDS)


def _close(connected: Connected) -> None:
    """Close what may be broken already."""
    try:
        connected.close()
    except Exception as error:  # whatever it is, there are to be new ones
        logger.warning("scheduler_not_closed", error=repr(error), exc_info=error)


def _ledger_of(store: ResultStore, settings: Settings) -> Ledger:
    if store.ledger is None:
        store.close()
        raise ConfigurationError(f"the backend {masked(settings.backend)} cannot keep what schedules need")
    return store.ledger


class Scheduler:
    """Sends the ticks of these schedules; ``app`` is the application's name, ``worker`` this worker's."""

    def __init__(self, app: str, timetable: Timetable, worker: str) -> None:
        check(timetable.settings, timetable.schedules)
        self._app = app
        self._turn_to(timetable)
        self._leadership = Leadership(app, worker, time.time())
        self._connected: Connected | None = None
        self._failing = False
        #: For who asks how it is: when the loop turned last, in seconds of ``time.monotonic()``, whether that turn reached the
        #: servers, and how many ticks have been sent.
        self.turned_at, self.reached, self.sent = time.monotonic(), False, 0
        self._orders: SimpleQueue[Timetable | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="taskq-scheduler", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether it is this scheduler that sends what is due."""
        return self._led

    @property
    def schedules(self) -> int:
        """How many schedules it sees to."""
        return len(self._entries)

    def start(self) -> None:
        """Begin, in a thread."""
        logger.info("scheduler_started", schedules=len(self._entries))
        self._thread.start()

    def follow(self, timetable: Timetable) -> None:
        """See to this from the next turn on, which begins at once. Raises ``ConfigurationError`` where that is impossible."""
        check(timetable.settings, timetable.schedules)
        self._orders.put(timetable)

    def stop(self) -> None:
        """End, and let another one lead at once; waits for what is under way."""
        self._orders.put(None)
        self._thread.join(3 * SEND_SECONDS)

    def _turn_to(self, timetable: Timetable) -> None:
        self._settings, schedules, self._routes = timetable
        self._entries = [Entry(self._app, schedule) for schedule in schedules]
        # What stands in the ledger is read again.
        self._led = False

    def _stops(self, seconds: float) -> bool:
        """Wait so long, or until there is an order; returns whether it is to end."""
        self.turned_at = time.monotonic()
        try:
            order = self._orders.get(timeout=seconds)
        except Empty:
            return False
        if order is not None:
            self._turn_to(order)
        return order is None

    def _run(self) -> None:
        wait = 0.0
        while not self._stops(wait):
            try:
                wait = self._turn()
                self.reached = True
            except TaskqError as error:
                if not self._failing:
                    logger.error("scheduler_failing", error=str(error), retry_every=AGAIN_SECONDS)
                self._fail()
                wait = AGAIN_SECONDS
            except Exception as error:  # whatever was wrong with this turn, a scheduler that ends in silence is worse
                logger.error("scheduler_failing", error=repr(error), exc_info=error)
                self._fail()
                wait = REFUSED_SECONDS
        self._end()

    def _fail(self) -> None:
        """Connect anew, and believe nothing that was known: what failed may have been written all the same."""
        self._failing, self._led, self.reached = True, False, False
        connected, self._connected = self._connected, None
        if connected is not None:
            _close(connected)

    def _end(self) -> None:
        connected = self._connected
        if connected is None:
            return
        try:
            self._leadership.resign(connected.ledger, time.time())
        except TaskqError as error:
            # Somebody else leads in a few seconds.
            logger.warning("scheduler_not_resigned", error=str(error))
        _close(connected)

    def _turn(self) -> float:
        """Send what is due, if that is ours to do; returns in how many seconds to come again."""
        if self._connected is None:
            self._connected = Connected(self._settings)
        connected, now = self._connected, time.time()
        self._leadership.notice(now)
        leads = self._leadership.look(connected.ledger, now, time.monotonic())
        if leads and not self._led:
            self._read(connected, self._entries)
        self._led = leads
        next_at = now + RENEW
        if leads:
            for entry in self._entries:
                if entry.next_at <= now:
                    self._attend(connected, entry, now)
            next_at = min([next_at, *(entry.next_at for entry in self._entries)])
        self._leadership.attended_until(now)
        if self._failing:
            self._failing = False
            logger.info("scheduler_recovered")
        return max(0.0, next_at - time.time())

    def _read(self, connected: Connected, entries: Sequence[Entry]) -> None:
        standing = connected.ledger.read([entry.key for entry in entries])
        for entry in entries:
            entry.found(standing.get(entry.key))

    def _attend(self, connected: Connected, entry: Entry, now: float) -> None:
        """Send what is due of this schedule. Whatever is wrong with it holds up no other one."""
        try:
            self._send_due(connected, entry, now)
        except Exception as error:  # a schedule is the application's, and so is whatever computing its ticks may raise
            if _is_everybodys(error):
                entry.postpone(now, AGAIN_SECONDS)
                raise
            entry.complain(error, entry.postpone(now, REFUSED_SECONDS))
            if isinstance(error, BrokerError):
                connected.renew_session()
            # In a transaction that was rolled back, it may have been written that the tick is sent.
            self._read(connected, [entry])
        else:
            entry.succeeded()

    def _send_due(self, connected: Connected, entry: Entry, now: float) -> None:
        moment = datetime.fromtimestamp(now, UTC)
        state = self._known(connected, entry, moment)
        if state is None or (state.pending is not None and not self._send(connected, entry, state, state.pending)):
            return
        if entry.state is not None and not entry.due:
            attended = datetime.fromtimestamp(self._leadership.attended, UTC)
            entry.due.extend(due(entry.schedule, entry.state.last, attended, moment))
        for _ in range(min(len(entry.due), BATCH)):
            if entry.state is None or not self._deal_with(connected, entry, entry.state, entry.due.popleft()):
                return
        if entry.state is not None and not entry.due:
            entry.next_at = entry.schedule.next_after(max(entry.state.last, moment)).timestamp()

    def _known(self, connected: Connected, entry: Entry, now: datetime) -> State | None:
        """What stands of the schedule: a new one, or one that was changed, begins now. None where somebody else was faster."""
        rule, state = entry.schedule.rule, entry.state
        if state is not None and state.rule == rule:
            return state
        logger.info("schedule_begins", schedule=entry.schedule.name, changed=state is not None)
        # What was sent under the old rule must not be sent under the new one, should the clock have been set back.
        begun = State(rule, now) if state is None else msgspec.structs.replace(state, rule=rule, last=max(now, state.last))
        return begun if self._write(connected, entry, begun) else None

    def _deal_with(self, connected: Connected, entry: Entry, state: State, nominal: datetime) -> bool:
        """Send the tick, or pass it over. False where somebody else has written about the schedule."""
        if entry.schedule.overlap == "skip" and self._overlaps(connected, entry, state.sent):
            logger.info("tick_skipped", schedule=entry.schedule.name, nominal=nominal.isoformat(), reason="overlap")
            return self._write(connected, entry, state.passed(nominal))
        return self._send(connected, entry, state, nominal)

    def _overlaps(self, connected: Connected, entry: Entry, sent: datetime | None) -> bool:
        """Whether the last tick's task has not ended. One whose result is lost is waited for as long as results are kept."""
        if sent is None or time.time() - sent.timestamp() > self._settings.result_ttl:
            return False
        [record] = connected.store.fetch([entry.tick(sent).task_id])
        return record is None or not record.is_end

    def _send(self, connected: Connected, entry: Entry, state: State, nominal: datetime) -> bool:
        """Send the tick. False where somebody else has written about the schedule; then it is theirs."""
        tick = entry.tick(nominal)
        if connected.database is not None:
            with connected.database.transaction():
                if not self._write(connected, entry, state.done(nominal)):
                    return False
                connected.publish(self._message(entry, tick, None))
        else:
            follow = self._message(entry, tick, uuid.uuid4().hex)
            for publication in follow.publish:
                # Before anything is written: what can never be sent is no tick that others have to make up for.
                connected.check(publication)
            claimed, key = state.begun(nominal), tick_entry(tick.key)
            decided = connected.ledger.read([key]).get(key)
            if not self._write(connected, entry, claimed, Change(key, decided, decided or UNDECIDED)):
                return False
            connected.publish(follow)
            self._mark_sent(connected, entry, claimed, nominal)
        self.sent += 1
        late = round(time.time() - nominal.timestamp(), 3)
        logger.info("tick_sent", schedule=entry.schedule.name, nominal=nominal.isoformat(), task_id=tick.task_id, late=late)
        return True

    def _message(self, entry: Entry, tick: Tick, copy: str | None) -> Follow:
        call = entry.schedule.call(tick, copy)
        return launch(call, (), NOBODY, lambda task: self._routes.get(task, self._settings.default_queue), time.time())

    def _mark_sent(self, connected: Connected, entry: Entry, claimed: State, nominal: datetime) -> None:
        """The broker has confirmed the tick. One that was published once needs no decision any more."""
        key = tick_entry(entry.tick(nominal).key)
        done = claimed.done(nominal)
        sent, ttl = msgspec.json.encode(done), entry.schedule.kept_for(done, datetime.now(UTC))
        while True:
            decided = connected.ledger.read([key]).get(key)
            # Whether this one still leads does not matter: it is true, as long as nobody else has begun to send it again.
            changes = [Change(entry.key, entry.written, sent, ttl)]
            if claimed.copies == 1 and decided is not None:
                changes.append(Change(key, decided, None))
            if connected.ledger.swap(changes):
                entry.wrote(sent)
                return
            if connected.ledger.read([entry.key]).get(entry.key) != entry.written:
                self._give_way(connected, entry)
                return

    def _write(self, connected: Connected, entry: Entry, state: State, *others: Change) -> bool:
        """Write this of the schedule, on the condition that nobody else has, and that this one leads."""
        fence, written = self._leadership.fence, msgspec.json.encode(state)
        change = Change(entry.key, entry.written, written, entry.schedule.kept_for(state, datetime.now(UTC)))
        if fence is not None and connected.ledger.swap([fence, change, *others]):
            entry.wrote(written)
            return True
        self._give_way(connected, entry)
        return False

    def _give_way(self, connected: Connected, entry: Entry) -> None:
        """Somebody else has written."""
        self._leadership.doubt()
        self._read(connected, [entry])
