"""A process that holds messages of RabbitMQ until it is killed.

``python -m tests.integration.amqp_holder URL QUEUE TYPE COUNT`` says ``renewed`` once all of them are in its held queue.
"""

from __future__ import annotations

import sys

from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.interface import Delivery
from tests.integration.amqp_support import run_until, settings_for


def renewed(deliveries: list[Delivery]) -> bool:
    """Whether each is in a held queue."""
    return all(delivery.tag.consumer_tag.endswith(".held") for delivery in deliveries)


def main(url: str, queue: str, queue_type: str, count: str) -> None:
    consumer = AmqpConsumer(settings_for(url, queue_type=queue_type), [queue], renew=0.1)
    consumer.connect(10)
    consumer.set_window(int(count))
    held: list[Delivery] = []

    def ready() -> bool:
        held.extend(consumer.receive())
        return len(held) == int(count) and renewed(held)

    run_until(consumer, ready)
    print("renewed", flush=True)
    run_until(consumer, lambda: bool(consumer.receive()), timeout=60)


if __name__ == "__main__":
    main(*sys.argv[1:])
