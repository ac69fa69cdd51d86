"""What is refused at the call, and what a refusal of RabbitMQ says to people."""

from __future__ import annotations

from typing import Any

import pytest
from amqp import spec
from amqp.exceptions import AccessRefused, PreconditionFailed

from taskq.broker.amqp.checks import check_priority, check_route
from taskq.broker.amqp.topology import (
    held_queue,
    is_held_queue,
    lane,
    lines,
    queue_arguments,
    refusal,
)
from taskq.config import Settings, load
from taskq.errors import BrokerUnreachable, ConnectionLost, PublishRejected, QueueMismatch, UnsupportedFeature
from taskq.message import Message, Publication


def settings(**keywords: Any) -> Settings:
    return load({"broker": "amqp://user:secret@broker.example//", **keywords}, environment={})


def publication(queue: str = "mail", *, priority: int | None = None, delay: float = 0.0) -> Publication:
    return Publication(queue, Message(headers={}, body=b"", priority=priority), delay)


def test_a_quorum_queue_dead_letters_at_least_once() -> None:
    assert queue_arguments("mail", settings(delivery_limit=7)) == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "mail.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 7,
    }
    assert queue_arguments("mail.dead", settings()) == {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}
    assert queue_arguments(lane("mail"), settings()) == queue_arguments("mail", settings())


def test_a_queue_has_a_lane_unless_it_holds_dead_letters() -> None:
    assert lines("mail") == ("mail.returned", "mail")
    assert lines("mail.dead") == ("mail.dead",)


def test_what_comes_back_to_a_held_queue_moves_on_to_the_lane() -> None:
    name = held_queue("mail", "0" * 32)
    assert is_held_queue(name)
    assert not is_held_queue("mail.held")
    arguments = queue_arguments(name, settings(queue_type="classic"))
    assert arguments["x-dead-letter-routing-key"] == "mail.returned"
    assert arguments["x-dead-letter-strategy"] == "at-least-once"


def test_a_classic_queue_is_declared_as_celery_declares_it() -> None:
    assert queue_arguments("mail", settings(queue_type="classic")) == {}
    with_priorities = settings(queue_type="classic", queue_max_priority=9)
    assert queue_arguments("mail", with_priorities) == {"x-max-priority": 9}
    assert queue_arguments("mail.dead", with_priorities) == {}


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({}, "quorum queues have no priorities"),
        ({"queue_type": "classic", "queue_max_priority": 3}, "not within 0 and queue_max_priority=3"),
    ],
)
def test_a_priority_that_the_queue_does_not_have(keywords: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedFeature, match=text):
        check_priority(publication(priority=4), settings(**keywords))
    check_priority(publication(priority=0), settings(**keywords))


@pytest.mark.parametrize(
    "refused",
    [
        publication(""),
        publication("q" * 247),
        publication("mail.returned"),
        publication(delay=2**28),
        publication("q" * 200, delay=1),
        publication("mail.*", delay=1),
        publication("#", delay=1),
    ],
)
def test_a_route_that_rabbitmq_cannot_carry(refused: Publication) -> None:
    with pytest.raises(UnsupportedFeature, match=r"RabbitMQ|bytes|rename"):
        check_route(refused)


def test_the_longest_names_and_delays() -> None:
    check_route(publication("q" * 246))
    check_route(publication("q" * 199, delay=2**28 - 1))


def test_a_mismatch_says_queue_argument_and_way_out() -> None:
    text = (
        "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'mail' in vhost '/': "
        "received the value 'quorum' of type 'longstr' but current is none"
    )
    error = refusal(PreconditionFailed(text, spec.Queue.Declare), settings())
    assert isinstance(error, QueueMismatch)
    for part in (
        "'mail'",
        "x-queue-type",
        "but current is none",
        "delete queue",
        "queue_type='classic'",
        "user:***@broker.example",
    ):
        assert part in str(error)
    assert "secret" not in str(error)


def test_other_refusals() -> None:
    assert isinstance(refusal(PreconditionFailed("too large", spec.Basic.Publish), settings()), PublishRejected)
    assert isinstance(refusal(AccessRefused("no", spec.Queue.Declare), settings()), BrokerUnreachable)
    assert isinstance(refusal(PreconditionFailed("unknown delivery tag 9", spec.Basic.Ack), settings()), ConnectionLost)
    assert str(refusal(ConnectionResetError(), settings())).endswith("broke: ConnectionResetError")
