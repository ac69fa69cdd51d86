"""RabbitMQ misbehaves: it cancels consumers, blocks publishers, falls silent and resets connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import kombu
import pytest

from taskq.broker.amqp.session import AmqpSession
from taskq.broker.publisher import Publisher
from taskq.errors import BrokerError, ConnectionLost, PublishTimeout
from tests.integration.amqp_support import (
    BOTH_TYPES,
    consuming,
    publications,
    put,
    receive,
    run_until,
    session_of,
    settings_for,
)
from tests.proxy import Proxy
from tests.servers import RabbitMQ, wait_until


def delete(node: RabbitMQ, queue: str) -> None:
    with kombu.Connection(node.url) as connection, connection.channel() as channel:
        channel.queue_delete(queue)


@contextmanager
def memory_alarm(node: RabbitMQ) -> Iterator[None]:
    node.control("set_vm_memory_high_watermark", "0")
    try:
        yield
    finally:
        node.control("set_vm_memory_high_watermark", "0.9")


def url_through(proxy: Proxy) -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.port}//"


@BOTH_TYPES
@pytest.mark.parametrize("suffix", ["", ".returned"])
def test_a_queue_deleted_under_its_consumer_is_declared_again(
    rabbitmq: RabbitMQ, queue: str, queue_type: str, suffix: str
) -> None:
    settings = settings_for(rabbitmq.url, queue_type=queue_type)
    with consuming(settings, queue) as consumer:
        delete(rabbitmq, f"{queue}{suffix}")
        with pytest.raises(ConnectionLost):
            run_until(consumer, lambda: bool(consumer.receive()))
    with consuming(settings, queue) as consumer:
        put(rabbitmq, queue, 1, queue_type, first=bool(suffix))
        assert len(receive(consumer, 1)) == 1


def test_a_memory_alarm_stops_publishers_and_nobody_else(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 20)
    settings = settings_for(rabbitmq.url, publish_timeout=1)
    session = AmqpSession(settings, 10)
    session.publish(publications(queue, 1), time.monotonic() + 5)
    with consuming(settings, queue, window=7) as consumer, memory_alarm(rabbitmq):
        started = time.monotonic()
        with pytest.raises(PublishTimeout, match=r"blocks publishers .*memory"):
            session.publish(publications(queue, 1), started + 1)
        assert time.monotonic() - started < 3.0
        # The message was on its way, and is taken when the alarm is over: that is what "may or may not exist" means.
        seen = 0
        while seen < 21:
            for delivery in receive(consumer, 1):
                seen += 1
                consumer.ack(delivery)
        # a follow-up waits, and is confirmed when it can be
        with consumer.transaction():
            receipt = consumer.publish(publications(f"{queue}.next", 1))
        for _ in range(5):
            consumer.receive()
            assert not receipt.confirmed
        rabbitmq.control("set_vm_memory_high_watermark", "0.9")

        def confirmed() -> bool:
            consumer.receive()
            return receipt.confirmed

        run_until(consumer, confirmed)
    session.close()
    with session_of(rabbitmq) as session:
        session.publish(publications(queue, 1), time.monotonic() + 5)


def test_a_half_open_connection_is_noticed_within_two_heartbeats(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 3)
    with Proxy(rabbitmq.port) as proxy, consuming(settings_for(url_through(proxy), heartbeat=1), queue, window=2) as consumer:
        receive(consumer, 2)
        proxy.stall()
        started = time.monotonic()
        with pytest.raises(ConnectionLost, match="no sign of life"):
            run_until(consumer, lambda: bool(consumer.receive()))
        assert time.monotonic() - started < 3.5
        # the broker, too, gives up on the other end, and hands everything on
        with consuming(settings_for(rabbitmq.url), queue) as other:
            assert len(receive(other, 3)) == 3


def test_a_publisher_on_a_half_open_connection_gives_up_in_time(rabbitmq: RabbitMQ, queue: str) -> None:
    with Proxy(rabbitmq.port) as proxy:
        session = AmqpSession(settings_for(url_through(proxy)), 5)
        session.publish(publications(queue, 1), time.monotonic() + 5)
        proxy.stall()
        started = time.monotonic()
        with pytest.raises(BrokerError):
            session.publish(publications(queue, 1), started + 0.5)
        session.close()
        assert time.monotonic() - started < 3.0


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_what_ends_a_look_is_told_and_not_what_it_did_to_the_connection(
    rabbitmq: RabbitMQ, queue: str, interruption: type[BaseException]
) -> None:
    put(rabbitmq, queue, 3)
    with Proxy(rabbitmq.port) as proxy:
        publisher = Publisher(settings_for(url_through(proxy)), AmqpSession)
        with pytest.raises(interruption), publisher.letters(queue) as letters:
            next(iter(letters))
            proxy.cut()
            raise interruption
        publisher.close()


def test_fifty_connections_reset_in_a_row(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 30)
    acked = 0
    with Proxy(rabbitmq.port) as proxy:
        for number in range(50):
            with consuming(settings_for(url_through(proxy)), queue, window=5) as consumer:
                if number % 2 and acked < 20:
                    consumer.ack(receive(consumer, 1)[0])
                    acked += 1
                proxy.cut()
                with pytest.raises(ConnectionLost):
                    run_until(consumer, lambda: bool(consumer.receive()) and False)
        wait_until(lambda: proxy.connections == 0, 5, "nothing is left open")
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        # an ack that was reset on its way is an ack that did not happen
        assert 10 <= len(receive(consumer, 10)) <= 30
