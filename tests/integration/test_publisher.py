"""Publishing from applications: threads, forks, brokers that die, freeze or never answer. On a real node."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import kombu
import pytest

from taskq.broker.amqp.session import AmqpSession
from taskq.broker.publisher import Publisher
from taskq.errors import BrokerError, BrokerUnreachable, ConnectionLost, PublishTimeout
from tests.integration.amqp_support import publications, settings_for
from tests.servers import RabbitMQ


@pytest.fixture
def publisher(rabbitmq: RabbitMQ) -> Iterator[Publisher]:
    made = Publisher(settings_for(rabbitmq.url), AmqpSession)
    yield made
    made.close()


def close_every_connection(node: RabbitMQ) -> None:
    node.control("close_all_connections", "test")


def test_many_threads_publish_at_once(publisher: Publisher, queue: str) -> None:
    def work() -> None:
        for _ in range(20):
            publisher.publish(publications(queue, 5))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.purge(queue) == 12 * 20 * 5


def test_publishing_goes_on_after_fork(publisher: Publisher, queue: str) -> None:
    publisher.publish(publications(queue, 1))
    child = os.fork()
    if child == 0:
        try:
            publisher.publish(publications(queue, 1))
            publisher.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    publisher.publish(publications(queue, 1))
    assert publisher.purge(queue) == 3


def test_idle_connections_that_died_are_replaced_silently(rabbitmq: RabbitMQ, publisher: Publisher, queue: str) -> None:
    threads = [threading.Thread(target=publisher.publish, args=(publications(queue, 200),)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close_every_connection(rabbitmq)
    publisher.publish(publications(queue, 1))
    assert publisher.purge(queue) == 1001


def test_a_broker_that_was_restarted_is_found_again(rabbitmq: RabbitMQ, publisher: Publisher, queue: str) -> None:
    publisher.publish(publications(queue, 10))
    rabbitmq.sync()
    rabbitmq.restart()
    publisher.publish(publications(queue, 1))
    assert publisher.purge(queue) == 11


def test_no_broker(queue: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        publisher = Publisher(settings_for(f"amqp://user:secret@127.0.0.1:{nobody.getsockname()[1]}//"), AmqpSession)
        with pytest.raises(BrokerUnreachable, match=r"cannot reach amqp://user:\*\*\*@127.0.0.1") as raised:
            publisher.publish(publications(queue, 1))
        assert "secret" not in str(raised.value)


def test_something_else_than_a_broker_listens(queue: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publisher = Publisher(settings_for(f"amqp://127.0.0.1:{silent.getsockname()[1]}//", publish_timeout=0.5), AmqpSession)
        started = time.monotonic()
        with pytest.raises(BrokerUnreachable, match="no answer within"):
            publisher.publish(publications(queue, 1))
        assert time.monotonic() - started < 3


def test_a_frozen_broker(rabbitmq: RabbitMQ, queue: str) -> None:
    publisher = Publisher(settings_for(rabbitmq.url, publish_timeout=1), AmqpSession)
    publisher.publish(publications(queue, 1))
    rabbitmq.freeze()
    try:
        for error in (PublishTimeout, BrokerUnreachable):
            started = time.monotonic()
            with pytest.raises(error):
                publisher.publish(publications(queue, 1))
            assert time.monotonic() - started < 3
    finally:
        rabbitmq.thaw()


def test_nothing_confirmed_is_lost_when_the_broker_is_killed_in_the_middle(killable_rabbitmq: RabbitMQ, queue: str) -> None:
    publisher = Publisher(settings_for(killable_rabbitmq.url), AmqpSession)
    publisher.publish(publications(queue, 1))
    killable_rabbitmq.sync()
    confirmed = 1
    failures: list[BrokerError] = []

    def work() -> None:
        nonlocal confirmed
        while not failures:
            try:
                publisher.publish(publications(queue, 50))
                confirmed += 50
            except BrokerError as error:
                failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 30
    while confirmed < 1000 and time.monotonic() < deadline:
        time.sleep(0.001)
    killable_rabbitmq.kill()
    thread.join()
    assert isinstance(failures[0], (BrokerUnreachable, ConnectionLost, PublishTimeout))
    killable_rabbitmq.start()
    assert publisher.purge(queue) >= confirmed
    publisher.close()


def test_a_connection_that_breaks_before_the_confirmation_sends_again(
    rabbitmq: RabbitMQ, publisher: Publisher, queue: str
) -> None:
    publisher.publish(publications(queue, 1))
    stop = threading.Event()

    def interfere() -> None:
        while not stop.is_set():
            close_every_connection(rabbitmq)

    thread = threading.Thread(target=interfere)
    thread.start()
    try:
        for _ in range(150):
            publisher.publish(publications(queue, 20))
    finally:
        stop.set()
        thread.join()
    assert publisher.purge(queue) >= 3001


def test_stock_kombu_is_left_alone() -> None:
    assert kombu.Connection("amqp://").get_transport_cls().__module__ == "kombu.transport.pyamqp"
