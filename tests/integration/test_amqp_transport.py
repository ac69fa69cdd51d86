"""The transport as any user of Kombu sees it, in clear and over TLS. On real nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from amqp.exceptions import ChannelError, PreconditionFailed
from kombu.exceptions import ContentDisallowed

from taskq.broker.amqp.delivered import Delivered
from taskq.broker.amqp.session import AmqpSession
from taskq.broker.amqp.transport import Transport
from taskq.errors import BrokerUnreachable
from taskq.message import Publication
from tests.integration.amqp_support import consuming, message, receive, settings_for
from tests.servers import RabbitMQ


@pytest.fixture
def connection(rabbitmq: RabbitMQ) -> Iterator[kombu.Connection]:
    with kombu.Connection(rabbitmq.url, transport=Transport) as opened:
        yield opened


def received(connection: kombu.Connection, queue: kombu.Queue, count: int, **options: Any) -> list[Any]:
    messages: list[Any] = []
    with connection.Consumer([queue], on_message=messages.append, **options):
        while len(messages) < count:
            connection.drain_events(timeout=10)
    return messages


def test_a_kombu_producer_and_consumer(connection: kombu.Connection, queue: str) -> None:
    entity = kombu.Queue(queue, kombu.Exchange(queue, "topic"), routing_key="a.#", durable=True, auto_delete=False)
    body = {"text": "ä" * 1000, "number": 1}
    for compression in (None, "zlib"):
        connection.Producer().publish(
            body,
            exchange=queue,
            routing_key="a.b",
            declare=[entity],
            compression=compression,
            headers={"mine": [1, None]},
            priority=3,
        )
    plain, compressed = received(connection, entity, 2)
    assert type(plain) is Delivered
    assert plain.payload == compressed.payload == body
    assert plain.headers == {"mine": [1, None]}
    assert (plain.content_type, plain.content_encoding) == ("application/json", "utf-8")
    assert plain.properties["priority"] == 3
    assert plain.delivery_info["routing_key"] == "a.b"
    assert plain.delivery_info["exchange"] == queue
    assert not plain.delivery_info["redelivered"]
    plain.requeue()
    compressed.reject()
    (again,) = received(connection, entity, 1)
    assert again.delivery_info["redelivered"]
    again.ack()
    with pytest.raises(again.MessageStateError):
        again.ack()
    connection.default_channel.exchange_delete(queue)


def test_content_that_is_not_accepted_is_not_decoded(connection: kombu.Connection, queue: str) -> None:
    entity = kombu.Queue(queue, durable=True)
    connection.Producer().publish({"a": 1}, routing_key=queue, declare=[entity])
    (message,) = received(connection, entity, 1, accept=["application/x-other"])
    with pytest.raises(ContentDisallowed):
        message.decode()
    message.ack()


def test_bodies_of_many_frames_on_two_channels_at_once(connection: kombu.Connection, queue: str) -> None:
    entities = [kombu.Queue(f"{queue}.{number}", exclusive=True) for number in range(2)]
    bodies = {f"{queue}.{number}": bytes([number]) * 1_000_000 for number in range(2)}
    got: list[Any] = []
    consumers = []
    for entity in entities:
        consumer = connection.Consumer([entity], channel=connection.channel(), on_message=got.append)
        consumer.consume()
        consumers.append(consumer)
    producer = connection.Producer()
    with producer.batch():
        for _ in range(5):
            for name, body in bodies.items():
                producer.publish(body, routing_key=name, content_type="application/data", content_encoding="binary")
    while len(got) < 10:
        connection.drain_events(timeout=10)
    assert [message.body for message in got if message.delivery_info["routing_key"].endswith("1")] == [bodies[f"{queue}.1"]] * 5
    assert sum(message.body == bodies[f"{queue}.0"] for message in got) == 5


def test_a_batch_raises_for_an_unroutable_message(connection: kombu.Connection, queue: str) -> None:
    producer = connection.Producer()
    with pytest.raises(ChannelError, match="NO_ROUTE"), producer.batch(max_size=3):
        for number in range(10):
            producer.publish({"n": number}, routing_key=queue, mandatory=True)


def test_py_amqps_own_confirmations_still_work(rabbitmq: RabbitMQ, queue: str) -> None:
    with kombu.Connection(rabbitmq.url, transport=Transport, transport_options={"confirm_publish": True}) as opened:
        opened.Producer().publish({}, routing_key=queue, declare=[kombu.Queue(queue, durable=True)], timeout=10)


def test_a_failed_channel_stays_closed(connection: kombu.Connection, queue: str) -> None:
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, auto_delete=False)
    with pytest.raises(PreconditionFailed):
        channel.queue_declare(queue, durable=False, auto_delete=False)
    assert channel.connection is None
    assert not channel.is_open


@pytest.fixture(scope="module")
def tls_node(certificates: dict[str, Path]) -> Iterator[RabbitMQ]:
    node = RabbitMQ(tls=certificates)
    try:
        yield node.start()
    finally:
        node.stop()


def test_tls(tls_node: RabbitMQ, certificates: dict[str, Path], queue: str) -> None:
    authority = f"?ssl_ca_certs={certificates['cacertfile']}"
    settings = settings_for(f"amqps://localhost:{tls_node.tls_port}//{authority}", heartbeat=1)
    session = AmqpSession(settings, 10)
    bodies = [bytes([number % 256]) * (number * 997 % 40_000) for number in range(400)] + [b"x" * 3_000_000]
    session.publish([Publication(queue, message(body)) for body in bodies], time.monotonic() + 30)
    with consuming(settings, queue, window=500) as consumer:
        deliveries = receive(consumer, len(bodies), timeout=30)
        assert [delivery.body for delivery in deliveries] == bodies
        with consumer.transaction():
            for delivery in deliveries:
                consumer.ack(delivery)
    session.close()


def test_tls_checks_authority_and_host(tls_node: RabbitMQ, certificates: dict[str, Path]) -> None:
    known = f"?ssl_ca_certs={certificates['cacertfile']}"
    for host, query in (("localhost", ""), ("127.0.0.1", known)):
        with pytest.raises(BrokerUnreachable, match="certificate verify failed"):
            AmqpSession(settings_for(f"amqps://{host}:{tls_node.tls_port}//{query}"), 10)
    AmqpSession(settings_for(f"amqps://127.0.0.1:{tls_node.tls_port}//{known}&ssl_check_hostname=false"), 10).close()
