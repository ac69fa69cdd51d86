"""The zygote: imports the application once and starts the children from it.

Forked children share its memory and stand within milliseconds. It has one thread, which is what makes forking safe; where the
application started threads at import, or spawn was asked for, it starts fresh interpreters instead. It reports that a
child ended, was stopped or runs again, because only a parent can know it. It runs no task, and ends when the supervisor does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from typing import Any

import msgspec

from taskq.app import TaskQ
from taskq.config import Settings
from taskq.describe import LONGEST_TRACEBACK, text_of
from taskq.errors import TaskqError
from taskq.schedule import Schedule
from taskq.task import Task
from taskq.version import version
from taskq.workers import blackbox, child
from taskq.workers.lifeline import die_with_parent
from taskq.workers.note import Note
from taskq.workers.sources import source_folders

#: What the supervisor sends to have a child started: the slot's index; the child's end of the pipe and its black box go
#: along as descriptors.
START = struct.Struct("<I")


class Ready(msgspec.Struct, tag=True):
    """The application is imported; these are its settings, queues and tasks, in the order in which children number them.

    ``routes``: the queues of the tasks that name one. ``folders`` hold its source, where ``reload`` wants it watched.
    ``facts`` are what each task says of itself, by Celery's names, for whoever asks.
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


class Failed(msgspec.Struct, tag=True):
    """The application cannot be imported."""

    error: str


class Started(msgspec.Struct, tag=True):
    """The slot's child runs under this process id."""

    index: int
    process_id: int


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


Report = Ready | Failed | Started | Exited | Stopped | Continued


class Zygote:
    """Starts children on the supervisor's word and reports their ends."""

    def __init__(self, app: TaskQ, control: socket.socket, notes: int, worker: str, arguments: tuple[str, str]) -> None:
        self.app = app
        self.control = control
        self.notes = notes
        self.worker = worker
        self.arguments = arguments
        self.threads = _threads() - 1
        self.start_method = "spawn" if self.threads else app.settings.start_method
        self.execute = child.prepare(app, worker)
        self.fresh: dict[int, subprocess.Popen[bytes]] = {}

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
        )

    def report(self, report: Report) -> None:
        """Tell the supervisor, a JSON line at a time."""
        self.control.sendall(msgspec.json.encode(report) + b"\n")

    def serve(self) -> None:
        """Start children and report their ends until the supervisor closes the control socket."""
        wake, woken = self.waker = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        self.report(self.ready())
        # What is alive now stays alive: kept out of the collector's way, its pages stay shared with the children.
        gc.collect()
        gc.freeze()
        while True:
            readable, _, _ = select.select([self.control, wake], [], [])
            if wake in readable:
                wake.recv(4096)
                self.reap()
            if self.control in readable:
                data, descriptors, _, _ = socket.recv_fds(self.control, START.size, 2)
                if not data:
                    return
                pipe, box = descriptors
                self.start(START.unpack(data)[0], socket.socket(fileno=pipe), box)

    def start(self, index: int, pipe: socket.socket, box: int) -> None:
        """Start a child for the slot."""
        with pipe:
            spawn = self.start_method == "spawn"
            process_id = self.spawn(index, pipe.fileno(), box) if spawn else self.fork(index, pipe, box)
        os.close(box)
        self.report(Started(index, process_id))

    def spawn(self, index: int, pipe: int, box: int) -> int:
        """Start a fresh interpreter; returns its process id."""
        numbers = (pipe, self.notes, box, index, self.worker, os.getpid())
        command = [sys.executable, "-m", "taskq.workers.child", *self.arguments, *map(str, numbers)]
        process = subprocess.Popen(command, pass_fds=(pipe, self.notes, box))
        # Kept, because a Popen that is collected reaps its process, and the exit would go unreported.
        self.fresh[process.pid] = process
        return process.pid

    def fork(self, index: int, pipe: socket.socket, box: int) -> int:
        """Fork; returns the child's process id. Closes in the child what is the zygote's."""
        parent = os.getpid()
        process_id = os.fork()
        if process_id:
            return process_id
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(parent)
            for inherited in (self.control, *self.waker):
                inherited.close()
            blackbox.install(box)
            code = child.serve(self.execute, pipe, Note(self.notes, index))
        except BaseException:  # noqa: BLE001  # nothing of the child's may run on as if it were the zygote
            traceback.print_exc()
        finally:
            child.leave(code)

    def reap(self) -> None:
        """Report every child that has ended, was stopped or runs again."""
        while True:
            try:
                process_id, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not process_id:
                return
            if os.WIFSTOPPED(status):
                self.report(Stopped(process_id))
            elif os.WIFCONTINUED(status):
                self.report(Continued(process_id))
            else:
                self.fresh.pop(process_id, None)
                unit = 1 if sys.platform == "darwin" else 1024
                self.report(Exited(process_id, status, usage.ru_maxrss * unit))


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
    child.ignore_shutdown_signals()
    supervisor = socket.socket(fileno=control)
    try:
        app = child.load(spec, command_line)
    except TaskqError as error:
        supervisor.sendall(msgspec.json.encode(Failed(text_of(error, LONGEST_TRACEBACK))) + b"\n")
        return 1
    zygote = Zygote(app, supervisor, notes, worker, (spec, command_line))
    # A supervisor that ends may leave reports of ours unread, which resets the socket instead of closing it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        zygote.serve()
    signal.set_wakeup_fd(-1)
    return 0


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    sys.exit(main(arguments[0], arguments[1], int(arguments[2]), int(arguments[3]), arguments[4], int(arguments[5])))
