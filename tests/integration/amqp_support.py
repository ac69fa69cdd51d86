"""What the tests of the AMQP side share: settings, messages, and a consumer that is waited for."""

from __future__ import annotations

import select
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.interface import Delivery
from taskq.config import Settings, load
from taskq.message import Message, Publication


def settings_for(url: str, **keywords: Any) -> Settings:
    return load({"broker": url, **keywords}, environment={})


def message(body: bytes = b"[[], {}, {}]", **headers: Any) -> Message:
    identifier = str(uuid.uuid4())
    return Message(headers={"id": identifier, "task": "shop.pay", **headers}, body=body, correlation_id=identifier)


def publications(queue: str, count: int, delay: float = 0.0) -> list[Publication]:
    return [Publication(queue, message(f"[[{number}], {{}}, {{}}]".encode()), delay) for number in range(count)]


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


def run_until(consumer: AmqpConsumer, condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """As the supervisor does: call ``condition``, which receives, whenever the descriptor is readable."""
    deadline = time.monotonic() + timeout
    while not condition():
        remaining = deadline - time.monotonic()
        assert remaining > 0, "not within the deadline"
        select.select([consumer.fileno()], [], [], min(remaining, consumer.tick()))
