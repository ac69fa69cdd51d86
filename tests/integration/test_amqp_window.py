"""What goes first, the window over several queues and their lanes, and pauses, on a real node."""

from __future__ import annotations

import time
from collections import Counter

from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.amqp.window import LINGER
from taskq.broker.interface import Delivery
from taskq.message import Publication
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
from tests.servers import RabbitMQ


@BOTH_TYPES
def test_what_goes_first_overtakes_the_line(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    put(rabbitmq, queue, 20, queue_type)
    with session_of(rabbitmq, queue_type=queue_type) as session:
        first = [Publication(queue, message(body), first=True) for body in (b"a", b"b")]
        session.publish(first, time.monotonic() + 10)
        assert session.depth(queue) == 22
    with consuming(settings_for(rabbitmq.url, queue_type=queue_type), queue, window=2) as consumer:
        order: list[Delivery] = []
        while len(order) < 22:
            arrived = receive(consumer, 1)
            order += arrived
            for delivery in arrived:
                consumer.ack(delivery)
    assert {delivery.queue for delivery in order} == {queue}
    assert not any(delivery.redelivered for delivery in order)
    bodies = [delivery.body for delivery in order]
    assert bodies.index(b"a") < bodies.index(b"b") < 6


def test_the_lane_is_purged_with_its_queue_and_delays_come_due_in_the_queue(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 3)
    put(rabbitmq, queue, 4, first=True)
    with session_of(rabbitmq) as session:
        assert session.purge(queue) == 7
        assert session.purge(queue) == 0
        session.publish([Publication(queue, message(), delay=0.5, first=True)], time.monotonic() + 10)
        assert session.depth(f"{queue}.returned") == 0
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        (delivery,) = receive(consumer, 1)
        assert delivery.queue == queue


def test_a_dead_letter_queue_has_no_lane(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, f"{queue}.dead", 1, first=True)
    with session_of(rabbitmq) as session:
        assert session.depth(f"{queue}.dead") == 1
        assert session.depth(f"{queue}.dead.returned") is None


@BOTH_TYPES
def test_one_busy_queue_of_several_may_use_the_whole_window(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    put(rabbitmq, queue, 40, queue_type)
    names = [queue, *(f"{queue}.{number}" for number in range(3))]
    for window in (2, 7, 30):
        with consuming(settings_for(rabbitmq.url, queue_type=queue_type), *names, window=window) as consumer:
            assert len(receive(consumer, window) + settle_down(consumer)) == window


def test_several_busy_queues_share_the_window(rabbitmq: RabbitMQ, queue: str) -> None:
    names = [f"{queue}.{number}" for number in range(4)]
    for name in names:
        put(rabbitmq, name, 100)
    with consuming(settings_for(rabbitmq.url), *names, window=40) as consumer:
        held = receive(consumer, 40) + settle_down(consumer)
    assert 40 <= len(held) <= 52, len(held)
    assert min(Counter(delivery.queue for delivery in held).values()) >= 5


def test_nothing_is_fetched_without_a_free_slot(rabbitmq: RabbitMQ, queue: str) -> None:
    names = [f"{queue}.{number}" for number in range(4)]
    for name in names:
        put(rabbitmq, name, 50)
    with consuming(settings_for(rabbitmq.url), *names, window=2) as consumer:
        held = receive(consumer, 2) + settle_down(consumer)
        assert 2 <= len(held) <= 5
        # what is over the window is given back, as the supervisor does
        for delivery in held[2:]:
            consumer.ack(delivery)
        del held[2:]
        assert settle_down(consumer) == []
        assert all(subscription.stopped for subscription in consumer._subscriptions.values())
        # a slot is free again: one message for it, and one at most from each other queue
        deliveries = 0
        for _ in range(5):
            consumer.ack(held.pop())
            arrived = receive(consumer, 1) + settle_down(consumer)
            deliveries += len(arrived)
            assert 1 <= len(arrived) <= 4
            for delivery in arrived[1:]:
                consumer.ack(delivery)
            held += arrived[:1]
        assert deliveries <= 20


def test_short_tasks_flow_without_a_word_about_consumers(rabbitmq: RabbitMQ, queue: str) -> None:
    other = f"{queue}.other"
    put(rabbitmq, queue, 1500)
    put(rabbitmq, other, 1500)
    with consuming(settings_for(rabbitmq.url), queue, other, window=32) as consumer:
        began = consumers_begun(consumer)
        held: list[Delivery] = []
        seen = 0

        def all_seen() -> bool:
            nonlocal seen
            arrived = consumer.receive()
            seen += len(arrived)
            held.extend(arrived)
            with consumer.transaction():
                for delivery in held[: len(held) // 2 + 1]:
                    consumer.ack(delivery)
            del held[: len(held) // 2 + 1]
            return seen == 3000

        run_until(consumer, all_seen, timeout=30)
        assert consumers_begun(consumer) - began < 60


def consumers_begun(consumer: AmqpConsumer) -> int:
    """How many consumers have begun: every tag is numbered."""
    return sum(one.begun for one in consumer._subscriptions.values())


def test_a_smaller_window_and_none_at_all(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 50)
    with consuming(settings_for(rabbitmq.url), queue, window=10) as consumer:
        held = receive(consumer, 10)
        consumer.set_window(0)
        for delivery in held:
            consumer.ack(delivery)
        assert settle_down(consumer) == []
        consumer.set_window(3)
        assert len(receive(consumer, 3) + settle_down(consumer)) == 3


@BOTH_TYPES
def test_a_paused_queue_is_left_alone(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    other = f"{queue}.other"
    with consuming(settings_for(rabbitmq.url, queue_type=queue_type), queue, other, window=20) as consumer:
        consumer.set_paused(frozenset({queue}))
        assert settle_down(consumer, 2 * LINGER) == []
        put(rabbitmq, queue, 3, queue_type)
        put(rabbitmq, queue, 2, queue_type, first=True)
        put(rabbitmq, other, 3, queue_type)
        assert [delivery.queue for delivery in receive(consumer, 3) + settle_down(consumer)] == [other] * 3
        consumer.set_paused(frozenset())
        assert [delivery.queue for delivery in receive(consumer, 5) + settle_down(consumer)] == [queue] * 5


def test_follow_ups_may_go_first(rabbitmq: RabbitMQ, queue: str) -> None:
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        with consumer.transaction():
            consumer.publish([*publications(queue, 1), Publication(queue, message(b"first"), first=True)])
        assert b"first" in [delivery.body for delivery in receive(consumer, 2)]
