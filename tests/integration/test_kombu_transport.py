"""The SQLite transport as plain Kombu uses it, without anything of taskq's around it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.exceptions import ChannelError
from kombu.transport.virtual.base import NotEquivalentError

import taskq.broker.sqlite  # noqa: F401  # registers the transport
from taskq.errors import ConnectionLost, DatabaseError


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/kombu.db"


@pytest.fixture
def connection(url: str) -> Iterator[kombu.Connection]:
    with kombu.Connection(url) as connection:
        yield connection


def received(connection: kombu.Connection, *queues: kombu.Queue, count: int = 1, **options: Any) -> list[Any]:
    """So many messages, acked."""
    messages: list[Any] = []
    with kombu.Consumer(connection, queues, on_message=messages.append, **options):
        while len(messages) < count:
            connection.drain_events(timeout=5)
    if not options.get("no_ack"):
        for message in messages:
            message.ack()
    return messages


def nothing_in(connection: kombu.Connection, queue: kombu.Queue) -> bool:
    message = queue(connection.default_channel).get()
    return message is None


def test_the_url_says_all(connection: kombu.Connection, url: str, tmp_path: Path) -> None:
    assert connection.connect()
    assert connection.as_uri() == url
    assert (tmp_path / "kombu.db").exists()
    connection.close()
    assert connection.connect()


def test_a_bad_url_fails_with_a_connection_error() -> None:
    connection = kombu.Connection("sqlite:////proc/nowhere/kombu.db")
    with pytest.raises(DatabaseError):
        connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
    assert DatabaseError in connection.connection_errors


def test_fails_over_to_another_file(tmp_path: Path) -> None:
    urls = f"sqlite:////proc/nowhere/kombu.db;sqlite:///{tmp_path}/second.db"
    with kombu.Connection(urls) as connection:
        connection.ensure_connection(max_retries=2, interval_start=0)
        connection.Producer().publish({}, routing_key="mail")
    assert (tmp_path / "second.db").exists()


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_message_arrives_as_it_was_sent(connection: kombu.Connection, serializer: str, compression: str | None) -> None:
    queue = kombu.Queue("mail", routing_key="mail")
    connection.Producer().publish(
        {"to": "é"},
        routing_key="mail",
        declare=[queue],
        serializer=serializer,
        compression=compression,
        headers={"x": 1},
        correlation_id="7",
        priority=3,
    )
    (message,) = received(connection, queue, accept=["json", "pickle"])
    assert message.payload == {"to": "é"}
    assert message.headers["x"] == 1
    assert (message.properties["correlation_id"], message.properties["priority"]) == ("7", 3)
    assert message.delivery_info == {"exchange": "", "routing_key": "mail", "redelivered": False}
    assert nothing_in(connection, queue)


def test_binary_bodies_are_not_touched(connection: kombu.Connection) -> None:
    body = bytes(range(256)) * 100
    connection.Producer().publish(body, routing_key="mail", content_type="application/data", content_encoding="binary")
    (message,) = received(connection, kombu.Queue("mail"))
    assert bytes(message.body) == body


def test_an_empty_queue_times_out(connection: kombu.Connection) -> None:
    with kombu.Consumer(connection, [kombu.Queue("mail")]), pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)


@pytest.mark.parametrize("kind", ["SimpleQueue", "SimpleBuffer"])
def test_simple_queues(connection: kombu.Connection, kind: str) -> None:
    queue = getattr(connection, kind)("mail", queue_opts={})
    for number in range(3):
        queue.put({"number": number}, priority=number)
    assert queue.qsize() == 3
    messages = [queue.get(timeout=5) for _ in range(3)]
    assert [message.payload["number"] for message in messages] == [2, 1, 0]
    for message in messages:
        message.ack()
    with pytest.raises(queue.Empty):
        queue.get(timeout=0.05)
    with pytest.raises(queue.Empty):
        queue.get_nowait()
    queue.close()


def test_a_direct_exchange_routes_by_key(connection: kombu.Connection) -> None:
    exchange = kombu.Exchange("letters", "direct")
    paper, electronic = (kombu.Queue(name, exchange, routing_key=name) for name in ("paper", "electronic"))
    producer = connection.Producer(exchange=exchange)
    producer.publish({"n": 1}, routing_key="paper", declare=[paper, electronic])
    producer.publish({"n": 2}, routing_key="pigeon")
    assert [message.payload for message in received(connection, paper)] == [{"n": 1}]
    assert nothing_in(connection, electronic)
    assert nothing_in(connection, paper)


def test_a_topic_exchange_matches_patterns(connection: kombu.Connection) -> None:
    exchange = kombu.Exchange("events", "topic")
    every, orders, exact = (
        kombu.Queue(name, exchange, routing_key=key) for name, key in (("all", "#"), ("orders", "order.*"), ("exact", "order"))
    )
    connection.Producer(exchange=exchange).publish({}, routing_key="order.paid", declare=[every, orders, exact])
    assert len(received(connection, every)) == len(received(connection, orders)) == 1
    assert nothing_in(connection, exact)


def test_a_fanout_exchange_reaches_queues_of_other_connections(connection: kombu.Connection, url: str) -> None:
    exchange = kombu.Exchange("news", "fanout")
    with kombu.Connection(url) as other:
        queues = [kombu.Queue(name, exchange) for name in ("first", "second")]
        queues[0](connection.default_channel).declare()
        queues[1](other.default_channel).declare()
        with kombu.Connection(url) as third:
            # Bindings and the exchange's type stand in the file: this producer has declared nothing.
            third.Producer().publish({}, exchange="news", routing_key="", auto_declare=False)
        assert len(received(connection, queues[0])) == len(received(other, queues[1])) == 1


def test_exchanges_outlive_the_process_and_keep_their_kind(connection: kombu.Connection, url: str) -> None:
    channel = connection.default_channel
    kombu.Exchange("events", "topic", durable=True)(channel).declare()
    with kombu.Connection(url) as other:
        other.default_channel.exchange_declare("events", passive=True)
        with pytest.raises(NotEquivalentError):
            other.default_channel.exchange_declare("events", type="fanout")
        with pytest.raises(ChannelError, match="headers"):
            other.default_channel.exchange_declare("odd", type="headers")
    channel.exchange_delete("events")
    with pytest.raises(ChannelError, match="NOT_FOUND - no exchange 'events'"):
        channel.exchange_declare("events", passive=True)


def test_bindings_come_and_go(connection: kombu.Connection) -> None:
    exchange, channel = kombu.Exchange("letters", "direct"), connection.default_channel
    queue = kombu.Queue("mail", exchange, routing_key="a")(channel)
    queue.declare()
    assert channel.list_bindings() == [("mail", "letters", "a")]
    queue.unbind_from(exchange, "a")
    connection.Producer(exchange=exchange).publish({}, routing_key="a")
    assert nothing_in(connection, queue)
    with pytest.raises(ChannelError, match="NOT_FOUND - no exchange 'absent'"):
        channel.queue_bind("mail", "absent", "a")


def test_a_missing_queue_is_not_found(connection: kombu.Connection) -> None:
    with pytest.raises(ChannelError, match="NOT_FOUND - no queue 'mail'") as caught:
        connection.default_channel.queue_declare("mail", passive=True)
    assert caught.value.code == 404


def test_queues_are_counted_purged_and_deleted(connection: kombu.Connection) -> None:
    channel, producer = connection.default_channel, connection.Producer()
    queue = kombu.Queue("mail")(channel)
    queue.declare()
    for _ in range(5):
        producer.publish({}, routing_key="mail")
    held = queue.get()
    assert channel.queue_declare("mail", passive=True).message_count == 4
    assert queue.purge() == 4
    held.reject(requeue=True)
    assert queue.delete(if_empty=True) == 0
    assert queue.delete() == 1
    with pytest.raises(ChannelError):
        channel.queue_declare("mail", passive=True)


def test_an_auto_delete_queue_goes_with_its_last_consumer(connection: kombu.Connection, url: str) -> None:
    queue = kombu.Queue("mail", auto_delete=True)
    with kombu.Connection(url) as other, kombu.Consumer(other, [queue]):
        with kombu.Consumer(connection, [queue]):
            assert connection.default_channel.queue_declare("mail", passive=True).consumer_count == 2
        connection.default_channel.queue_declare("mail", passive=True)
    with pytest.raises(ChannelError):
        connection.default_channel.queue_declare("mail", passive=True)


def test_nine_goes_first_and_equals_in_order(connection: kombu.Connection) -> None:
    producer, queue = connection.Producer(), kombu.Queue("mail")
    for number, priority in enumerate([0, 9, 5, 9, 0, 5, 12]):
        producer.publish({"n": number}, routing_key="mail", priority=priority)
    messages = received(connection, queue, count=7)
    assert [message.payload["n"] for message in messages] == [1, 3, 6, 2, 5, 0, 4]


def test_a_delayed_message_comes_when_it_is_due(connection: kombu.Connection, url: str) -> None:
    with kombu.Connection(url) as other:
        other.Producer().publish({"n": 1}, routing_key="mail", delay=0.2)
        other.Producer().publish({"n": 2}, routing_key="mail")
    published = time.monotonic()
    messages = received(connection, kombu.Queue("mail"), count=2)
    assert [message.payload["n"] for message in messages] == [2, 1]
    assert 0.15 < time.monotonic() - published < 2.0


def test_rejected_requeued_and_recovered(connection: kombu.Connection) -> None:
    channel, queue = connection.default_channel, kombu.Queue("mail")(connection.default_channel)
    connection.Producer().publish({"n": 1}, routing_key="mail")
    connection.Producer().publish({"n": 2}, routing_key="mail")
    first = queue.get()
    assert not first.delivery_info["redelivered"]
    first.requeue()
    first = queue.get()
    assert (first.payload, first.delivery_info["redelivered"]) == ({"n": 1}, True)
    first.reject()
    assert queue.get().payload == {"n": 2}
    channel.basic_recover(requeue=True)
    last = queue.get()
    last.ack()
    with pytest.raises(last.MessageStateError):
        last.ack()
    assert nothing_in(connection, queue)


def test_ack_multiple_follows_the_order_of_delivery(connection: kombu.Connection) -> None:
    queue = kombu.Queue("mail")(connection.default_channel)
    for number, priority in enumerate([0, 9, 5]):
        connection.Producer().publish({"n": number}, routing_key="mail", priority=priority)
    _, second, _ = (queue.get() for _ in range(3))
    second.ack(multiple=True)
    connection.default_channel.basic_recover(requeue=True)
    assert queue.get().payload == {"n": 0}
    assert nothing_in(connection, queue)


def test_the_prefetch_count_is_kept(connection: kombu.Connection) -> None:
    messages: list[Any] = []
    for _ in range(5):
        connection.Producer().publish({}, routing_key="mail")
    with kombu.Consumer(connection, [kombu.Queue("mail")], on_message=messages.append, prefetch_count=2):
        connection.drain_events(timeout=5)
        assert len(messages) == 2
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)
        messages[0].ack()
        connection.drain_events(timeout=5)
        assert len(messages) == 3
    assert connection.default_channel.queue_declare("mail", passive=True).message_count == 2


def test_a_callback_that_raises_loses_nothing(connection: kombu.Connection) -> None:
    seen: list[int] = []

    def fail_once(message: Any) -> None:
        seen.append(message.payload["n"])
        if len(seen) == 1:
            raise ZeroDivisionError

    for number in range(3):
        connection.Producer().publish({"n": number}, routing_key="mail")
    with kombu.Consumer(connection, [kombu.Queue("mail")], on_message=fail_once):
        with pytest.raises(ZeroDivisionError):
            connection.drain_events(timeout=5)
        connection.drain_events(timeout=5)
    assert seen == [0, 1, 2]


def test_without_acks_the_delivery_is_the_end(connection: kombu.Connection) -> None:
    for number in range(3):
        connection.Producer().publish({"n": number}, routing_key="mail")
    messages = received(connection, kombu.Queue("mail"), count=3, no_ack=True)
    assert [message.payload["n"] for message in messages] == [0, 1, 2]
    assert nothing_in(connection, kombu.Queue("mail"))


def test_two_channels_share_a_connection(connection: kombu.Connection) -> None:
    first: list[Any] = []
    second: list[Any] = []
    for _ in range(4):
        connection.Producer().publish({}, routing_key="mail")
    with (
        connection.channel() as one,
        connection.channel() as two,
        kombu.Consumer(one, [kombu.Queue("mail")], on_message=first.append, prefetch_count=2),
        kombu.Consumer(two, [kombu.Queue("mail")], on_message=second.append, prefetch_count=2),
    ):
        connection.drain_events(timeout=5)
        assert (len(first), len(second)) == (2, 2)
    assert connection.default_channel.queue_declare("mail", passive=True).message_count == 4


def test_a_batch_is_published_as_one_or_not_at_all(connection: kombu.Connection) -> None:
    producer, channel = connection.Producer(), connection.default_channel
    assert producer.supports_batch_publish
    with producer.batch():
        for number in range(3):
            producer.publish({"n": number}, routing_key="mail")
        with pytest.raises(ChannelError):
            channel.queue_declare("mail", passive=True)
    assert channel.queue_declare("mail", passive=True).message_count == 3
    with pytest.raises(ZeroDivisionError), producer.batch():
        producer.publish({}, routing_key="mail")
        raise ZeroDivisionError
    assert channel.queue_declare("mail", passive=True).message_count == 3


def test_a_forked_child_may_publish_but_not_consume_for_its_parent(connection: kombu.Connection) -> None:
    queue = kombu.Queue("mail")(connection.default_channel)
    connection.Producer().publish({}, routing_key="mail")
    held = queue.get()
    pid = os.fork()
    if pid == 0:
        try:
            connection.Producer().publish({"from": "child"}, routing_key="mail")
            try:
                held.ack()
            except ConnectionLost:
                os._exit(0)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert queue.get().payload == {"from": "child"}
    held.ack()
