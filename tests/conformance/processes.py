"""Processes that the conformance tests kill: ``python -m tests.conformance.processes ROLE QUEUE``.

The broker is in ``TASKQ_BROKER``.

``hold COUNT`` takes so many messages, says ``held`` and waits to be killed; ``publish`` publishes until it is killed and
writes the number of each message that the broker has taken responsibility for. ``listen`` writes what comes over a line, and
``answer`` writes its name and answers commands, both until they are killed.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import sys
import time

from taskq import config
from taskq.broker import open_line, open_session
from taskq.broker.pidbox import Clock, Mailbox
from taskq.message import Message, Publication
from tests.support import consuming


def hold(queue: str, count: int) -> None:
    with consuming(config.load({}), queue, window=count) as holder:
        holder.receive(count)
        os.write(1, b"held\n")
        signal.pause()


def publish(queue: str) -> None:
    session = open_session(config.load({}), 5.0)
    for number in itertools.count():
        message = Message(headers={}, body=str(number).encode())
        session.publish([Publication(queue, message)], time.monotonic() + 5.0)
        os.write(1, f"{number}\n".encode())


def listen(queue: str) -> None:
    line = open_line(config.load({}), "listener", 5.0)
    line.listen(f"{queue}.x", "fanout", f"{queue}.own", "", lambda post: print(post.body.decode(), flush=True))
    print("listening", flush=True)
    while True:
        select.select([line.fileno()], [], [], line.turn())


def answer(queue: str) -> None:
    node = f"{queue}@{os.getpid()}"
    mailbox = Mailbox(open_line(config.load({}), "node", 5.0), node, Clock())
    print(node, flush=True)
    while True:
        commands, seconds = mailbox.turn()
        for command in commands:
            mailbox.answer(command, {"method": command.method, "arguments": command.arguments})
        select.select([mailbox], [], [], seconds)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hold", queue, count]:
            hold(queue, int(count))
        case ["publish", queue]:
            publish(queue)
        case ["listen", queue]:
            listen(queue)
        case ["answer", queue]:
            answer(queue)
