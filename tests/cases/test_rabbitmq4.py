"""RabbitMQ 4 deletes what has come back 20 times to a queue without a delivery limit of its own, and a look is a return."""

from __future__ import annotations

import contextlib
import time

import kombu
import pytest

from taskq.broker.amqp.session import AmqpSession
from taskq.broker.amqp.topology import company, queue_arguments
from taskq.errors import QueueMismatch
from taskq.message import DEAD_AT, DEAD_REASON, Message, Publication
from tests.integration.amqp_support import BOTH_TYPES, consuming, message, publications, receive, run_until, settings_for
from tests.servers import RabbitMQ
from tests.support import eventually

LOOKS = 50


def of_an_earlier_taskq(node: RabbitMQ, dead: str, **arguments: object) -> None:
    with kombu.Connection(node.url) as connection, connection.channel() as channel:
        channel.queue_declare(dead, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum", **arguments})


def looked_at(session: AmqpSession, queue: str) -> list[Message]:
    letters = session.letters(queue)
    found = [letter for _, letter in letters]
    letters.close()
    return found


@BOTH_TYPES
@pytest.mark.parametrize("earlier", [False, True])
def test_dead_letters_can_be_looked_at_as_often_as_one_likes(
    rabbitmq: RabbitMQ, queue: str, queue_type: str, earlier: bool
) -> None:
    dead = f"{queue}.dead"
    settings = settings_for(rabbitmq.url, queue_type=queue_type)
    if earlier and queue_type == "quorum":
        of_an_earlier_taskq(rabbitmq, dead)
    with contextlib.closing(AmqpSession(settings, 5)) as session:
        session.publish(publications(dead, 3), time.monotonic() + 5)
        first = looked_at(session, dead)
        assert len(first) == 3
        for _ in range(LOOKS):
            assert looked_at(session, dead) == first


def test_what_rabbitmq_dead_lettered_keeps_its_reason(rabbitmq: RabbitMQ, queue: str) -> None:
    dead, settings = f"{queue}.dead", settings_for(rabbitmq.url, delivery_limit=1)
    of_an_earlier_taskq(rabbitmq, dead)
    with contextlib.closing(AmqpSession(settings, 5)) as session:
        session.publish([Publication(queue, message())], time.monotonic() + 5)
        for _ in range(2):
            with consuming(settings, queue) as consumer:
                receive(consumer, 1)
        (letter,) = eventually(lambda: looked_at(session, dead), "RabbitMQ has dead-lettered it")
        death = letter.headers["x-death"][0]
        for _ in range(LOOKS):
            (again,) = looked_at(session, dead)
    assert again.headers[DEAD_REASON] == death["reason"].replace("_", " ") == "delivery limit"
    assert again.headers[DEAD_AT] == death["time"]


def test_every_quorum_queue_that_is_declared_has_a_limit() -> None:
    settings = settings_for("amqp://broker.example//")
    held, trial = "mail.0123456789abcdef0123456789abcdef.held", "taskq.trial.1"
    for name in (*company("mail"), held, trial):
        arguments = queue_arguments(name, settings)
        assert arguments["x-queue-type"] == "quorum"
        assert arguments["x-delivery-limit"] > 0


def test_dead_letter_queues_of_an_earlier_taskq_are_used_as_they_are(rabbitmq: RabbitMQ, queue: str) -> None:
    settings, other = settings_for(rabbitmq.url), f"{queue}.other"
    for name in (queue, other):
        of_an_earlier_taskq(rabbitmq, f"{name}.dead")
    with contextlib.closing(AmqpSession(settings, 5)) as session:
        session.publish(publications(queue, 2), time.monotonic() + 5)
        with consuming(settings, queue) as consumer:
            held = receive(consumer, 2)
            with consumer.transaction():
                receipts = [consumer.publish(publications(name, 1)) for name in (other, f"{other}.dead", f"{queue}.dead") * 2]
            run_until(consumer, lambda: bool(consumer.receive() or all(receipt.confirmed for receipt in receipts)))
            for delivery in held:
                consumer.ack(delivery)
        assert [session.depth(name) for name in (queue, other, f"{queue}.dead", f"{other}.dead")] == [0, 2, 2, 2]
        assert session.verify(queue) == (f"{queue}.dead",)
        session.publish(publications(f"{queue}.new", 1), time.monotonic() + 5)
        assert session.verify(f"{queue}.new") == ()


def test_a_dead_letter_queue_that_differs_otherwise_is_refused(rabbitmq: RabbitMQ, queue: str) -> None:
    of_an_earlier_taskq(rabbitmq, f"{queue}.dead", **{"x-max-length": 5})
    session = AmqpSession(settings_for(rabbitmq.url), 5)
    with contextlib.closing(session), pytest.raises(QueueMismatch, match="x-max-length"):
        session.verify(queue)
