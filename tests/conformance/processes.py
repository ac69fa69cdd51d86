"""Processes that the conformance tests kill: ``python -m tests.conformance.processes ROLE QUEUE``.

The broker is in ``TASKQ_BROKER``.

``hold COUNT`` takes so many messages, says ``held`` and waits to be killed; ``publish`` publishes until it is killed and
writes the number of each message that the broker has taken responsibility for.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time

from taskq import config
from taskq.broker import open_session
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


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(sys.argv[2], int(sys.argv[3]))
    else:
        publish(sys.argv[2])
