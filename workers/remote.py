"""Remote control: a thread with a connection of its own that hears commands, has them obeyed, and tells of events.

The supervisor's loop neither waits for it nor decodes anything for it. Whatever breaks its connection, it makes a new one;
while it has none, the worker works on unheard.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading
import time

from taskq import log
from taskq.broker import decoder, open_line
from taskq.broker.pidbox import Clock, Command, Mailbox
from taskq.config import masked
from taskq.errors import TaskqError
from taskq.workers.commands import SILENCE, About, Commands
from taskq.workers.desk import Desk, Unanswered
from taskq.workers.events import HEARTBEAT, Chronicle
from taskq.workers.portrait import Painter
from taskq.workers.rate import finished
from taskq.workers.supervisor import Supervisor
from taskq.workers.tap import Tap

CONNECT_SECONDS = 5.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
#: How often events are sent, in seconds, and how many at once: a monitor must not cost the loop more than a few per cent.
REPORT_SECONDS = 0.25
#: How often it is said at most that events were dropped, in seconds.
COMPLAIN_SECONDS = 10.0
MOST_AT_ONCE = 500
#: How often to look for something to tell while nobody listens, in seconds.
IDLE = 60.0
#: How long the goodbye may take, in seconds.
GOODBYE = 2.0

logger = log.get_logger("taskq.remote")


class Remote:
    """The thread. ``desk`` is where the loop is asked, ``tap`` what it has noted for events."""

    def __init__(self, about: About, desk: Desk[Supervisor], tap: Tap) -> None:
        self._about = about
        self._settings = about.settings
        self._desk = desk
        self._tap = tap
        self._clock = Clock()
        painter = Painter(decoder(about.settings), about.worker, show_arguments=about.settings.show_arguments)
        self._chronicle = Chronicle(about.worker, painter, self._clock)
        self._commands = Commands(about, desk, painter, tap, self._clock, self._beat_now)
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._closing = threading.Event()
        self._online = False
        self._beat_at = 0.0
        self._beat_asked = False
        self._report_at = 0.0
        self._processed = 0
        self._dropped = 0
        self._complain_at = 0.0
        self._thread = threading.Thread(target=self._run, name="taskq-remote", daemon=True)

    def start(self) -> None:
        """Begin to listen; events are on from the start where the settings say so."""
        self._tap.on = self._settings.events
        self._thread.start()

    def stop(self) -> None:
        """Hear nothing any more. Does not wait for a broker that does not answer."""
        self._closing.set()
        self._bell.send(b"!")
        self._thread.join(GOODBYE)

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                with contextlib.closing(self._open()) as mailbox:
                    if failures:
                        logger.info("remote_control_restored", tries=failures + 1)
                    failures = 0
                    self._serve(mailbox)
            except TaskqError as error:
                if not failures:
                    logger.warning("remote_control_lost", broker=masked(self._settings.broker), error=str(error))
            except Exception as error:  # a worker that nobody can ask any more, and that says nothing of it, is worse
                logger.error("remote_control_failed", error=repr(error), exc_info=error)
            failures += 1
            self._closing.wait(min(FIRST_DELAY * 2.0 ** min(failures, 10), LONGEST_DELAY) * random.uniform(0.8, 1.2))
        self._commands.close()

    def _open(self) -> Mailbox:
        line = open_line(self._settings, "remote", CONNECT_SECONDS)
        try:
            mailbox = Mailbox(line, self._about.worker, self._clock)
        except BaseException:
            line.close()
            raise
        self._online = False
        return mailbox

    def _serve(self, mailbox: Mailbox) -> None:
        """Until the worker ends, or the connection breaks."""
        with selectors.DefaultSelector() as selector:
            selector.register(mailbox, selectors.EVENT_READ)
            selector.register(self._ear, selectors.EVENT_READ)
            while not self._closing.is_set():
                commands, wait = mailbox.turn()
                for command in commands:
                    self._obey(mailbox, command)
                selector.select(min(wait, self._tell(mailbox, time.monotonic())))
        if self._online:
            self._report(mailbox)
            mailbox.report([self._chronicle.worker("offline", active=0, processed=self._processed)], "worker.offline")

    def _obey(self, mailbox: Mailbox, command: Command) -> None:
        logger.debug("command_received", method=command.method)
        try:
            answer = self._commands(command)
        except Exception as error:  # whatever somebody has made up, the next one is to be heard
            logger.error("command_failed", method=command.method, error=repr(error), exc_info=error)
            answer = {"error": repr(error)}
        if answer is not SILENCE:
            mailbox.answer(command, answer)

    def _tell(self, mailbox: Mailbox, now: float) -> float:
        """Tell of what has happened; returns in how many seconds there is more to tell."""
        on = self._tap.on
        if self._beat_asked or (on and (not self._online or now >= self._beat_at)):
            kind = "heartbeat" if self._online or not on else "online"
            self._online, self._beat_asked, self._beat_at = on, False, now + HEARTBEAT
            self._beat(mailbox, kind)
        if not on:
            self._online = False
            self._tap.drain(MOST_AT_ONCE)
            return IDLE
        if now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            self._report(mailbox)
        return max(0.0, min(self._report_at, self._beat_at) - now)

    def _report(self, mailbox: Mailbox) -> None:
        """Tell of tasks."""
        if events := self._chronicle.tasks(self._tap.drain(MOST_AT_ONCE)):
            self._chronicle.failed += mailbox.report(events, "task.multi")
        dropped, now = self._tap.dropped + self._chronicle.failed, time.monotonic()
        if dropped > self._dropped and now >= self._complain_at:
            self._complain_at = now + COMPLAIN_SECONDS
            logger.warning("events_dropped", count=dropped - self._dropped)
            self._dropped = dropped

    def _beat(self, mailbox: Mailbox, kind: str) -> None:
        """An event about the worker. None while the loop hangs: a heartbeat is to say that it does not."""
        try:
            active, self._processed = self._desk.ask(_pulse)
        except Unanswered:
            return
        mailbox.report([self._chronicle.worker(kind, active=active, processed=self._processed)], f"worker.{kind}")

    def _beat_now(self) -> None:
        self._beat_asked = True


def _pulse(supervisor: Supervisor) -> tuple[int, int]:
    """How many tasks run, and how many have ended."""
    return sum(1 for slot in supervisor.slots if slot.running()), finished(supervisor.vitals)
