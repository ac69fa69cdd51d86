"""A child: runs tasks and nothing else. It reads a delivery from its pipe, runs it, writes the outcome.

It holds no message and no broker connection of taskq's, so it can be killed at any instant. It ends when the supervisor closes
the pipe, and at once when the supervisor or the zygote dies, even in the middle of a task. It leads a process group of its own,
so that the programs that its tasks started can be ended with it.

A process that a task forks is a copy of the child, and not the child: it has no pipe, and ends when it comes out of the task.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from socket import socket  # now: gevent and eventlet replace it by one that runs their loop
from typing import NoReturn

import msgspec

from taskq import log
from taskq.app import TaskQ
from taskq.broker import decoder
from taskq.cli.loading import load_app
from taskq.errors import MessageError, SoftTimeLimitExceeded, Terminated
from taskq.results.store import Record
from taskq.workers import blackbox, streams
from taskq.workers.execute import Executor
from taskq.workers.lifeline import die_with_parent, die_with_pipe
from taskq.workers.note import TERMINATED, Note, Terms
from taskq.workers.outcome import Outcome
from taskq.workers.pipe import ASKED, BEGUN, DONE, READY, SKIPPED, UNKNOWN, Inbox, pack_report
from taskq.workers.signals import (
    DEAF,
    SOFT_SIGNAL,
    default_in_copy,
    hold_before_fork,
    ignore_shutdown_signals,
    keeper,
    release_after_fork,
)


def load(spec: str, command_line: str) -> TaskQ:
    """The application, with the settings of the command line (JSON) on top. Signals and streams stay as they were."""
    process_id = os.getpid()
    try:
        app = load_app(spec)
    finally:
        if os.getpid() != process_id:
            # A process that the import forked has come out of it. There is one zygote, and one child for a pipe.
            leave(1)
        ignore_shutdown_signals()
        streams.open_missing()
    app.configure(msgspec.json.decode(command_line))
    return app


def prepare(app: TaskQ, worker: str) -> Executor:
    """Everything a child needs that can be had before it is forked: what is imported here, all children share."""
    log.configure(app.settings.log_format, app.settings.log_level)
    log.configure_application(app.settings.log_format, app.settings.log_level)
    return Executor(app.tasks, app.settings, decoder(app.settings), worker)


class Supervised:
    """What a task's run needs of this process; see ``taskq.workers.surroundings``.

    ``tasks`` are the names that the supervisor knows tasks by, in its order.
    """

    def __init__(self, pipe: socket, note: Note, tasks: Sequence[str]) -> None:
        self.inbox = Inbox(pipe)
        self._numbers = {name: number for number, name in enumerate(tasks[:0xFFFF], 1)}
        self.begin(0)
        self._pipe = pipe
        self._note = note
        self._interruptible = False
        self._copied = False
        self._restore = keeper({**DEAF, SOFT_SIGNAL: self.interrupt})
        self._restore()
        os.register_at_fork(before=hold_before_fork, after_in_parent=release_after_fork, after_in_child=self._become_copy)

    def begin(self, number: int) -> None:
        """Reports are about this delivery from here on."""
        self.number = number
        self.task = 0
        self.waited = UNKNOWN
        self.ran = self.asked = False

    def met(self, task: str, waited: float) -> None:
        """Keep it for the report."""
        self.task = self._numbers.get(task, 0)
        self.waited = waited

    def may_begin(self, begun: Record) -> bool:
        """Ask the supervisor, which answers once the record is stored."""
        self.asked = True
        self._pipe.sendall(pack_report(self.number, ASKED, 0, Outcome("begun", record=begun)))
        return self.inbox.answer(self.number)

    def is_the_one(self) -> bool:
        """Ask the supervisor, which asks the ledger."""
        self._pipe.sendall(pack_report(self.number, ASKED, 0, Outcome("asked")))
        return self.inbox.answer(self.number)

    def begins(self, begun: Record) -> None:
        """Tell the supervisor; nobody waits for it."""
        self._pipe.sendall(pack_report(self.number, BEGUN, 0, Outcome("begun", record=begun)))

    def agree(self, terms: Terms) -> None:
        """Note the terms where the supervisor sees them."""
        self.ran = self._interruptible = True
        self._note.agree(terms)

    def release(self) -> bool:
        """An interruption that comes too late is dropped, and so is whatever the task did to this process's signals."""
        self._interruptible = False
        if self._copied:
            end_copy(sys.exception())
        self._restore()
        return self._note.interrupt == TERMINATED

    def _become_copy(self) -> None:
        """A task has forked this process: it must not speak for the child."""
        self._copied = True
        self._interruptible = False
        self._pipe.close()
        default_in_copy()

    def interrupt(self, *_: object) -> None:
        """The handler of the supervisor's signal: raises in the middle of the task."""
        if self._interruptible:
            self._interruptible = False
            if self._note.interrupt == TERMINATED:
                raise Terminated("the task was revoked while it ran")
            raise SoftTimeLimitExceeded("the task ran into its soft time limit")


def main(execute: Executor, pipe: socket, note: Note) -> None:
    """Serve the pipe until the supervisor closes it, or a task seems to have spoilt this process for those after it."""
    monotonic, used = time.monotonic, False
    execute.surroundings = surroundings = Supervised(pipe, note, execute.names)
    pipe.sendall(pack_report(0, READY))
    for number, delivery in surroundings.inbox:
        started = monotonic()
        if not note.begin(number, started):
            pipe.sendall(pack_report(number, SKIPPED))
            continue
        surroundings.begin(number)
        faults = execute.faults
        outcome = execute(delivery)
        if used and execute.faults > faults and not (surroundings.ran or surroundings.asked):
            # It has not begun, and gets another try in a process where no task has put anything in the place of what we need.
            pipe.sendall(pack_report(number, SKIPPED))
            return
        used = used or surroundings.ran
        if outcome is None:
            pipe.sendall(pack_report(number, SKIPPED))
        else:
            elapsed = max(1, min(int((monotonic() - started) * 1e6), 0xFFFFFFFF)) if surroundings.ran else 0
            try:
                report = pack_report(number, DONE, elapsed, outcome, surroundings.task, surroundings.waited)
            except MessageError as error:
                outcome = execute.unreportable(delivery, error)
                report = pack_report(number, DONE, elapsed, outcome, surroundings.task, surroundings.waited)
            # The outcome first: a death between the two lines must not blame the task that has just ended.
            pipe.sendall(report)
        note.end()


def serve(execute: Executor, pipe: socket, note: Note) -> int:
    """The whole life of a child process; returns its exit code."""
    # The application may have set a timeout for all sockets that are made after it.
    pipe.setblocking(True)
    try:
        main(execute, pipe, note)
    except (BrokenPipeError, ConnectionResetError):
        return 1
    finally:
        # Whatever ended it: threads and exit handlers of the application may keep this process for long, and it is to be given
        # nothing more.
        pipe.close()
    return 0


def leave(code: int) -> NoReturn:
    """End a forked child: what the application registered with ``atexit`` runs, what belongs to the zygote does not."""
    try:
        # The two steps of the interpreter's own exit, which a fork must not go through, that concern the application.
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  # waits for threads that are no daemons
        atexit._run_exitfuncs()  # noqa: SLF001
    finally:
        streams.flush()
        os._exit(code)


def end_copy(error: BaseException | None) -> NoReturn:
    """End a process that a task has forked and that has come out of the task, as a script ends: by this exception, if any."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    leave(code & 0xFF)


def fresh(
    spec: str, command_line: str, pipe: int, notes: int, box: int, lifeline: int, index: int, worker: str, parent: int
) -> int:
    """A child in a fresh interpreter (``--start-method spawn``): it imports the application itself."""
    die_with_pipe(lifeline)
    die_with_parent(parent)
    for descriptor in (pipe, notes, lifeline):
        os.set_inheritable(descriptor, False)
    blackbox.install(box)
    ignore_shutdown_signals()
    streams.write_lines_at_once()
    own = socket(fileno=pipe)
    return serve(prepare(load(spec, command_line), worker), own, Note(notes, index))


if __name__ == "__main__":
    spec, command_line, pipe, notes, box, lifeline, index, worker, parent = sys.argv[1:]
    sys.exit(fresh(spec, command_line, int(pipe), int(notes), int(box), int(lifeline), int(index), worker, int(parent)))
