"""What a consumer holds: the window, acks, what is given back, and what comes again after a death."""

from __future__ import annotations

import time
from typing import Any

import pytest

from taskq.broker import decoder, open_consumer
from taskq.broker.interface import Session
from taskq.config import Settings
from taskq.errors import ConnectionLost
from taskq.message import Message, Publication, dead_letter_queue
from tests.conformance.support import delete, give_back, message, numbers, only, process, publish, read_line
from tests.servers import RabbitMQ
from tests.support import Hold, Stage, consuming, eventually


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


def test_what_is_given_back_keeps_its_place_and_is_not_redelivered(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number, correlation_id=f"id-{number}") for number in range(50)])
    read = decoder(settings)
    with consuming(settings, queue, window=5) as hold:
        held = hold.receive(5)
        before = [read(delivery.properties, delivery.body) for delivery in held]
        hold.consumer.set_window(0)
        assert give_back(settings, hold, held) == []
    eventually(lambda: session.depth(queue) == 50, "all are ready again")
    order: list[int] = []
    copies: list[Message] = []
    with consuming(settings, queue, window=5) as hold:
        while len(copies) < 5:
            again = hold.receive(1)
            assert not any(delivery.redelivered for delivery in again)
            order += numbers(again)
            copies += [read(delivery.properties, delivery.body) for delivery in again if int(delivery.body) < 5]
            hold.ack(again)
    assert copies == before
    # What waited behind them may have overtaken them by a window or two, where the broker has a queue of its own for these.
    assert len(order) <= 20


def test_what_is_given_back_is_there_for_others(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0))
    with consuming(settings, queue) as mine:
        held = mine.receive(1)
        with consuming(settings, queue) as other:
            assert other.quiet(0.1)
            mine.consumer.set_window(0)
            give_back(settings, mine, held)
            assert numbers(other.receive(1)) == [0]
        eventually(lambda: session.depth(queue) == 1, "what the other consumer did not ack is ready again")


@only("sqlite")
def test_nothing_takes_effect_where_a_transaction_fails(settings: Settings, session: Session, queue: str) -> None:
    """RabbitMQ has no transactions worth the name: the order of ``settle`` has to do there."""
    publish(session, queue, message(0), message(1))
    with consuming(settings, queue) as hold:
        first, _ = hold.receive(2)
        with pytest.raises(ZeroDivisionError), hold.consumer.transaction():
            hold.consumer.publish([Publication(queue, message(2))])
            hold.consumer.ack(first)
            raise ZeroDivisionError
        assert hold.quiet(0.1)
        hold.ack([first])
    with consuming(settings, queue) as hold:
        assert numbers(hold.receive(1)) == [1]
        assert hold.quiet(0.1)


def test_messages_of_a_killed_consumer_come_again_at_once(
    kind: str, stage: Stage, settings: Settings, session: Session
) -> None:
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


def test_messages_of_a_consumer_killed_while_nobody_watched_come_again(
    stage: Stage, settings: Settings, session: Session
) -> None:
    publish(session, stage.queue, *[message(number) for number in range(10)])
    with process(stage, "hold", "10") as holder:
        assert read_line(holder) == b"held\n"
    eventually(lambda: session.depth(stage.queue) == 10, "the messages are ready again")
    with consuming(settings, stage.queue) as hold:
        assert numbers(hold.receive(10)) == list(range(10))


def test_what_a_killed_publisher_was_confirmed_is_there(stage: Stage, settings: Settings) -> None:
    confirmed: list[int] = []
    with process(stage, "publish") as publisher:
        while len(confirmed) < 50:
            confirmed.append(int(read_line(publisher)))
        publisher.kill()
        assert publisher.stdout is not None
        confirmed += [int(line) for line in publisher.stdout]
    with consuming(settings, stage.queue) as hold:
        assert set(numbers(hold.receive(len(confirmed)))) >= set(confirmed)


def test_confirmed_messages_survive_the_kill_of_rabbitmq(killable_rabbitmq: RabbitMQ, tmp_path: Any, queue: str) -> None:
    stages = [Stage(killable_rabbitmq.url, f"{queue}.{kind}", tmp_path, {"queue_type": kind}) for kind in ("quorum", "classic")]
    consumers = []
    for stage in stages:
        stage.publish(*[message(number) for number in range(100)])
        stage.publish(message(100), delay=1.0)
        consumer = open_consumer(stage.effective(), [stage.queue])
        consumer.connect(5.0)
        consumer.set_window(30)
        Hold(consumer).receive(30)
        consumers.append(consumer)
    killable_rabbitmq.sync()
    killable_rabbitmq.restart()
    for consumer in consumers:
        with pytest.raises(ConnectionLost):
            Hold(consumer).receive(1000, 5.0)
        consumer.close()
    for stage in stages:
        with consuming(stage.effective(), stage.queue) as hold:
            assert sorted(numbers(hold.receive(101))) == list(range(101))
        delete(stage.effective(), stage.queue, dead_letter_queue(stage.queue))
