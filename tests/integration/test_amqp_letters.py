"""Looking at dead letters on RabbitMQ, and taking some out, on a real node."""

from __future__ import annotations

import time

import pytest

from taskq.errors import ConnectionLost
from taskq.message import Publication
from tests.integration.amqp_support import BOTH_TYPES, consuming, message, publications, put, receive, session_of, settings_for
from tests.servers import RabbitMQ
from tests.support import eventually


@BOTH_TYPES
def test_look_move_remove_and_let_go(rabbitmq: RabbitMQ, queue: str, queue_type: str) -> None:
    dead = f"{queue}.dead"
    put(rabbitmq, dead, 10, queue_type)
    with session_of(rabbitmq, queue_type=queue_type) as session:
        letters = session.letters(dead)
        found = list(letters)
        assert [letter.body for _, letter in found] == [f"[[{n}], {{}}, {{}}]".encode() for n in range(10)]
        for handle, letter in found[:3]:
            letters.move(handle, Publication(queue, letter.with_headers(replayed=True)))
        letters.remove(found[5][0])
        letters.close()
        assert session.depth(queue) == 3
        again = session.letters(dead)
        assert [letter.body for _, letter in again] == [letter.body for _, letter in (found[3:5] + found[6:])]
        again.close()
        assert session.purge(dead) == 6
    with consuming(settings_for(rabbitmq.url, queue_type=queue_type), queue) as consumer:
        assert not any(delivery.redelivered for delivery in receive(consumer, 3))


def test_a_queue_that_is_empty_or_does_not_exist(rabbitmq: RabbitMQ, queue: str) -> None:
    put(rabbitmq, queue, 1)
    with session_of(rabbitmq) as session:
        for name in (f"{queue}.dead", f"{queue}.other.dead"):
            letters = session.letters(name)
            assert list(letters) == []
            letters.close()


def test_what_comes_meanwhile_is_not_looked_at(rabbitmq: RabbitMQ, queue: str) -> None:
    """Otherwise a letter that dies again as soon as it is replayed would be replayed for ever."""
    dead = f"{queue}.dead"
    put(rabbitmq, dead, 3)
    with session_of(rabbitmq) as session:
        letters = session.letters(dead)
        moved = 0
        for handle, letter in letters:
            letters.move(handle, Publication(dead, letter))
            moved += 1
        letters.close()
        assert moved == 3
        assert session.depth(dead) == 3


def test_more_letters_than_are_sent_ahead(rabbitmq: RabbitMQ, queue: str) -> None:
    dead = f"{queue}.dead"
    put(rabbitmq, dead, 3000)
    with session_of(rabbitmq) as session:
        letters = session.letters(dead)
        started = time.monotonic()
        bodies = [letter.body for _, letter in letters]
        assert time.monotonic() - started < 2
        letters.close()
        assert bodies == [one.message.body for one in publications(dead, 3000)]
        letters = session.letters(dead)
        for number, (handle, _) in enumerate(letters):
            if number % 3:
                letters.remove(handle)
        letters.close()
        assert session.purge(dead) == 1000


def test_two_who_look_at_once_share_the_letters(rabbitmq: RabbitMQ, queue: str) -> None:
    dead = f"{queue}.dead"
    put(rabbitmq, dead, 20)
    with session_of(rabbitmq) as left, session_of(rabbitmq) as right:
        first = left.letters(dead)
        seen = [next(iter(first))]
        second = right.letters(dead)
        other = list(second)
        for handle, _ in seen:
            first.remove(handle)
        for handle, _ in other:
            second.remove(handle)
        first.close()
        second.close()
        assert left.purge(dead) == 20 - 1 - len(other)


def test_what_rabbitmq_dead_lettered_says_so(rabbitmq: RabbitMQ, queue: str) -> None:
    settings = settings_for(rabbitmq.url, delivery_limit=1)
    sent = message()
    with session_of(rabbitmq, delivery_limit=1) as session:
        session.publish([Publication(queue, sent)], time.monotonic() + 10)
        for _ in range(2):
            with consuming(settings, queue) as consumer:
                receive(consumer, 1)
        eventually(lambda: session.depth(f"{queue}.dead"), "RabbitMQ has dead-lettered it")
        letters = session.letters(f"{queue}.dead")
        ((_, letter),) = list(letters)
        letters.close()
    assert letter.headers["x-death"][0]["reason"] == "delivery_limit"
    assert letter.headers["id"] == sent.headers["id"]


def test_a_broken_connection_says_so(rabbitmq: RabbitMQ, queue: str) -> None:
    dead = f"{queue}.dead"
    put(rabbitmq, dead, 3)
    with session_of(rabbitmq) as session:
        letters = session.letters(dead)
        handle, _ = next(iter(letters))
        session._connection._transport.sock.shutdown(2)
        with pytest.raises(ConnectionLost):
            letters.move(handle, Publication(queue, message()))
    with session_of(rabbitmq) as session:
        assert session.purge(dead) == 3
