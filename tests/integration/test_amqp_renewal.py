"""What is held for long: nothing is lost, nothing is run twice, and RabbitMQ closes no channel, on real nodes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import kombu
import pytest
from amqp.exceptions import NotFound

from taskq.broker.amqp.checks import FRAME_MAX, FRAME_OVERHEAD
from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.amqp.properties import decode, encode, named
from taskq.broker.interface import Delivery
from taskq.errors import ConnectionLost
from taskq.message import Publication
from tests.integration.amqp_holder import renewed
from tests.integration.amqp_support import (
    BOTH_TYPES,
    consuming,
    message,
    publications,
    put,
    receive,
    run_until,
    session_of,
    settings_for,
    settle_down,
)
from tests.servers import RabbitMQ, running_node
from tests.support import ROOT, eventually


@contextmanager
def holding(node: RabbitMQ, queue: str, count: int, renew: float, queue_type: str = "quorum") -> Iterator[AmqpConsumer]:
    consumer = AmqpConsumer(settings_for(node.url, queue_type=queue_type), [queue], renew=renew)
    consumer.connect(10)
    consumer.set_window(count)
    try:
        yield consumer
    finally:
        consumer.close()


def held_queue_of(delivery: Delivery) -> str:
    name: str = delivery.tag.consumer_tag
    assert name.endswith(".held")
    return name


def hold_for(consumer: AmqpConsumer, seconds: float) -> list[Delivery]:
    """Serve the connection for so long; what arrives meanwhile."""
    arrived: list[Delivery] = []
    until = time.monotonic() + seconds

    def over() -> bool:
        arrived.extend(consumer.receive())
        return time.monotonic() > until

    run_until(consumer, over, seconds + 10)
    return arrived


@BOTH_TYPES
def test_what_is_held_for_long_is_held_once_and_acked_once(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    put(rabbitmq, queue, 4, queue_type)
    with holding(rabbitmq, queue, 3, 0.1, queue_type) as consumer:
        held = receive(consumer, 3)
        run_until(consumer, lambda: not consumer.receive() and renewed(held))
        tags = {delivery.tag.delivery_tag for delivery in held}
        assert hold_for(consumer, 0.5) == []
        assert not tags & {delivery.tag.delivery_tag for delivery in held}
        name = held_queue_of(held[0])
        for delivery in held:
            consumer.ack(delivery)
        (last,) = receive(consumer, 1)
        assert last.body == b"[[3], {}, {}]"
        consumer.ack(last)
        # A copy that is still on its way keeps its queue alive.
        assert hold_for(consumer, 0.3) == []
    with session_of(rabbitmq, queue_type=queue_type) as session:
        assert session.purge(queue) == 0
    eventually(lambda: not exists(rabbitmq, name), "the consumer has cleared up behind itself")


def exists(rabbitmq: RabbitMQ, name: str) -> bool:
    with kombu.Connection(rabbitmq.url) as connection:
        try:
            connection.channel().queue_declare(name, passive=True)
        except NotFound:
            return False
        return True


@BOTH_TYPES
def test_what_a_killed_holder_had_comes_again_at_once_and_is_proof(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    put(rabbitmq, queue, 5, queue_type)
    command = [sys.executable, "-m", "tests.integration.amqp_holder", rabbitmq.url, queue, queue_type, "5"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"renewed\n"
        finally:
            holder.kill()
    killed = time.monotonic()
    with holding(rabbitmq, queue, 10, 0.1, queue_type) as consumer:
        again = receive(consumer, 5)
        assert time.monotonic() - killed < 5
        assert [delivery.body for delivery in again] == [f"[[{n}], {{}}, {{}}]".encode() for n in range(5)]
        assert all(delivery.redelivered and delivery.orphaned and delivery.queue == queue for delivery in again)
        # and they can be held for long again
        run_until(consumer, lambda: not consumer.receive() and renewed(again))
        for delivery in again:
            consumer.ack(delivery)
        assert settle_down(consumer) == []


def test_what_was_delayed_is_not_taken_for_orphaned(rabbitmq: RabbitMQ, queue: str) -> None:
    with holding(rabbitmq, queue, 1, 0.1) as consumer:
        with consumer.transaction():
            consumer.publish([Publication(queue, message(), delay=0.5, first=True)])
        (delivery,) = receive(consumer, 1)
        assert "x-death" in decode(delivery.properties, delivery.body).headers
        assert not delivery.redelivered
        run_until(consumer, lambda: not consumer.receive() and renewed([delivery]))
        # given back after all: the copy says nothing of deaths
        with consumer.transaction():
            consumer.publish([Publication(queue, decode(delivery.properties, delivery.body), first=True)])
        consumer.ack(delivery)
        (copy,) = receive(consumer, 1)
        assert (copy.redelivered, copy.orphaned) == (False, False)
        consumer.ack(copy)


def test_a_message_is_secured_at_once_where_that_is_asked_for(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 2)
    with holding(rabbitmq, queue, 2, 60) as consumer:
        secured, other = receive(consumer, 2)
        assert not consumer.secure(secured)
        run_until(consumer, lambda: not consumer.receive() and consumer.secure(secured))
        consumer._connections[0]._transport.sock.shutdown(2)
        with pytest.raises(ConnectionLost):
            run_until(consumer, lambda: bool(consumer.receive()))
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        marks = {delivery.body: (delivery.redelivered, delivery.orphaned) for delivery in receive(consumer, 2)}
    assert marks == {secured.body: (True, True), other.body: (True, False)}


def test_a_broker_that_is_killed_brings_back_what_was_renewed(killable_rabbitmq: RabbitMQ, queue: str) -> None:
    put(killable_rabbitmq, queue, 6)
    with holding(killable_rabbitmq, queue, 6, 0.1) as consumer:
        held = receive(consumer, 6)
        run_until(consumer, lambda: not consumer.receive() and renewed(held))
        killable_rabbitmq.sync()
        killable_rabbitmq.kill()
        with pytest.raises(ConnectionLost):
            run_until(consumer, lambda: bool(consumer.receive()))
    killable_rabbitmq.start()
    with consuming(settings_for(killable_rabbitmq.url), queue) as consumer:
        again = receive(consumer, 6)
        # a copy that was under way may be there beside its original
        assert {delivery.body for delivery in again} == {delivery.body for delivery in held}
        assert all(delivery.redelivered for delivery in again)


def test_acks_at_any_moment_of_a_renewal_leave_nothing_behind(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 300)
    chance = random.Random(7)
    seen: list[bytes] = []
    with holding(rabbitmq, queue, 40, 0.005) as consumer:
        held: list[Delivery] = []

        def all_done() -> bool:
            arrived = consumer.receive()
            held.extend(arrived)
            seen.extend(delivery.body for delivery in arrived)
            for delivery in [delivery for delivery in held if chance.random() < 0.1]:
                held.remove(delivery)
                consumer.ack(delivery)
            return len(seen) >= 300 and not held

        run_until(consumer, all_done, timeout=30)
        assert settle_down(consumer) == []
    assert len(seen) == len(set(seen)) == 300
    with session_of(rabbitmq) as session:
        # what would go back from a held queue takes a second
        run_out = time.monotonic() + 1.5
        eventually(lambda: time.monotonic() > run_out or session.purge(queue))
        assert session.purge(queue) == 0


@pytest.fixture(scope="module")
def impatient() -> Iterator[RabbitMQ]:
    """A node that grants a consumer two seconds, and looks twice a second instead of once a minute."""
    with running_node("consumer_timeout = 2000", rabbit="{channel_tick_interval, 500}") as node:
        yield node


@BOTH_TYPES
def test_a_task_longer_than_the_consumer_timeout(impatient: RabbitMQ, queue: str, queue_type: str) -> None:
    put(impatient, queue, 3, queue_type)
    with holding(impatient, queue, 2, 0.5, queue_type) as consumer:
        long, sibling = receive(consumer, 2)
        assert hold_for(consumer, 5) == []
        consumer.ack(sibling)
        (third,) = receive(consumer, 1)
        for delivery in (long, third):
            consumer.ack(delivery)
        assert settle_down(consumer) == []
    with session_of(impatient, queue_type=queue_type) as session:
        assert session.purge(queue) == 0


def test_without_renewal_the_node_would_close_the_channel(impatient: RabbitMQ, queue: str) -> None:
    put(impatient, queue, 1)
    with holding(impatient, queue, 1, 60) as consumer:
        receive(consumer, 1)
        with pytest.raises(ConnectionLost, match="timeout"):
            hold_for(consumer, 10)


def test_what_somebody_else_puts_into_a_held_queue_goes_on(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 1)
    with holding(rabbitmq, queue, 5, 0.1) as consumer:
        held = receive(consumer, 1)
        run_until(consumer, lambda: not consumer.receive() and renewed(held))
        with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
            for headers in ({}, {"tq-renewal": "x"}, {"tq-renewal": [1]}):
                kombu.Producer(channel).publish(b"foreign", routing_key=held_queue_of(held[0]), headers=headers)
        assert [delivery.body for delivery in receive(consumer, 3)] == [b"foreign"] * 3


def test_headers_that_have_no_room_for_a_renewal(rabbitmq: RabbitMQ, queue: str) -> None:
    sent = message(x="")
    full = sent.with_headers(x="h" * (FRAME_MAX - FRAME_OVERHEAD - len(encode(named(sent)))))
    with session_of(rabbitmq) as session:
        session.publish([Publication(queue, full), *publications(queue, 1)], time.monotonic() + 10)
    with holding(rabbitmq, queue, 2, 0.1) as consumer:
        large, other = receive(consumer, 2)
        run_until(consumer, lambda: not consumer.receive() and renewed([other]))
        assert not renewed([large])
        for delivery in (large, other):
            consumer.ack(delivery)
        assert settle_down(consumer) == []
