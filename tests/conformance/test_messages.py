"""What goes in comes out: contents, order, priorities and delays."""

from __future__ import annotations

import random
import time

import pytest

from taskq.broker import decoder, identifier, open_session
from taskq.broker.interface import Session
from taskq.config import Settings
from taskq.errors import UnsupportedFeature
from taskq.message import Message
from tests.conformance.support import message, numbers, only, publish
from tests.support import consuming

MEBIBYTE = 1 << 20


def test_a_message_arrives_as_it_was_sent(settings: Settings, session: Session, queue: str) -> None:
    headers = {
        "text": "Grüße \U0001f40d",
        "größe": 1,
        "int": 2**40,
        "negative": -(2**63),
        "float": 0.1,
        "true": True,
        "none": None,
        "list": [1, "zwei", None, [3.5, False]],
        "dict": {"nested": {"deep": [{"er": 1}]}},
        "bytes": b"\x00\xff",
        "empty": "",
    }
    sent = Message(headers=headers, body=b'["\xc3\xa9"]', correlation_id="id-1", reply_to="answers")
    publish(session, queue, sent)
    with consuming(settings, queue) as hold:
        (delivery,) = hold.receive(1)
        assert decoder(settings)(delivery.properties, delivery.body) == sent
        assert identifier(settings)(delivery.properties) == "id-1"
        assert (delivery.queue, delivery.redelivered) == (queue, False)


def test_a_thousand_messages_of_odd_sizes_and_encodings(settings: Settings, session: Session, queue: str) -> None:
    chance = random.Random(20)
    sizes = [0, 1, 2, 7, 255, 256, 4095, 4096, 131_063, 131_064, 131_072, 131_073, MEBIBYTE - 1, MEBIBYTE, MEBIBYTE + 1]
    sizes += [int(2 ** chance.uniform(0, 12)) for _ in range(1000 - len(sizes))]
    chance.shuffle(sizes)
    encodings = ["utf-8", "utf-16", "binary", "latin-1", None]
    types = ["application/json", "application/octet-stream", "text/plain", "x-odd/тип", None]
    sent = [
        Message(
            headers={"n": number, chr(chance.randrange(0x20, 0xD800)) * chance.randrange(1, 60): chance.randbytes(size % 50)},
            body=chance.randbytes(size),
            content_type=chance.choice(types),
            content_encoding=chance.choice(encodings),
            correlation_id=f"{number}" * (number % 9),
        )
        for number, size in enumerate(sizes)
    ]
    publish(session, queue, *sent)
    read = decoder(settings)
    with consuming(settings, queue, window=100) as hold:
        arrived: list[Message] = []
        while len(arrived) < len(sent):
            deliveries = hold.receive(1)
            arrived += [read(delivery.properties, delivery.body) for delivery in deliveries]
            hold.ack(deliveries)
    empty = [m for m in arrived if not m.correlation_id]
    assert len(empty) == len([m for m in sent if not m.correlation_id])
    for got, wanted in zip(arrived, sent, strict=True):
        assert got.headers == wanted.headers
        assert got.body == wanted.body
        assert (got.content_type, got.content_encoding) == (wanted.content_type, wanted.content_encoding)
        assert (got.correlation_id or "") == wanted.correlation_id


def test_order_is_kept(settings: Settings, session: Session, queue: str) -> None:
    for start in range(0, 300, 100):
        publish(session, queue, *[message(number) for number in range(start, start + 100)])
    with consuming(settings, queue, window=7) as hold:
        order: list[int] = []
        while len(order) < 300:
            deliveries = hold.receive(1)
            order += numbers(deliveries)
            hold.ack(deliveries)
    assert order == list(range(300))


def test_what_has_waited_its_turn_goes_first_and_in_order(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(100)])
    with consuming(settings, queue, window=1) as hold:
        order = numbers(hold.receive(1))
        publish(session, queue, message(1000), message(1001), first=True)
        publish(session, queue, message(1002), first=True)
        hold.consumer.set_window(2)
        while len(order) < 20:
            deliveries = hold.receive(1)
            assert not any(delivery.redelivered for delivery in deliveries)
            order += numbers(deliveries)
            hold.ack(deliveries)
    # A few that waited may have been on their way here already.
    assert [number for number in order if number >= 1000] == [1000, 1001, 1002]
    assert order[0] == 0
    assert [number for number in order if number < 1000] == list(range(17))


@only("quorum")
def test_a_priority_is_refused_where_there_are_none(settings: Settings, session: Session, queue: str) -> None:
    with pytest.raises(UnsupportedFeature, match=queue):
        publish(session, queue, message(0), message(1, priority=1))
    assert not session.depth(queue)
    publish(session, queue, message(2))
    assert session.depth(queue) == 1


@only("sqlite", "classic")
def test_priorities(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number, priority=number % 10) for number in range(40)], message(100))
    with consuming(settings, queue, window=1) as hold:
        order: list[int] = []
        while len(order) < 41:
            deliveries = hold.receive(1)
            order += numbers(deliveries)
            hold.ack(deliveries)
    assert order == [*sorted(range(40), key=lambda number: (-(number % 10), number)), 100]


@only("sqlite", "classic")
def test_a_priority_arrives_with_its_message(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0, priority=3), message(1))
    with consuming(settings, queue) as hold:
        deliveries = hold.receive(2)
        read = [decoder(settings)(delivery.properties, delivery.body) for delivery in deliveries]
    assert [one.priority for one in read] == [3, None]


def test_a_delayed_message_comes_when_it_is_due(settings: Settings, session: Session, queue: str) -> None:
    with consuming(settings, queue) as hold:
        started = time.monotonic()
        publish(session, queue, message(0), delay=1.0)
        publish(session, queue, message(1))
        first = hold.receive(1)
        assert numbers(first) == [1]
        assert session.depth(queue) == 0
        second = hold.receive(1)
        assert numbers(second) == [0]
        # RabbitMQ counts whole seconds, and any machine is late now and then.
        assert 0.99 <= time.monotonic() - started < 4.0


def test_a_delay_outlives_its_publisher_and_needs_no_consumer(settings: Settings, queue: str) -> None:
    session = open_session(settings, 5.0)
    publish(session, queue, message(0), delay=1.0)
    session.close()
    with consuming(settings, queue) as hold:
        assert numbers(hold.receive(1)) == [0]


def test_a_delayed_message_that_goes_first_has_its_delay_all_the_same(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0), delay=1.0, first=True)
    with consuming(settings, queue) as hold:
        assert hold.quiet(0.5)
        assert numbers(hold.receive(1)) == [0]


def test_delays_do_not_hold_each_other_up(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(3), delay=3600.0)
    publish(session, queue, message(2), delay=2.0)
    publish(session, queue, message(1), delay=1.0)
    with consuming(settings, queue) as hold:
        assert numbers(hold.receive(2)) == [1, 2]
