"""The supervisor's side of RabbitMQ, on a real node."""

from __future__ import annotations

import select
import time

import kombu
import pytest

from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.amqp.properties import decode
from taskq.broker.amqp.session import AmqpSession
from taskq.broker.interface import Delivery
from taskq.errors import BrokerUnreachable, ConnectionLost, QueueMismatch, UnsupportedFeature
from taskq.message import Publication
from tests.integration.amqp_support import BOTH_TYPES, consuming, message, publications, put, receive, run_until, settings_for
from tests.servers import RabbitMQ


def ready(node: RabbitMQ, queue: str) -> int:
    """Unlike ``depth``, exact at once: quorum queues count for themselves now and then only."""
    session = AmqpSession(settings_for(node.url), 10)
    count = session.purge(queue)
    session.close()
    return count


@BOTH_TYPES
def test_acked_is_gone_and_unacked_comes_back(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    put(rabbitmq, queue, 10, queue_type)
    settings = settings_for(rabbitmq.url, queue_type=queue_type)
    with consuming(settings, queue) as consumer:
        deliveries = receive(consumer, 10)
        assert [delivery.body for delivery in deliveries] == [f"[[{n}], {{}}, {{}}]".encode() for n in range(10)]
        assert not any(delivery.redelivered for delivery in deliveries)
        with consumer.transaction():
            for delivery in deliveries[1::2]:
                consumer.ack(delivery)
    with consuming(settings, queue) as consumer:
        again = receive(consumer, 5)
        assert [delivery.body for delivery in again] == [delivery.body for delivery in deliveries[::2]]
        assert all(delivery.redelivered for delivery in again)


def test_what_is_delivered_decodes_to_what_was_published(rabbitmq: RabbitMQ, queue: str) -> None:
    sent = message(b"\xff\x00" * 700_000, answer=42, nothing=None, deep={"list": [1, "two", 3.5, None, True]})
    session = AmqpSession(settings_for(rabbitmq.url), 10)
    session.publish([Publication(queue, sent)], time.monotonic() + 10)
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        (delivery,) = receive(consumer, 1)
        received = decode(delivery.properties, delivery.body)
    assert received.headers == {**sent.headers, **({"x-delivery-count": 0} if "x-delivery-count" in received.headers else {})}
    assert (received.body, received.correlation_id, received.content_type) == (
        sent.body,
        sent.correlation_id,
        sent.content_type,
    )
    session.close()


@BOTH_TYPES
def test_the_window_bounds_what_is_held_however_it_changes(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    put(rabbitmq, queue, 300, queue_type)
    held: list[Delivery] = []
    with consuming(settings_for(rabbitmq.url, queue_type=queue_type), queue, window=20) as consumer:

        def holds(count: int) -> bool:
            held.extend(consumer.receive())
            assert len(held) <= max(count, before)
            return len(held) == count

        before = 0
        run_until(consumer, lambda: holds(20))
        for window, settle in ((50, 0), (50, 30), (10, 50), (40, 15), (0, 10), (5, 30)):
            consumer.set_window(window)
            for delivery in held[:settle]:
                consumer.ack(delivery)
            del held[:settle]
            before = len(held)
            run_until(consumer, lambda: holds(max(window, before)))  # noqa: B023
        # and it stays there: nothing more is on its way
        select.select([consumer.fileno()], [], [], 0.2)
        held += consumer.receive()
        assert len(held) <= 35


def test_many_messages_out_of_order(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 3000)
    seen: set[bytes] = set()
    with consuming(settings_for(rabbitmq.url), queue, window=64) as consumer:
        kept: list[Delivery] = []

        def all_seen() -> bool:
            arrived = consumer.receive()
            with consumer.transaction():
                for number, delivery in enumerate(arrived):
                    seen.add(delivery.body)
                    if number % 7 == 3 and len(kept) < 30:
                        kept.append(delivery)
                    else:
                        consumer.ack(delivery)
            return len(seen) == 3000

        run_until(consumer, all_seen, timeout=30)
        with consumer.transaction():
            for delivery in kept:
                consumer.ack(delivery)
        assert not [delivery for delivery in consumer.receive() if delivery.body not in seen]


def test_follow_ups_are_confirmed(rabbitmq: RabbitMQ, queue: str) -> None:
    other = f"{queue}.next"
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        with consumer.transaction():
            receipt = consumer.publish([*publications(queue, 2), *publications(other, 1)])
            assert not receipt.confirmed
        received: list[Delivery] = []

        def confirmed() -> bool:
            received.extend(consumer.receive())
            return receipt.confirmed and len(received) == 2

        run_until(consumer, confirmed)
    assert ready(rabbitmq, other) == 1


def test_a_follow_up_to_a_queue_that_was_deleted_declares_it_again(rabbitmq: RabbitMQ, queue: str) -> None:
    other = f"{queue}.next"
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        for _ in range(2):
            with consumer.transaction():
                receipt = consumer.publish(publications(other, 3))

            def confirmed() -> bool:
                consumer.receive()
                return receipt.confirmed  # noqa: B023

            run_until(consumer, confirmed)
            with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
                assert channel.queue_delete(other) == 3


@BOTH_TYPES
def test_a_delayed_message_can_be_delayed_again(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    with consuming(settings_for(rabbitmq.url, queue_type=queue_type), queue) as consumer:
        following = message()
        for _ in range(3):
            started = time.monotonic()
            with consumer.transaction():
                consumer.publish([Publication(queue, following, delay=0.5)])
            (delivery,) = receive(consumer, 1)
            assert time.monotonic() - started > 0.9
            following = decode(delivery.properties, delivery.body)
            consumer.ack(delivery)


def test_what_cannot_be_published_harms_nothing_else(rabbitmq: RabbitMQ, queue: str) -> None:
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        with pytest.raises(UnsupportedFeature):
            consumer.publish([*publications(queue, 1), Publication(queue, message(), delay=2**30)])
        with consumer.transaction():
            consumer.publish(publications(queue, 1))
        assert len(receive(consumer, 1)) == 1


def test_a_deleted_queue_is_a_lost_connection(rabbitmq: RabbitMQ, queue: str) -> None:
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
            channel.queue_delete(queue)
        with pytest.raises(ConnectionLost):
            run_until(consumer, lambda: bool(consumer.receive()))


def test_a_channel_that_the_broker_closes_is_a_lost_connection(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 1)
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        (delivery,) = receive(consumer, 1)
        delivery.tag.channel.basic_ack(999, multiple=True)
        with pytest.raises(ConnectionLost, match="unknown delivery tag"):
            run_until(consumer, lambda: bool(consumer.receive()))
        with pytest.raises(ConnectionLost):
            consumer.ack(delivery)


def test_a_delivery_is_not_acked_on_another_connection(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 1)
    settings = settings_for(rabbitmq.url)
    with consuming(settings, queue) as first:
        (delivery,) = receive(first, 1)
    with consuming(settings, queue) as second:
        (again,) = receive(second, 1)
        with pytest.raises(ConnectionLost, match="redelivered"):
            second.ack(delivery)
        second.ack(again)


def test_a_queue_with_other_arguments(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 1, "classic")
    consumer = AmqpConsumer(settings_for(rabbitmq.url), [queue])
    with pytest.raises(QueueMismatch, match=queue):
        consumer.connect(10)


def test_a_silent_broker_is_lost_after_two_heartbeats(rabbitmq: RabbitMQ, queue: str) -> None:
    with consuming(settings_for(rabbitmq.url, heartbeat=1), queue) as consumer:
        rabbitmq.freeze()
        try:
            started = time.monotonic()
            with pytest.raises(ConnectionLost, match="no sign of life"):
                run_until(consumer, lambda: bool(consumer.receive()))
            assert 1.5 < time.monotonic() - started < 4
            started = time.monotonic()
            other = AmqpConsumer(settings_for(rabbitmq.url), [queue])
            with pytest.raises(BrokerUnreachable, match="no answer"):
                other.connect(1)
            assert time.monotonic() - started < 2
        finally:
            rabbitmq.thaw()


def test_heartbeats_keep_an_idle_connection(rabbitmq: RabbitMQ, queue: str) -> None:
    with consuming(settings_for(rabbitmq.url, heartbeat=1), queue) as consumer:
        until = time.monotonic() + 4

        def over() -> bool:
            consumer.receive()
            return time.monotonic() > until

        run_until(consumer, over)
        put(rabbitmq, queue, 1)
        assert len(receive(consumer, 1)) == 1


def test_a_killed_broker_is_a_lost_connection_and_brings_everything_back(killable_rabbitmq: RabbitMQ, queue: str) -> None:
    put(killable_rabbitmq, queue, 20)
    with consuming(settings_for(killable_rabbitmq.url), queue) as consumer:
        receive(consumer, 20)
        killable_rabbitmq.sync()
        killable_rabbitmq.kill()
        with pytest.raises(ConnectionLost):
            run_until(consumer, lambda: bool(consumer.receive()))
    with pytest.raises(BrokerUnreachable, match=r"guest:\*\*\*@"):
        AmqpConsumer(settings_for(killable_rabbitmq.url), [queue]).connect(5)
    killable_rabbitmq.start()
    with consuming(settings_for(killable_rabbitmq.url), queue) as consumer:
        assert len(receive(consumer, 20)) == 20
