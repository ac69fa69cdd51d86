"""The zygote: imports the application once and starts the children from it.

Forked children share its memory and stand within milliseconds. It has one thread and no connection, which is what makes forking
safe; where the application started threads or left a connection open at import, or spawn was asked for, it starts fresh
interpreters instead. It reports that a child ended, was stopped or runs again, because only a parent can know it, and ends what
the child's tasks have left in its process group. It runs no task, and ends when the supervisor does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

# Before the application is imported: gevent and eventlet replace them, and theirs need a loop that nobody runs here.
from os import fork, wait4
from select import select
from typing import Any

import msgspec

from taskq import connections, log
from taskq.app import TaskQ
from taskq.config import Settings
from taskq.describe import LONGEST_TRACEBACK, text_of
from taskq.errors import TaskqError
from taskq.schedule import Schedule
from taskq.task import Task
from taskq.version import version
from taskq.workers import blackbox, child, streams
from taskq.workers.lifeline import die_with_parent, die_with_pipe
from taskq.workers.note import Note
from taskq.workers.signals import DEFAULT, do_nothing, ignore_shutdown_signals, set_handler, set_wakeup
from taskq.workers.sources import source_folders

_Socket, _Popen = socket.socket, subprocess.Popen

#: What the supervisor sends to have a child started: the slot's index; the child's end of the pipe and its black box go
#: along as descriptors.
START = struct.Struct("<I")
#: How long the children have to end by themselves when the worker ends, in seconds.
END_SECONDS = 3.0

logger = log.get_logger("taskq.zygote")


class Ready(msgspec.Struct, tag=True):
    """The application is imported; these are its settings, queues and tasks, in the order in which children number them.

    ``routes``: the queues of the tasks that name one. ``folders`` hold its source, where ``reload`` wants it watched.
    ``facts`` are what each task says of itself, by Celery's names, for whoever asks.
    ``connections`` are the other ends of those that the import left open, and ``threads`` counts what it left running.
    """

    version: str
    app: str
    settings: Settings
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    start_method: str
    threads: int
    routes: dict[str, str]
    schedules: list[Schedule]
    folders: tuple[str, ...]
    facts: dict[str, dict[str, str]] = {}
    connections: tuple[str, ...] = ()


class Failed(msgspec.Struct, tag=True):
    """The application cannot be imported."""

    error: str


class Started(msgspec.Struct, tag=True):
    """The slot's child runs under this process id."""

    index: int
    process_id: int


class NotStarted(msgspec.Struct, tag=True):
    """The slot's child could not be started: too many processes, or too little memory."""

    index: int
    error: str


class Exited(msgspec.Struct, tag=True):
    """A child ended: as ``os.waitpid`` says it, and the most memory it had, in bytes."""

    process_id: int
    status: int
    peak_memory: int


class Stopped(msgspec.Struct, tag=True):
    """A child was stopped (SIGSTOP, Ctrl-Z)."""

    process_id: int


class Continued(msgspec.Struct, tag=True):
    """A stopped child runs again."""

    process_id: int


Report = Ready | Failed | Started | NotStarted | Exited | Stopped | Continued


class Resources:
    """What the zygote has of its own, made before the application is imported, and kept whatever that does.

    ``notes`` are those of all children, ``woken`` is readable when a child has ended, ``lifeline`` is the end of a pipe that
    children hold on to.
    """

    def __init__(self, control: int, notes: int) -> None:
        self.control = _Socket(fileno=control)
        self.notes = notes
        self.woken, self.wake = socket.socketpair()
        self.lifeline, self.living = os.pipe()
        self.folder = os.getcwd()
        for descriptor in (control, notes):
            os.set_inheritable(descriptor, False)
        for end in (self.woken, self.wake):
            end.setblocking(False)
        self.inherited = frozenset(connections.connected())

    def hear_of_children(self) -> None:
        """Have the end of a child wake ``woken``."""
        set_handler(signal.SIGCHLD, do_nothing)
        set_wakeup(self.wake.fileno(), warn_on_full_buffer=False)

    def connections(self) -> tuple[str, ...]:
        """The other ends of the connections that the import has left open."""
        return tuple(sorted({peer for key, peer in connections.connected().items() if key not in self.inherited}))

    def leave(self) -> None:
        """Let go of what is the zygote's, in a child."""
        set_wakeup(-1)
        set_handler(signal.SIGCHLD, DEFAULT)
        for end in (self.control, self.woken, self.wake):
            end.close()
        os.close(self.living)


class Zygote:
    """Starts children on the supervisor's word and reports their ends."""

    def __init__(self, app: TaskQ, own: Resources, worker: str, arguments: tuple[str, str]) -> None:
        self.app = app
        self.own = own
        self.worker = worker
        self.arguments = arguments
        self.execute = child.prepare(app, worker)
        if own.connections():
            # As long as nobody else shares them: a server is told when one is closed.
            app.close()
            connections.close_known()
        self.connections = own.connections()
        self.threads = _threads() - 1
        self.start_method = "spawn" if self.threads or self.connections else app.settings.start_method
        if self.connections:
            consequence = "children are fresh interpreters, since forked ones would read each other's answers"
            logger.warning("inherited_connections", peers=self.connections, consequence=consequence)
        self.children: dict[int, subprocess.Popen[bytes] | None] = {}

    def ready(self) -> Ready:
        """What the supervisor has to know of the application."""
        app = self.app
        return Ready(
            version(),
            app.name,
            app.settings,
            app.queue_names(),
            self.execute.names,
            self.start_method,
            self.threads,
            app.routes(),
            list(app.schedules.values()),
            source_folders() if app.settings.reload else (),
            {name: _facts(app.tasks[name]) for name in self.execute.names},
            self.connections,
        )

    def report(self, report: Report) -> None:
        """Tell the supervisor, a JSON line at a time."""
        self.own.control.sendall(msgspec.json.encode(report) + b"\n")

    def serve(self) -> None:
        """Start children and report their ends until the supervisor closes the control socket."""
        self.own.hear_of_children()
        self.report(self.ready())
        # What is alive now stays alive: kept out of the collector's way, its pages stay shared with the children.
        gc.collect()
        gc.freeze()
        control, woken = self.own.control, self.own.woken
        while True:
            readable, _, _ = select([control, woken], [], [])
            if woken in readable:
                woken.recv(4096)
                for report in self.reap():
                    self.report(report)
            if control in readable:
                data, descriptors, _, _ = socket.recv_fds(control, START.size, 2)
                if not data:
                    return
                [index] = START.unpack(data)
                if len(descriptors) == 2:
                    self.start(index, _Socket(fileno=descriptors[0]), descriptors[1])
                    continue
                # The kernel drops what does not fit.
                for descriptor in descriptors:
                    os.close(descriptor)
                self.report(NotStarted(index, "the zygote may not open as many files"))

    def start(self, index: int, pipe: socket.socket, box: int) -> None:
        """Start a child for the slot."""
        # What this process has yet to write, each child would write again.
        streams.flush()
        try:
            with pipe:
                spawn = self.start_method == "spawn"
                process_id = self.spawn(index, pipe.fileno(), box) if spawn else self.fork(index, pipe, box)
        except OSError as error:
            self.report(NotStarted(index, str(error)))
        else:
            self.report(Started(index, process_id))
        finally:
            os.close(box)

    def spawn(self, index: int, pipe: int, box: int) -> int:
        """Start a fresh interpreter; returns its process id. Raises ``OSError``."""
        own = self.own
        numbers = (pipe, own.notes, box, own.lifeline, index, self.worker, os.getpid())
        command = [sys.executable, "-P", "-m", "taskq.workers.child", *self.arguments, *map(str, numbers)]
        inherited = (pipe, own.notes, box, own.lifeline)
        process = _Popen(command, pass_fds=inherited, cwd=own.folder, process_group=0)
        # Kept, because a Popen that is collected reaps its process, and the exit would go unreported.
        self.children[process.pid] = process
        return process.pid

    def fork(self, index: int, pipe: socket.socket, box: int) -> int:
        """Fork; returns the child's process id. Closes in the child what is the zygote's. Raises ``OSError``."""
        parent = os.getpid()
        process_id = fork()
        if process_id:
            self.children[process_id] = None
            return process_id
        code = 1
        try:
            os.setpgid(0, 0)
            die_with_pipe(self.own.lifeline)
            self.own.leave()
            die_with_parent(parent)
            for descriptor in (pipe.fileno(), box):
                os.set_inheritable(descriptor, False)
            blackbox.install(box)
            _renew_loops()
            code = child.serve(self.execute, pipe, Note(self.own.notes, index))
        except BaseException:  # noqa: BLE001  # nothing of the child's may run on as if it were the zygote
            traceback.print_exc()
        finally:
            child.leave(code)

    def reap(self) -> list[Report]:
        """What has become of children since the last call: which have ended, were stopped or run again.

        All of them, whoever can be told: nothing wakes this process for them a second time.
        """
        reports: list[Report] = []
        while True:
            try:
                process_id, status, usage = wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return reports
            if not process_id:
                return reports
            if process_id not in self.children:
                # Of a program that the application has started at its import.
                continue
            if os.WIFSTOPPED(status):
                reports.append(Stopped(process_id))
            elif os.WIFCONTINUED(status):
                reports.append(Continued(process_id))
            else:
                del self.children[process_id]
                _end_group(process_id, signal.SIGKILL if status else signal.SIGTERM)
                unit = 1 if sys.platform == "darwin" else 1024
                reports.append(Exited(process_id, status, usage.ru_maxrss * unit))

    def end(self) -> None:
        """The worker ends: let the children end by themselves, and see that nothing of theirs is left."""
        deadline = time.monotonic() + END_SECONDS
        while self.children and (left := deadline - time.monotonic()) > 0:
            select([self.own.woken], [], [], left)
            with contextlib.suppress(BlockingIOError):
                self.own.woken.recv(4096)
            self.reap()
        for process_id in self.children:
            _end_group(process_id, signal.SIGKILL)


def _end_group(process_id: int, number: int) -> None:
    """Signal what is left in this child's process group; programs that were given a session of their own are not in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left, or nothing that is ours
        os.killpg(process_id, number)


def _renew_loops() -> None:
    """Where the import has begun an event loop of gevent's or eventlet's, this child needs one that no other shares."""
    if (gevent := sys.modules.get("gevent")) is not None:
        gevent.reinit()
    if (hubs := sys.modules.get("eventlet.hubs")) is not None:
        hubs.use_hub()


def _facts(task: Task[..., Any]) -> dict[str, str]:
    """What the task's decorator says, as text; without what it leaves open."""
    policy, names = task.retry_policy, ("time_limit", "soft_time_limit", "acks_late", "on_timeout", "on_worker_lost", "bind")
    said: dict[str, Any] = {**task.defaults, **{name: getattr(task, name) for name in names}}
    said |= {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy) if field.name != "retry_on"}
    for name in ("autoretry_for", "dont_autoretry_for"):
        said[name] = ",".join(kind.__name__ for kind in said[name]) or None
    return {name: str(value) for name, value in said.items() if value is not None}


def _threads() -> int:
    """The threads of this process, those of C libraries included where the system tells."""
    if sys.platform == "linux":
        return len(os.listdir("/proc/self/task"))
    return threading.active_count()


def main(spec: str, command_line: str, control: int, notes: int, worker: str, parent: int) -> int:
    """The whole life of the zygote; returns its exit code."""
    die_with_parent(parent)
    ignore_shutdown_signals()
    streams.write_lines_at_once()
    own = Resources(control, notes)
    # A supervisor that ends may leave reports of ours unread, which resets the socket instead of closing it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            app = child.load(spec, command_line)
        except TaskqError as error:
            own.control.sendall(msgspec.json.encode(Failed(text_of(error, LONGEST_TRACEBACK))) + b"\n")
            return 1
        if sys.platform == "linux":
            # Again, because the kernel forgets it where the import has changed the user.
            die_with_parent(parent)
        zygote = Zygote(app, own, worker, (spec, command_line))
        try:
            zygote.serve()
        finally:
            zygote.end()
    set_wakeup(-1)
    return 0


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    sys.exit(main(arguments[0], arguments[1], int(arguments[2]), int(arguments[3]), arguments[4], int(arguments[5])))
