"""Dramatiq with its default middleware. Its publisher takes no confirms unless asked, so neither is it asked here."""

from __future__ import annotations

import os
from collections.abc import Iterable

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.benchmarks.stamps import execute

broker = RabbitmqBroker(url=os.environ["BENCH_BROKER"].removesuffix("//"))
dramatiq.set_broker(broker)
noop = dramatiq.actor(queue_name=os.environ["BENCH_QUEUE"])(execute)


def unconfirmed(indices: Iterable[int]) -> None:
    for index in indices:
        noop.send(index)


close = broker.close
SENDERS = {"unconfirmed": unconfirmed}
