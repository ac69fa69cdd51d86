"""``python -m tests.chaos.fuzz --broker rabbitmq --messages 50000 --seed 1``: real workers are sent what nobody should send.

Every twentieth message is a good one. Workers that end are started again, as systemd would, and counted: there must be none but
those that were killed (``--kill-every 300``: one after so many messages). In the end nothing is left in the queue but what is
delayed, and every good message has its result.
"""

from __future__ import annotations

import argparse
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Protocol
from urllib.parse import urlsplit

import amqp

from taskq.results.handle import AsyncResult
from tests import hostile
from tests.servers import running_node
from tests.support import Stage, Worker, eventually

QUEUE = "default"
APP = "tests.apps.hostile:app"
#: So many messages for each good one.
GOOD_EACH = 20
#: How long a thousand messages may take in the end, in seconds, and all of them at least.
PATIENCE_PER_THOUSAND, PATIENCE = 15.0, 60.0
#: What a worker says of something that taskq has not foreseen.
UNFORESEEN = ("loop_failed", "report_unusable", "connecting_failed", "question_failed", "remote_control_failed")


class Sender(Protocol):
    """Sends hostile messages past taskq."""

    def send(self, rng: Random, count: int) -> None:
        """So many."""

    def left(self) -> int:
        """How many messages wait in the queue or are held by workers, but for delayed ones."""


class SqliteSender:
    """Writes rows."""

    def __init__(self, stage: Stage) -> None:
        self._file = sqlite3.connect(stage.broker.removeprefix("sqlite:///"), timeout=10.0)

    def send(self, rng: Random, count: int) -> None:
        sql = "insert into messages (queue, priority, properties, body) values (?, 0, ?, ?)"
        with self._file:
            self._file.executemany(sql, [(QUEUE, *hostile.envelope(rng)) for _ in range(count)])

    def left(self) -> int:
        row = self._file.execute("select count(*) from messages where queue = ? and due is null", (QUEUE,)).fetchone()
        self._file.rollback()
        return int(row[0])


class _Message(amqp.Message):  # type: ignore[misc]  # py-amqp has no types
    """One whose texts may be no UTF-8."""

    def _serialize_properties(self) -> bytes:
        raw: bytes = super()._serialize_properties()
        return raw.replace(b"caf?", b"caf\xe9")


class RabbitSender:
    """Publishes with py-amqp."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def _connect(self) -> None:
        url = urlsplit(self._stage.broker)
        self._connection = amqp.Connection(f"{url.hostname}:{url.port}", "guest", "guest", confirm_publish=True)
        self._connection.connect()
        self._channel = self._connection.channel()

    def send(self, rng: Random, count: int) -> None:
        self._connect()
        try:
            self._send(rng, count)
        finally:
            self._connection.collect()

    def _send(self, rng: Random, count: int) -> None:
        sent = 0
        while sent < count:
            made = hostile.message(rng)
            properties: dict[str, Any] = {
                "application_headers": _carried(made.headers),
                "content_type": made.content_type,
                "content_encoding": made.content_encoding,
                "correlation_id": made.correlation_id if rng.random() < 0.2 else made.headers.get("id"),
                "reply_to": made.reply_to,
                "priority": rng.choice((None, 0, 9, 255)),
            }
            given = {name: _carried(value) for name, value in properties.items() if value is not None}
            message = _Message(made.body, delivery_mode=2, **given)
            try:
                message._serialize_properties()
            except Exception:  # noqa: BLE001  # what py-amqp cannot write, nobody can send
                continue
            try:
                self._channel.basic_publish(message, "", QUEUE)
            except (amqp.AMQPError, OSError):
                # RabbitMQ did not take it.
                self._connection.collect()
                self._connect()
            sent += 1

    def left(self) -> int:
        return sum(self._stage.depth(name) or 0 for name in (QUEUE, f"{QUEUE}.returned"))


def _carried(value: Any) -> Any:
    """The value as AMQP can carry it."""
    match value:
        case str():
            return value.replace("caf\udce9", "caf?").encode("utf-8", "replace").decode()
        case dict():
            return {_carried(str(key)): _carried(item) for key, item in value.items()}
        case list():
            return [_carried(item) for item in value]
        case int() if not isinstance(value, bool):
            return value if -(2**63) <= value < 2**63 else float("inf")
    return value


def fuzz(stage: Stage, sender: Sender, messages: int, seed: int, kill_every: int = 0) -> dict[str, Any]:
    """Send so many hostile messages; returns what was seen. A worker is killed after each ``kill_every`` of them (0: never)."""
    rng, client = Random(seed), stage.client(default_queue=QUEUE)
    good: list[AsyncResult[Any]] = []
    began, deaths, kills = time.monotonic(), 0, 0
    with ExitStack() as stack:
        workers = [stack.enter_context(start(stage))]

        def revive() -> None:
            nonlocal deaths
            if workers[-1].process.poll():
                deaths += 1
                print(f"--- a worker ended with {workers[-1].process.poll()}:", *workers[-1].text.splitlines()[-5:], sep="\n")
                workers.append(stack.enter_context(start(stage)))

        for sent in range(0, messages, GOOD_EACH):
            good.append(client.send_task("add", [len(good)]))
            sender.send(rng, GOOD_EACH)
            revive()
            if kill_every and sent // kill_every > kills:
                kills += 1
                workers[-1].send(signal.SIGKILL)
                workers[-1].wait()
                workers.append(stack.enter_context(start(stage)))
        patience = max(PATIENCE, messages / 1000 * PATIENCE_PER_THOUSAND)
        wrong = [number for number, result in enumerate(good) if result.get(timeout=patience) != [number]]

        def empty() -> bool:
            revive()
            return not sender.left()

        eventually(empty, "nothing is left in the queue", patience)
        codes = [workers[-1].stop()]
        # What was still under way then goes on now.
        for _ in range(10):
            if sender.left():
                workers.append(stack.enter_context(start(stage)))
                eventually(empty, "nothing is left in the queue", patience)
                codes.append(workers[-1].stop())
    left = sender.left()
    told = {event: [line for worker in workers for line in worker.logged(event)] for event in UNFORESEEN}
    unforeseen = {event: len(lines) for event, lines in told.items() if lines}
    for event, count in unforeseen.items():
        print(f"--- {event}, the first of {count}: {told[event][0]}")
    return {
        "messages": messages,
        "good": len(good),
        "wrong": wrong,
        "kills": kills,
        "deaths": deaths,
        "exit codes": codes,
        "left": left,
        "dead letters": stage.depth(f"{QUEUE}.dead"),
        "connections": sum(len(worker.logged("broker_connected")) for worker in workers),
        "unforeseen": unforeseen,
        "seconds": round(time.monotonic() - began, 1),
    }


def faults(seen: dict[str, Any]) -> list[str]:
    """What must not be."""
    return [name for name in ("wrong", "deaths", "left", "unforeseen") if seen[name]] + [
        "exit codes" for code in seen["exit codes"] if code
    ]


def start(stage: Stage) -> Worker:
    """A worker of the queue."""
    return stage.worker(APP).started()


@contextmanager
def opened(broker: str, folder: Path) -> Iterator[tuple[Stage, Sender]]:
    """A stage on a broker of its own, and what sends there."""
    with ExitStack() as stack:
        url = stack.enter_context(running_node()).url if broker == "rabbitmq" else f"sqlite:///{folder}/taskq.db"
        stage = Stage(url, QUEUE, folder)
        stack.callback(stage.close)
        stage.client(default_queue=QUEUE).send_task("add", [0])
        yield stage, RabbitSender(stage) if broker == "rabbitmq" else SqliteSender(stage)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", choices=["sqlite", "rabbitmq"], default="sqlite")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill-every", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="taskq-fuzz-") as folder, opened(options.broker, Path(folder)) as (stage, sender):
        seen = fuzz(stage, sender, options.messages, options.seed, options.kill_every)
    print("\n".join(f"{name}: {value}" for name, value in seen.items()))
    return 1 if faults(seen) else 0


if __name__ == "__main__":
    sys.exit(main())
