"""What RabbitMQ will not take costs its own publication, at once, and none that is on its way beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import kombu
import pytest

from taskq.broker.amqp.checks import FRAME_MAX, FRAME_OVERHEAD
from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.amqp.outbox import Receipt
from taskq.broker.amqp.properties import encode, named
from taskq.broker.amqp.session import AmqpSession
from taskq.broker.amqp.topology import PAUSES, REVOCATIONS
from taskq.broker.publisher import Publisher
from taskq.config import Settings
from taskq.control import Control, Revoke
from taskq.errors import (
    BrokerError,
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    PublishRejected,
    QueueMismatch,
    TaskqError,
    UnsupportedFeature,
)
from taskq.message import Message, Publication
from tests.integration.amqp_support import consuming, message, publications, run_until, settings_for
from tests.servers import RabbitMQ, running_node

LARGEST = 100_000


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A node that takes no large messages, with a user who may not touch everything."""
    with running_node(f"max_message_size = {LARGEST}") as node:
        node.control("add_user", "clerk", "secret")
        node.control("set_permissions", "clerk", "^(?!.*forbidden)", ".*", ".*")
        yield node


@pytest.fixture
def settings(node: RabbitMQ) -> Settings:
    return settings_for(f"amqp://clerk:secret@127.0.0.1:{node.port}//")


def declare(node: RabbitMQ, queue: str, **arguments: Any) -> None:
    with kombu.Connection(node.url) as connection, connection.channel() as channel:
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)


def outcome(receipt: Receipt) -> bool | BrokerError:
    try:
        return receipt.confirmed
    except BrokerError as error:
        return error


def outcomes(consumer: AmqpConsumer, receipts: Sequence[Receipt]) -> list[bool | BrokerError]:
    """What became of these publications, once all of them are answered."""

    def answered() -> bool:
        consumer.receive()
        return all(outcome(receipt) for receipt in receipts)

    run_until(consumer, answered)
    return [outcome(receipt) for receipt in receipts]


def too_large(queue: str) -> Publication:
    return Publication(queue, message(b"x" * (LARGEST + 1)))


def not_ours(queue: str) -> Publication:
    return Publication(f"{queue}.classic", message())


def not_permitted(queue: str) -> Publication:
    return Publication(f"{queue}.forbidden", message())


def no_list(queue: str) -> Publication:
    # RabbitMQ takes it for a list of queues that get copies
    return Publication(queue, message(CC="somebody"))


REFUSED = pytest.mark.parametrize(
    ("refused", "error", "text"),
    [
        (not_ours, QueueMismatch, "exists with another"),
        (too_large, PublishRejected, "larger than"),
        (not_permitted, PublishRejected, "check user, permissions"),
        (no_list, PublishRejected, "CC"),
    ],
)


@REFUSED
@pytest.mark.parametrize("places", [(0,), (7,), (19,), (3, 4, 11)])
def test_a_follow_up_that_is_refused_costs_itself(
    node: RabbitMQ, settings: Settings, queue: str, refused: Any, error: type[BrokerError], text: str, places: tuple[int, ...]
) -> None:
    declare(node, f"{queue}.classic", **{"x-queue-type": "classic"})
    with consuming(settings, queue, window=0) as consumer:
        with consumer.transaction():
            receipts = [
                consumer.publish([refused(queue)] if number in places else publications(f"{queue}.next", 2))
                for number in range(20)
            ]
        ends = outcomes(consumer, receipts)
        for place in places:
            end = ends[place]
            assert type(end) is error
            assert text in str(end)
            assert not end.passing
            assert "secret" not in str(end)
        assert [end for number, end in enumerate(ends) if number not in places] == [True] * (20 - len(places))
        # and all goes on as before, on the same connection
        with consumer.transaction():
            receipts = [consumer.publish(publications(f"{queue}.next", 1)) for _ in range(20)]
        assert outcomes(consumer, receipts) == [True] * 20


@REFUSED
def test_a_call_that_is_refused_says_so_at_once(
    node: RabbitMQ, settings: Settings, queue: str, refused: Any, error: type[BrokerError], text: str
) -> None:
    declare(node, f"{queue}.classic", **{"x-queue-type": "classic"})
    opened: list[AmqpSession] = []

    def open_session(settings: Settings, timeout: float) -> AmqpSession:
        opened.append(AmqpSession(settings, timeout))
        return opened[-1]

    publisher = Publisher(settings, open_session)
    with contextlib.closing(publisher), pytest.raises(error, match=text) as raised:
        publisher.publish([*publications(queue, 2), refused(queue)])
    assert not raised.value.passing
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"x": "h" * 140_000}, MessageTooLarge),
        ({"x": float("nan")}, UnsupportedFeature),
        ({"x": [1.0, float("-inf")]}, UnsupportedFeature),
        ({"x": 2**63}, UnsupportedFeature),
        ({"x": "caf\udce9"}, UnsupportedFeature),
        ({"x" * 256: 1}, UnsupportedFeature),
        ({"é" * 128: 1}, UnsupportedFeature),
        ({"x": object()}, UnsupportedFeature),
    ],
)
def test_headers_that_have_no_room_in_a_frame_never_leave(
    settings: Settings, queue: str, fields: Mapping[str, Any], error: type[TaskqError]
) -> None:
    refused = Publication(queue, message(**fields))
    with consuming(settings, queue, window=0) as consumer:
        with consumer.transaction():
            before = consumer.publish(publications(queue, 2))
            with pytest.raises(error):
                consumer.publish([*publications(queue, 1), refused])
            after = consumer.publish(publications(queue, 2))
        assert outcomes(consumer, [before, after]) == [True, True]
    with contextlib.closing(AmqpSession(settings, 5)) as session:
        with pytest.raises(error):
            session.publish([refused], time.monotonic() + 5)
        session.publish(publications(queue, 1), time.monotonic() + 5)
        assert session.purge(queue) == 5


@pytest.mark.parametrize("name", ["", "q" * 250, "amq.x", "x.returned", "caf\udce9", "a\nb", "a\0b"])
def test_a_name_that_rabbitmq_cannot_have_never_leaves(settings: Settings, queue: str, name: str) -> None:
    with consuming(settings, queue, window=0) as consumer:
        with pytest.raises(ConfigurationError, match=r"rename|bytes|UTF-8"):
            consumer.publish([Publication(name, message())])
        with consumer.transaction():
            receipt = consumer.publish(publications(queue, 1))
        assert outcomes(consumer, [receipt]) == [True]


def test_the_largest_headers_that_a_frame_has_room_for(settings: Settings, queue: str) -> None:
    sent = message(x="")
    room = FRAME_MAX - FRAME_OVERHEAD - len(encode(named(sent)))
    with consuming(settings, queue, window=0) as consumer:
        with consumer.transaction():
            receipt = consumer.publish([Publication(queue, sent.with_headers(x="h" * room))])
        assert outcomes(consumer, [receipt]) == [True]
        with pytest.raises(MessageTooLarge, match=r"131053 bytes, over 131052.*the largest is 'x'"):
            consumer.publish([Publication(queue, sent.with_headers(x="h" * (room + 1)))])


def test_a_queue_that_is_full_may_take_more_later(node: RabbitMQ, settings: Settings, queue: str) -> None:
    node.control("set_policy", "full", f"^{queue}.full$", '{"max-length": 1, "overflow": "reject-publish"}')
    with consuming(settings, queue, window=0) as consumer:
        ends: list[bool | BrokerError] = [True]
        # a queue takes some more before it notices
        while ends[0] is True:
            with consumer.transaction():
                receipts = [consumer.publish(publications(f"{queue}.full", 5)), consumer.publish(publications(queue, 1))]
            ends = outcomes(consumer, receipts)
    node.control("clear_policy", "full")
    assert isinstance(ends[0], PublishRejected)
    assert ends[0].passing
    assert ends[1] is True


def test_what_holds_delays_was_deleted(node: RabbitMQ, settings: Settings, queue: str) -> None:
    with consuming(settings, queue, window=10) as consumer:
        with consumer.transaction():
            receipt = consumer.publish(publications(queue, 1, delay=0.1))
        assert outcomes(consumer, [receipt]) == [True]
        with kombu.Connection(node.url) as connection, connection.channel() as channel:
            for level in range(28):
                channel.exchange_delete(f"taskq_delayed_{level}")
        with consumer.transaction():
            receipts = [consumer.publish(publications(queue, 1, delay=0.1)), consumer.publish(publications(queue, 1))]
        assert outcomes(consumer, receipts) == [True, True]


def test_a_connection_that_is_broken_by_what_was_sent_says_so(settings: Settings, queue: str) -> None:
    with consuming(settings, queue, window=0) as consumer:
        consumer._connections[1].frame_max = 200_000
        with consumer.transaction():
            consumer.publish([Publication(queue, message(x="h" * 140_000))])
        with pytest.raises(ConnectionLost) as raised:
            run_until(consumer, lambda: bool(consumer.receive()))
        assert raised.value.refused


def test_a_connection_that_is_closed_by_an_operator_is_no_refusal(node: RabbitMQ, settings: Settings, queue: str) -> None:
    with consuming(settings, queue, window=0) as consumer:
        close = 'catch rabbit_networking:close_connection(P, <<"maintenance">>)'
        node.control("eval", f"[{close} || P <- rabbit_networking:connections()].")
        with pytest.raises(ConnectionLost) as raised:
            run_until(consumer, lambda: bool(consumer.receive()))
        assert not raised.value.refused


def test_entries_that_nobody_can_read_say_nothing_to_workers(node: RabbitMQ, settings: Settings, queue: str) -> None:
    """A control entry is for every worker, for 30 days."""
    spoof = b"\x0fx-stream-offsetl\x7f\0\0\0\0\0\0\0"
    entries = [
        Publication(REVOCATIONS, Message(headers={"a": spoof}, body=b"\xe9")),
        Publication(REVOCATIONS, Message(headers={}, body=b"[" * 100_000)),
        Publication(PAUSES, Message(headers={"a": spoof, "z": "z"}, body=b'{"type": "pause", "queue": 5}')),
    ]
    with consuming(settings, queue, window=0) as running, contextlib.closing(AmqpSession(settings, 5)) as session:
        running.controls()
        for entry in entries:
            session.publish([entry], time.monotonic() + 5)
        session.control(Revoke(queue), time.monotonic() + 5)
        heard: list[Control] = []

        def told() -> bool:
            running.receive()
            heard.extend(running.controls())
            return bool(heard)

        run_until(running, told)
        assert heard == [Revoke(queue)]
        assert Revoke(queue) in session.controls()
    with consuming(settings, queue, window=0) as late:
        assert Revoke(queue) in late.controls()


def test_dead_letters_of_a_broker_that_falls_silent_keep_nobody(node: RabbitMQ, settings: Settings, queue: str) -> None:
    with contextlib.closing(AmqpSession(settings, 5)) as session:
        session.publish(publications(f"{queue}.dead", 3), time.monotonic() + 5)
        letters = session.letters(f"{queue}.dead")
        assert len(list(letters)) == 3
        node.freeze()
        try:
            with pytest.raises(ConnectionLost):
                letters.close()
        finally:
            node.thaw()
