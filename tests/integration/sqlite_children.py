"""What other processes do to a database in the tests of SQLite.

They are started as ``python -m tests.integration.sqlite_children ROLE URL QUEUE COUNT``. Each prints a line for what it has
done, so that the test knows when to kill it.
"""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time

from taskq.broker.sqlite.consumer import SqliteConsumer
from taskq.broker.sqlite.properties import correlation_id
from taskq.broker.sqlite.session import SqliteSession
from taskq.config import Settings, load
from taskq.message import Message, Publication
from taskq.results.sqlite import SqliteResults
from taskq.results.store import Record
from tests.support import ROOT


def settings_of(url: str) -> Settings:
    """Settings with this file as the broker."""
    return load({"broker": url}, environment={})


def publication(queue: str, name: str, delay: float = 0.0, priority: int | None = None, *, first: bool = False) -> Publication:
    """A message that its name tells from others."""
    message = Message(headers={"id": name}, body=b"[]", correlation_id=name, priority=priority)
    return Publication(queue, message, delay, first)


def publish(url: str, queue: str, *names: str, delay: float = 0.0) -> None:
    """Publish a message of each name in one transaction."""
    session = SqliteSession(settings_of(url), 5.0)
    session.publish([publication(queue, name, delay) for name in names], time.monotonic() + 5.0)
    session.close()


def consumer_of(url: str, *queues: str, window: int = 1000) -> SqliteConsumer:
    """A connected consumer."""
    consumer = SqliteConsumer(settings_of(url), queues)
    consumer.connect(5.0)
    consumer.set_window(window)
    return consumer


class Child:
    """A process that plays one role."""

    def __init__(self, role: str, url: str, queue: str, count: int = 0) -> None:
        command = [sys.executable, "-m", "tests.integration.sqlite_children", role, url, queue, str(count)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> list[str]:
        """Kill it; returns what it printed since."""
        self.process.kill()
        rest, _ = self.process.communicate()
        # The last line may be torn.
        return rest.split("\n")[:-1]

    def result(self) -> str:
        """What it printed, once it has ended well."""
        rest, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return rest


def hold(url: str, queue: str, count: int) -> None:
    """Claim and never ack."""
    consumer = consumer_of(url, queue, window=count)
    held = len(consumer.receive())
    print(held, flush=True)
    signal.pause()


def work(url: str, queue: str, _: int) -> None:
    """Record and ack for ever, batch by batch, in one transaction each."""
    consumer = consumer_of(url, queue, window=50)
    results = SqliteResults(url, 600.0, consumer.database)
    print("ready", flush=True)
    while True:
        select.select([consumer.fileno()], [], [], consumer.tick())
        deliveries = consumer.receive()
        with consumer.transaction():
            names = [correlation_id(delivery.properties) or "" for delivery in deliveries]
            results.store([Record(id=name, status="SUCCESS", meta=b"{}") for name in names])
            for delivery in deliveries:
                consumer.ack(delivery)


def produce(url: str, queue: str, _: int) -> None:
    """Publish one by one for ever; print each name once it is published."""
    session, number = SqliteSession(settings_of(url), 5.0), 0
    while True:
        session.publish([publication(queue, f"{id(session)}-{number}")], time.monotonic() + 10.0)
        print(f"{id(session)}-{number}", flush=True)
        number += 1


def fill(url: str, queue: str, count: int) -> None:
    """Publish so many, each in its own transaction."""
    session = SqliteSession(settings_of(url), 10.0)
    for number in range(count):
        session.publish([publication(queue, f"{number}")], time.monotonic() + 10.0)


def wait(url: str, name: str, count: int) -> None:
    """Wait for a result, for so many seconds."""
    print("waiting", flush=True)
    record = SqliteResults(url, 600.0).wait(name, float(count))
    print(record.status if record else None, flush=True)


if __name__ == "__main__":
    _, role, url, queue, count = sys.argv
    {"hold": hold, "work": work, "produce": produce, "fill": fill, "wait": wait}[role](url, queue, int(count))
