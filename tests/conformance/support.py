"""What the conformance tests share: short ways to make, publish and count messages, and processes to kill."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kombu
import pytest

from taskq.broker import decoder
from taskq.broker.interface import Delivery, Session
from taskq.config import Settings
from taskq.message import Message, Publication
from tests.support import ROOT, Hold, Stage, eventually


def only(*kinds: str) -> pytest.MarkDecorator:
    """For what not every broker can do."""
    return pytest.mark.parametrize("kind", kinds, indirect=True)


def message(body: bytes | int, **fields: Any) -> Message:
    return Message(headers={}, body=str(body).encode() if isinstance(body, int) else body, **fields)


def publish(session: Session, queue: str, *messages: Message, delay: float = 0.0, first: bool = False) -> None:
    session.publish([Publication(queue, message, delay, first) for message in messages], time.monotonic() + 10.0)


def give_back(settings: Settings, hold: Hold, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Give these back as a supervisor does: publish copies that go first, then ack. Returns what arrived meanwhile."""
    read = decoder(settings)
    arrived: list[Delivery] = []
    with hold.consumer.transaction():
        receipt = hold.consumer.publish(
            [Publication(d.queue, read(d.properties, d.body), first=True) for d in deliveries],
        )

    def confirmed() -> bool:
        arrived.extend(hold.turn(0.01))
        return receipt.confirmed

    eventually(confirmed, "the copies are confirmed")
    hold.ack(deliveries)
    return arrived


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(delivery.body) for delivery in deliveries]


@contextmanager
def process(stage: Stage, role: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``tests.conformance.processes``; dead at the end of the block."""
    command = [sys.executable, "-m", "tests.conformance.processes", role, stage.queue, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=stage.environment(), stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def read_line(running: subprocess.Popen[bytes]) -> bytes:
    assert running.stdout is not None
    return running.stdout.readline()


def delete(settings: Settings, *queues: str) -> None:
    """Delete queues as somebody else would."""
    with kombu.Connection(settings.broker) as connection, connection.channel() as channel:
        for queue in queues:
            channel.queue_delete(queue)
