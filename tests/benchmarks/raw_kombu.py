"""Kombu and nothing else: a consumer that acks each message by itself. What a worker on Kombu costs at least."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any

from kombu import Connection, Consumer, Producer, Queue

from tests.benchmarks.stamps import execute

PREFETCH = 128


connection = Connection(os.environ["BENCH_BROKER"])


@functools.cache
def producer() -> Producer:
    queue().bind(connection.default_channel).declare()
    return Producer(connection.default_channel)


def queue() -> Queue:
    return Queue(os.environ["BENCH_QUEUE"], durable=True)


def unconfirmed(indices: Iterable[int]) -> None:
    for index in indices:
        producer().publish(index, routing_key=os.environ["BENCH_QUEUE"], serializer="json")


def consume() -> None:
    """Until a signal ends the process."""

    def handle(body: int, message: Any) -> None:
        execute(body)
        message.ack()

    with Consumer(connection.default_channel, [queue()], callbacks=[handle], prefetch_count=PREFETCH):
        while True:
            connection.drain_events()


close = connection.close
SENDERS = {"unconfirmed": unconfirmed}

if __name__ == "__main__":
    consume()
