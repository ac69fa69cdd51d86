"""Queues: who is woken, who shares them, how deep they are, and what happens when they are emptied or deleted."""

from __future__ import annotations

import select
import statistics
import time
from collections import Counter

import pytest

from taskq.broker.interface import Delivery, Session
from taskq.config import Settings
from taskq.errors import ConnectionLost
from taskq.message import SENT, Publication, dead_letter_queue
from tests.conformance.support import delete, message, numbers, only, publish
from tests.support import consuming, eventually


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


def test_a_paused_queue_keeps_its_messages_while_others_flow(settings: Settings, session: Session, queue: str) -> None:
    names = [f"{queue}.{number}" for number in range(2)]
    try:
        with consuming(settings, *names) as hold:
            hold.consumer.set_paused(frozenset(names[:1]))
            assert hold.quiet(0.1)
            publish(session, names[0], message(0))
            publish(session, names[1], message(1))
            assert numbers(hold.receive(1)) == [1]
            assert hold.quiet()
            assert session.depth(names[0]) == 1
            # Nothing is published any more: the end of the pause alone must wake the consumer.
            hold.consumer.set_paused(frozenset(names[1:]))
            assert numbers(hold.receive(1)) == [0]
            publish(session, names[1], message(2))
            assert hold.quiet()
            hold.consumer.set_paused(frozenset())
            assert numbers(hold.receive(1)) == [2]
    finally:
        delete(settings, *names, *map(dead_letter_queue, names))


def test_what_was_fetched_before_the_pause_can_be_acked(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, *[message(number) for number in range(4)])
    with consuming(settings, queue, window=2) as hold:
        held = hold.receive(2)
        hold.consumer.set_paused(frozenset([queue]))
        hold.ack(held)
        assert hold.quiet()
        assert session.depth(queue) == 2
        hold.consumer.set_paused(frozenset())
        assert numbers(hold.receive(2)) == [2, 3]


def test_follow_ups_are_confirmed(settings: Settings, session: Session, queue: str) -> None:
    publish(session, queue, message(0))
    with consuming(settings, queue) as hold:
        (first,) = hold.receive(1)
        with hold.consumer.transaction():
            receipt = hold.consumer.publish([Publication(queue, message(1)), Publication(dead_letter_queue(queue), message(2))])
        arrived: list[Delivery] = []

        def confirmed() -> bool:
            arrived.extend(hold.turn(0.01))
            return receipt.confirmed

        eventually(confirmed, "the follow-ups are confirmed")
        hold.ack([first])
        assert numbers(arrived or hold.receive(1)) == [1]
        assert session.depth(dead_letter_queue(queue)) == 1


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


@only("quorum", "classic")
def test_a_consumer_whose_queue_is_deleted_hears_of_it(settings: Settings, queue: str) -> None:
    with consuming(settings, queue) as hold:
        assert hold.quiet(0.05)
        delete(settings, queue)
        with pytest.raises(ConnectionLost):
            hold.receive(1, 5.0)


def test_how_long_the_oldest_has_waited_is_known_or_said_to_be_unknown(
    kind: str, settings: Settings, session: Session, queue: str
) -> None:
    assert session.oldest(queue) is None
    old, young = (message(number).with_headers(**{SENT: time.time() - age}) for number, age in ((0, 60.0), (1, 1.0)))
    publish(session, queue, old, young)
    ages = []
    for _ in range(2):
        ages.append(session.oldest(queue))
        with consuming(settings, queue, window=1) as hold:
            hold.ack(hold.receive(1))
    if kind == "sqlite":
        assert ages == pytest.approx([60.0, 1.0], abs=5.0)
        publish(session, queue, message(2))
    else:
        assert ages == [None, None]
    assert session.oldest(queue) is None, "a message of Celery's does not say it"
