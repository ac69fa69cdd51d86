"""One suite for every broker: what ``taskq.broker.interface`` promises, and what the guarantees rest on."""

from __future__ import annotations

import random
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kombu
import pytest

from taskq.broker import decoder, identifier, open_consumer, open_session
from taskq.broker.interface import Delivery, Session
from taskq.config import Settings
from taskq.errors import ConnectionLost, UnsupportedFeature
from taskq.message import Message, Publication, dead_letter_queue
from tests.servers import RabbitMQ
from tests.support import ROOT, Hold, Stage, consuming, eventually

MEBIBYTE = 1 << 20


def only(*kinds: str) -> pytest.MarkDecorator:
    """For what not every broker can do."""
    return pytest.mark.parametrize("kind", kinds, indirect=True)


def message(body: bytes | int, **fields: Any) -> Message:
    return Message(headers={}, body=str(body).encode() if isinstance(body, int) else body, **fields)


def publish(session: Session, queue: str, *messages: Message, delay: float = 0.0) -> None:
    session.publish([Publication(queue, message, delay) for message in messages], time.monotonic() + 10.0)


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(delivery.body) for delivery in deliveries]


@contextmanager
def process(stage: Stage, role: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``tests.conformance.processes``; dead at the end of the block."""
    command = [sys.executable, "-m", "tests.conformance.processes", role, stage.queue, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=stage.environment(), stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def read_line(running: subprocess.Popen[bytes]) -> bytes:
    assert running.stdout is not None
    return running.stdout.readline()


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
        assert (delivery.queue, delivery.redelivered, delivery.crashes) == (queue, False, 0)


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


def test_the_window_bounds_what_is_held(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(20)])
    with consuming(settings, queue, window=5) as hold:
        held = hold.receive(5)
        assert hold.quiet()
        assert numbers(held) == [0, 1, 2, 3, 4]
        hold.ack(held[:2])
        held = held[2:] + hold.receive(2)
        assert hold.quiet()
        assert numbers(held) == [2, 3, 4, 5, 6]

        hold.consumer.set_window(8)
        held += hold.receive(3)
        assert hold.quiet()
        assert numbers(held) == list(range(2, 10))

        hold.consumer.set_window(2)
        hold.ack(held[:5])
        assert hold.quiet()
        hold.ack(held[5:7])
        held = held[7:] + hold.receive(1)
        assert hold.quiet()
        assert len(held) == 2


def test_a_window_of_zero_stops_the_fetching(settings: Settings, session: Session, queue: str) -> None:
    with consuming(settings, queue, window=5) as hold:
        publish(session, queue, message(0))
        first = hold.receive(1)
        hold.consumer.set_window(0)
        assert hold.quiet(0.1)
        publish(session, queue, message(1))
        hold.ack(first)
        assert hold.quiet()
        assert session.depth(queue) == 1
        hold.consumer.set_window(5)
        assert numbers(hold.receive(1)) == [1]


def test_a_consumer_is_woken_for_what_arrives_later(settings: Settings, session: Session, queue: str) -> None:
    with consuming(settings, queue, window=3) as hold:
        assert hold.quiet(0.1)
        latencies = []
        for number in range(20):
            started = time.monotonic()
            publish(session, queue, message(number))
            hold.ack(hold.receive(1))
            latencies.append(time.monotonic() - started)
    assert statistics.median(latencies) < 0.05


def test_an_acked_message_is_gone(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(10)])
    with consuming(settings, queue) as hold:
        hold.ack(hold.receive(10))
    assert session.depth(queue) == 0
    with consuming(settings, queue) as hold:
        assert hold.quiet()


def test_acks_may_come_out_of_order(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(10)])
    with consuming(settings, queue) as hold:
        held = hold.receive(10)
        hold.ack([held[9], held[0], held[4]])
    with consuming(settings, queue) as hold:
        assert sorted(numbers(hold.receive(7))) == [1, 2, 3, 5, 6, 7, 8]
        assert hold.quiet(0.1)


def test_what_is_unacked_at_the_close_comes_again(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(5)])
    with consuming(settings, queue) as hold:
        held = hold.receive(5)
        assert not any(delivery.redelivered for delivery in held)
        assert session.depth(queue) == 0
        hold.ack(held[:1])
    with consuming(settings, queue) as hold:
        again = hold.receive(4)
        assert sorted(numbers(again)) == [1, 2, 3, 4]
        assert all(delivery.redelivered for delivery in again)


def test_a_requeued_message_comes_again_where_it_stood(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(5)])
    with consuming(settings, queue, window=1) as hold:
        for _ in range(3):
            first = hold.receive(1)
            assert numbers(first) == [0]
            hold.requeue(first)
        assert hold.receive(1)[0].redelivered


def test_a_requeued_message_is_there_for_others(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0))
    with consuming(settings, queue) as mine:
        held = mine.receive(1)
        with consuming(settings, queue) as other:
            assert other.quiet(0.1)
            mine.consumer.set_window(0)
            mine.requeue(held)
            assert numbers(other.receive(1)) == [0]


def test_messages_of_a_killed_consumer_come_again_at_once(kind: str, stage: Stage, settings: Settings, session: Session) -> None:
    publish(session, stage.queue, *[message(number) for number in range(10)])
    seconds = []
    for _ in range(3):
        with process(stage, "hold", "10") as holder:
            assert read_line(holder) == b"held\n"
            with consuming(settings, stage.queue) as hold:
                assert hold.quiet(0.05)
                killed = time.monotonic()
                holder.kill()
                again = hold.receive(10)
                seconds.append(time.monotonic() - killed)
        assert sorted(numbers(again)) == list(range(10))
        assert all(delivery.redelivered for delivery in again)
    # The best of three: the machine may be busy, but nothing here may wait for a timer.
    assert min(seconds) < (0.1 if kind == "sqlite" else 2.0)


def test_messages_of_a_consumer_killed_while_nobody_watched_come_again(stage: Stage, settings: Settings, session: Session) -> None:
    publish(session, stage.queue, *[message(number) for number in range(10)])
    with process(stage, "hold", "10") as holder:
        assert read_line(holder) == b"held\n"
    eventually(lambda: session.depth(stage.queue) == 10, "the messages are ready again")
    with consuming(settings, stage.queue) as hold:
        assert numbers(hold.receive(10)) == list(range(10))


def test_what_a_killed_publisher_was_confirmed_is_there(stage: Stage, settings: Settings) -> None:
    confirmed = []
    with process(stage, "publish") as publisher:
        while len(confirmed) < 50:
            confirmed.append(int(read_line(publisher)))
        publisher.kill()
        assert publisher.stdout is not None
        confirmed += [int(line) for line in publisher.stdout]
    with consuming(settings, stage.queue) as hold:
        assert set(numbers(hold.receive(len(confirmed)))) >= set(confirmed)


def test_two_consumers_share_a_queue(settings: Settings, session: Session, queue: str) -> None:
    with consuming(settings, queue, window=10) as left, consuming(settings, queue, window=10) as right:
        publish(session, queue, *[message(number) for number in range(200)])
        seen: dict[str, list[int]] = {"left": [], "right": []}
        deadline = time.monotonic() + 15
        while sum(map(len, seen.values())) < 200 and time.monotonic() < deadline:
            for name, hold in (("left", left), ("right", right)):
                deliveries = hold.turn(0.01)
                seen[name] += numbers(deliveries)
                hold.ack(deliveries)
    assert Counter(seen["left"] + seen["right"]) == Counter(range(200))
    assert min(map(len, seen.values())) > 20


def test_one_consumer_reads_several_queues(settings: Settings, session: Session, queue: str) -> None:
    names = [f"{queue}.{number}" for number in range(3)]
    try:
        for number, name in enumerate(names):
            publish(session, name, *[message(10 * number + index) for index in range(10)])
        with consuming(settings, *names, window=9) as hold:
            arrived: list[Delivery] = []
            while len(arrived) < 30:
                deliveries = hold.receive(1)
                arrived += deliveries
                hold.ack(deliveries)
        assert sorted(numbers(arrived)) == list(range(30))
        assert all(names[int(delivery.body) // 10] == delivery.queue for delivery in arrived)
    finally:
        delete(settings, *names, *map(dead_letter_queue, names))


def test_follow_ups_are_confirmed(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0))
    with consuming(settings, queue) as hold:
        (first,) = hold.receive(1)
        with hold.consumer.transaction():
            receipt = hold.consumer.publish([Publication(queue, message(1)), Publication(dead_letter_queue(queue), message(2))])
        arrived: list[Delivery] = []
        eventually(lambda: [arrived.extend(hold.turn(0.01)), receipt.confirmed][1], "the follow-ups are confirmed")
        hold.ack([first])
        assert numbers(arrived or hold.receive(1)) == [1]
        assert session.depth(dead_letter_queue(queue)) == 1


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


def test_delays_do_not_hold_each_other_up(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(3), delay=3600.0)
    publish(session, queue, message(2), delay=2.0)
    publish(session, queue, message(1), delay=1.0)
    with consuming(settings, queue) as hold:
        assert numbers(hold.receive(2)) == [1, 2]


def test_purge_deletes_what_is_ready_and_nothing_else(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(10)])
    with consuming(settings, queue, window=3) as hold:
        assert numbers(hold.receive(3)) == [0, 1, 2]
        assert session.purge(queue) == 7
        assert session.purge(queue) == 0
    with consuming(settings, queue) as hold:
        assert sorted(numbers(hold.receive(3))) == [0, 1, 2]
        assert hold.quiet(0.1)


def test_depth(settings: Settings, session: Session, queue: str) -> None:
    assert session.depth(queue) is None
    assert session.purge(queue) == 0
    publish(session, queue, *[message(number) for number in range(10)])
    assert session.depth(queue) == 10
    assert session.depth(dead_letter_queue(queue)) == 0
    with consuming(settings, queue, window=4) as hold:
        hold.receive(4)
        assert session.depth(queue) == 6


def test_a_queue_deleted_by_somebody_else_is_made_again(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0))
    delete(settings, queue, dead_letter_queue(queue))
    publish(session, queue, message(1))
    assert session.depth(queue) == 1
    with consuming(settings, queue) as hold:
        assert numbers(hold.receive(1)) == [1]


@only("sqlite")
def test_nothing_takes_effect_where_a_transaction_fails(settings: Settings, session: Session, queue: str) -> None:
    """RabbitMQ has no transactions worth the name: the order of ``settle`` has to do there."""
    publish(session, queue, message(0), message(1))
    with consuming(settings, queue) as hold:
        first, second = hold.receive(2)
        with pytest.raises(ZeroDivisionError), hold.consumer.transaction():
            hold.consumer.publish([Publication(queue, message(2))])
            hold.consumer.ack(first)
            hold.consumer.requeue(second)
            raise ZeroDivisionError
        assert hold.quiet(0.1)
        hold.ack([first])
    with consuming(settings, queue) as hold:
        assert numbers(hold.receive(1)) == [1]
        assert hold.quiet(0.1)


def test_confirmed_messages_survive_the_kill_of_rabbitmq(rabbitmq: RabbitMQ, tmp_path: Any, queue: str) -> None:
    stages = [Stage(rabbitmq.url, f"{queue}.{kind}", tmp_path, {"queue_type": kind}) for kind in ("quorum", "classic")]
    consumers = []
    for stage in stages:
        stage.publish(*[message(number) for number in range(100)])
        stage.publish(message(100), delay=1.0)
        consumer = open_consumer(stage.effective(), [stage.queue])
        consumer.connect(5.0)
        consumer.set_window(30)
        Hold(consumer).receive(30)
        consumers.append(consumer)
    rabbitmq.restart()
    for consumer in consumers:
        with pytest.raises(ConnectionLost):
            Hold(consumer).receive(1000, 5.0)
        consumer.close()
    for stage in stages:
        with consuming(stage.effective(), stage.queue) as hold:
            assert sorted(numbers(hold.receive(101))) == list(range(101))
        delete(stage.effective(), stage.queue, dead_letter_queue(stage.queue))


@only("quorum", "classic")
def test_a_consumer_whose_queue_is_deleted_hears_of_it(settings: Settings, queue: str) -> None:
    with consuming(settings, queue) as hold:
        assert hold.quiet(0.05)
        delete(settings, queue)
        with pytest.raises(ConnectionLost):
            hold.receive(1, 5.0)


def delete(settings: Settings, *queues: str) -> None:
    """Delete queues as somebody else would."""
    with kombu.Connection(settings.broker) as connection, connection.channel() as channel:
        for queue in queues:
            channel.queue_delete(queue)


def test_the_descriptor_is_quiet_while_nothing_happens(settings: Settings, queue: str) -> None:
    with consuming(settings, queue) as hold:
        hold.quiet(0.2)
        for _ in range(3):
            hold.consumer.receive()
            hold.consumer.tick()
        busy = 0
        deadline = time.monotonic() + 0.5
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([hold.consumer.fileno()], [], [], min(left, hold.consumer.tick()))
            busy += bool(readable)
            hold.consumer.receive()
        assert busy <= 3
