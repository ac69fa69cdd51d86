"""What the tests of the AMQP side share: settings, messages, and a consumer that is waited for."""

from __future__ import annotations

import select
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.amqp.session import AmqpSession
from taskq.broker.interface import Delivery
from taskq.config import Settings, load
from taskq.message import Message, Publication
from tests.servers import RabbitMQ

BOTH_TYPES = pytest.mark.parametrize("queue_type", ["quorum", "classic"])


def settings_for(url: str, **keywords: Any) -> Settings:
    return load({"broker": url, **keywords}, environment={})


def message(body: bytes = b"[[], {}, {}]", **headers: Any) -> Message:
    identifier = str(uuid.uuid4())
    return Message(headers={"id": identifier, "task": "shop.pay", **headers}, body=body, correlation_id=identifier)


def publications(queue: str, count: int, delay: float = 0.0) -> list[Publication]:
    return [Publication(queue, message(f"[[{number}], {{}}, {{}}]".encode()), delay) for number in range(count)]


@contextmanager
def session_of(node: RabbitMQ, **keywords: Any) -> Iterator[AmqpSession]:
    session = AmqpSession(settings_for(node.url, **keywords), 10)
    try:
        yield session
    finally:
        session.close()


def put(node: RabbitMQ, queue: str, count: int, queue_type: str = "quorum", *, first: bool = False) -> None:
    with session_of(node, queue_type=queue_type) as session:
        sent = [Publication(one.queue, one.message, first=first) for one in publications(queue, count)]
        session.publish(sent, time.monotonic() + 10)


@contextmanager
def consuming(settings: Settings, *queues: str, window: int = 100) -> Iterator[AmqpConsumer]:
    consumer = AmqpConsumer(settings, queues)
    consumer.connect(10)
    consumer.set_window(window)
    try:
        yield consumer
    finally:
        consumer.close()


def receive(consumer: AmqpConsumer, count: int, timeout: float = 10.0) -> list[Delivery]:
    """At least ``count`` deliveries."""
    deliveries: list[Delivery] = []

    def enough() -> bool:
        deliveries.extend(consumer.receive())
        return len(deliveries) >= count

    run_until(consumer, enough, timeout)
    return deliveries


def settle_down(consumer: AmqpConsumer, seconds: float = 0.2) -> list[Delivery]:
    """What still arrives until so long nothing has."""
    deliveries: list[Delivery] = []
    quiet_at = time.monotonic() + seconds
    while (left := quiet_at - time.monotonic()) > 0:
        if arrived := consumer.receive():
            deliveries += arrived
            quiet_at = time.monotonic() + seconds
        select.select([consumer.fileno()], [], [], min(left, consumer.tick()))
    return deliveries


def run_until(consumer: AmqpConsumer, condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """As the supervisor does: call ``condition``, which receives, whenever the descriptor is readable."""
    deadline = time.monotonic() + timeout
    while not condition():
        remaining = deadline - time.monotonic()
        assert remaining > 0, "not within the deadline"
        select.select([consumer.fileno()], [], [], min(remaining, consumer.tick()))
