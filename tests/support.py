"""What tests of the whole machine need: a real worker in a process group of its own, and waiting with a deadline.

Tasks leave traces in a file (``tests.apps.traces``), so that a test sees what ran, where and when, whatever was killed since.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import kombu.pools

from taskq import TaskQ, config
from taskq.broker import decoder, open_caller, open_consumer, open_session
from taskq.broker.interface import Consumer, Delivery
from taskq.config import Settings
from taskq.message import Message, Publication, dead_letter_queue

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
#: How long to wait for what should take milliseconds: the machine may be busy with other things.
PATIENCE = 15.0


def eventually(condition: Callable[[], T], what: str = "", seconds: float = PATIENCE) -> T:
    """The condition's first true value; fails after so many seconds, saying what was waited for."""
    asked = time.monotonic()
    deadline = asked + seconds
    while not (value := condition()):
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}; last seen: {value!r}")
        # What is waited for needs the processor more than the question does, which may read a long log.
        time.sleep(max(0.005, min(0.05, 2 * (now - asked))))
        asked = time.monotonic()
    return value


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process may be writing to; those that are no JSON as ``{"text": …}``."""
    lines = []
    data = path.read_bytes() if path.exists() else b""
    for line in data.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            value = {"text": line.decode(errors="replace")}
        lines.append(value)
    return lines


def matching(lines: Sequence[dict[str, Any]], wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that have all these values."""
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def processes_of(session: int) -> list[int]:
    """The living processes of a session; zombies are dead."""
    alive = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            status = Path("/proc", entry, "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, _, session_id = status.rpartition(")")[2].split()[:4]
        if int(session_id) == session and state != "Z":
            alive.append(int(entry))
    return alive


class Worker:
    """A running ``taskq worker``. Its log lines are JSON in a file; ``logged`` asks for them."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path, folder: Path = ROOT) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGKILL, group=True)
            self.process.wait(PATIENCE)
        if kind is not None:
            # for who reads the failure
            print(f"--- log of worker {self.pid}, exit code {self.process.returncode}\n{self.text}")

    @property
    def text(self) -> str:
        """Everything it wrote."""
        return self.log.read_text(errors="replace")

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Its log lines of this event."""
        return matching(json_lines(self.log), {"event": event, **fields})

    def started(self) -> Worker:
        """Wait until it consumes."""
        eventually(lambda: self.logged("worker_consuming") or self.process.poll() is not None, "the worker consumes")
        assert self.process.poll() is None, self.text
        return self

    def processes(self) -> list[int]:
        """All its living processes."""
        return processes_of(self.pid)

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the supervisor alone, or to all processes of the worker as a container's runtime does."""
        for process in self.processes() if group else [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM, *, group: bool = False) -> int:
        """Tell it to end, and wait; returns its exit code."""
        self.send(number, group=group)
        return self.wait()


def close_celery(client: Any) -> None:
    """Close a Celery application with all that it holds open: its pools are everybody's with the same URL."""
    # Results unsubscribe when they are collected, and what is collected later would find no server any more.
    gc.collect()
    client.backend.remove_pending_result = lambda result: result
    consumer = getattr(client.backend, "result_consumer", None)
    if consumer is not None:
        consumer.stop()
    if (server := client.backend.__dict__.get("client")) is not None:
        server.connection_pool.disconnect()
    client.close()
    kombu.pools.reset()


@dataclass
class Stage:
    """One test's world: a broker, a queue that nobody else uses, a result backend and a file of traces."""

    broker: str
    queue: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    _clients: list[TaskQ] = field(default_factory=list)
    _workers: int = 0

    @property
    def keywords(self) -> dict[str, Any]:
        """The settings that everybody on this stage shares."""
        backend = self.broker if self.broker.startswith("sqlite:") else f"sqlite:///{self.folder}/results.db"
        return {"broker": self.broker, "backend": backend, "default_queue": self.queue, **self.settings}

    @property
    def trace_file(self) -> Path:
        """Where tasks leave their traces."""
        return self.folder / "traces"

    def effective(self, **settings: Any) -> Settings:
        """The shared settings and these, as a worker sees them."""
        return config.load({**self.keywords, **settings}, environment={})

    def client(self, **settings: Any) -> TaskQ:
        """An app without tasks, for sending by name."""
        client = TaskQ("client", **{**self.keywords, **settings})
        self._clients.append(client)
        return client

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of processes on this stage."""
        shared = {f"TASKQ_{name.upper()}": str(value) for name, value in self.keywords.items()}
        own = {"XDG_STATE_HOME": str(self.folder / "state"), "TRACES": str(self.trace_file), "GATES": str(self.folder)}
        return {**os.environ, **own, **shared, **variables}

    def worker(self, app: str = "tests.apps.basic:app", *options: str, **variables: str) -> Worker:
        """A worker of this app; two children unless the options say otherwise."""
        self._workers += 1
        log = self.folder / f"worker-{self._workers}.log"
        command = [sys.executable, "-m", "taskq", "worker", "-A", app, "--log-format", "json", "-Q", self.queue, "-c", "2"]
        return Worker([*command, *options], self.environment(**variables), log)

    def name_of(self, worker: Worker) -> str:
        """The worker's name, once it consumes and hears commands."""
        name: str = worker.started().logged("worker_started")[0]["worker"]
        with open_caller(self.effective()) as caller:
            eventually(lambda: caller.ask("ping", nodes=[name], timeout=1.0), "the worker hears commands")
        return name

    def traces(self, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """What tasks have left in the file of traces, oldest first."""
        wanted = fields if event is None else {"event": event, **fields}
        return matching(json_lines(self.trace_file), wanted)

    def traced(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait for so many such traces, and return all there are."""
        self.until(lambda: len(self.traces(event, **fields)) >= count, f"{count} traces {event!r} {fields or ''}")
        return self.traces(event, **fields)

    def until(self, condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
        """``eventually``, naming the traces where it fails."""
        try:
            return eventually(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\ntraces: {self.traces()[-20:]}") from None

    def open_gate(self, name: str) -> None:
        """Let tasks pass that wait at this gate."""
        (self.folder / name).touch()

    def publish(self, *messages: Message, delay: float = 0.0) -> None:
        """Publish these messages as they are, past the checks of the application's side."""
        session = open_session(self.effective(), 5.0)
        try:
            session.publish([Publication(self.queue, message, delay) for message in messages], time.monotonic() + 5.0)
        finally:
            session.close()

    def depth(self, queue: str | None = None) -> int | None:
        """How many messages are ready in the queue."""
        session = open_session(self.effective(), 5.0)
        try:
            return session.depth(queue or self.queue)
        finally:
            session.close()

    def drain(self, count: int, queue: str | None = None) -> list[Message]:
        """Take so many messages out of the queue, decoded."""
        settings = self.effective()
        read = decoder(settings)
        with consuming(settings, queue or self.queue) as hold:
            deliveries = hold.receive(count)
            hold.ack(deliveries)
        return [read(delivery.properties, delivery.body) for delivery in deliveries]

    def dead_letters(self, count: int) -> list[Message]:
        """Wait for so many dead letters and take them out."""
        return self.drain(count, dead_letter_queue(self.queue))

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            client.close()


class Hold:
    """A consumer driven as the supervisor drives it."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer

    def turn(self, seconds: float) -> list[Delivery]:
        """Wait for ``seconds`` at most until there is something to do, and do it; returns what arrived."""
        wait = min(seconds, self.consumer.tick())
        readable, _, _ = select.select([self.consumer.fileno()], [], [], max(0.0, wait))
        return self.consumer.receive() if readable else []

    def receive(self, count: int, seconds: float = PATIENCE) -> list[Delivery]:
        """So many deliveries, or an assertion that fails."""
        deadline = time.monotonic() + seconds
        arrived = self.consumer.receive()
        while len(arrived) < count and (left := deadline - time.monotonic()) > 0:
            arrived += self.turn(left)
        assert len(arrived) >= count, f"{len(arrived)} deliveries of {count} within {seconds:g} s"
        return arrived

    def quiet(self, seconds: float = 0.3) -> bool:
        """Whether nothing arrives for so many seconds."""
        deadline = time.monotonic() + seconds
        arrived = self.consumer.receive()
        while not arrived and (left := deadline - time.monotonic()) > 0:
            arrived += self.turn(left)
        return not arrived

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Ack them in one transaction."""
        with self.consumer.transaction():
            for delivery in deliveries:
                self.consumer.ack(delivery)


@contextmanager
def consuming(settings: Settings, *queues: str, window: int = 10_000) -> Iterator[Hold]:
    """A connected consumer of these queues with so large a window."""
    consumer = open_consumer(settings, queues)
    consumer.connect(5.0)
    try:
        consumer.set_window(window)
        yield Hold(consumer)
    finally:
        consumer.close()
