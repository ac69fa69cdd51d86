"""The application's side of RabbitMQ, on a real node."""

from __future__ import annotations

import time
from collections.abc import Iterator

import kombu
import pytest

from taskq.broker.amqp.session import AmqpSession
from taskq.errors import BrokerUnreachable, PublishRejected, PublishTimeout, QueueMismatch, UnsupportedFeature
from taskq.message import Publication
from tests.integration.amqp_support import consuming, message, publications, receive, settings_for
from tests.servers import RabbitMQ


@pytest.fixture
def session(rabbitmq: RabbitMQ) -> Iterator[AmqpSession]:
    opened = AmqpSession(settings_for(rabbitmq.url), 10)
    yield opened
    opened.close()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def test_published_messages_are_there_in_order(rabbitmq: RabbitMQ, session: AmqpSession, queue: str) -> None:
    sent = publications(queue, 2500)
    session.publish(sent, soon())
    session.publish([Publication(queue, message(b""))], soon())
    with consuming(settings_for(rabbitmq.url), queue, window=5000) as consumer:
        bodies = [delivery.body for delivery in receive(consumer, 2501)]
    assert bodies == [publication.message.body for publication in sent] + [b""]


def test_bodies_around_the_size_of_a_frame(rabbitmq: RabbitMQ, session: AmqpSession, queue: str) -> None:
    frame = 131_072 - 8
    bodies = [bytes([size % 251]) * size for size in (frame - 1, frame, frame + 1, 2 * frame, 5_000_000)]
    session.publish([Publication(queue, message(body)) for body in bodies], soon(20))
    with consuming(settings_for(rabbitmq.url), queue) as consumer:
        assert [delivery.body for delivery in receive(consumer, len(bodies))] == bodies


def test_a_dead_letter_queue_has_none_of_its_own(rabbitmq: RabbitMQ, session: AmqpSession, queue: str) -> None:
    session.publish(publications(f"{queue}.dead", 1), soon())
    assert session.depth(f"{queue}.dead.dead") is None
    session.publish(publications(queue, 1), soon())
    assert session.depth(queue) is not None


def test_one_publication_twice_is_two_messages(session: AmqpSession, queue: str) -> None:
    session.publish(publications(queue, 1) * 300, soon())
    assert session.purge(queue) == 300


def test_depth_and_purge(session: AmqpSession, queue: str) -> None:
    assert session.depth(queue) is None
    assert session.purge(queue) == 0
    session.publish(publications(queue, 3), soon())
    assert session.purge(queue) == 3
    assert session.purge(queue) == 0


def test_a_queue_that_was_deleted_is_declared_again(rabbitmq: RabbitMQ, session: AmqpSession, queue: str) -> None:
    session.publish(publications(queue, 1), soon())
    with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
        channel.queue_delete(queue)
    session.publish(publications(queue, 500), soon())
    assert session.purge(queue) == 500


def test_a_queue_that_refuses(rabbitmq: RabbitMQ, queue: str) -> None:
    with kombu.Connection(rabbitmq.url) as connection, connection.channel() as channel:
        channel.queue_declare(queue, durable=True, auto_delete=False)
    rabbitmq.control("set_policy", "full", f"^{queue}$", '{"max-length": 2, "overflow": "reject-publish"}')
    session = AmqpSession(settings_for(rabbitmq.url, queue_type="classic"), 10)
    with pytest.raises((PublishRejected, PublishTimeout)) as refused:
        session.publish(publications(queue, 10), time.monotonic() + 3.0)
    # What was rejected is tried again while there is time; a slow broker may leave the last try unanswered.
    assert isinstance(refused.value, PublishTimeout) or queue in str(refused.value)
    session.close()
    rabbitmq.control("clear_policy", "full")


def test_a_queue_with_other_arguments(rabbitmq: RabbitMQ, session: AmqpSession, queue: str) -> None:
    session.publish(publications(queue, 1), soon())
    other = AmqpSession(settings_for(rabbitmq.url, queue_type="classic"), 10)
    with pytest.raises(QueueMismatch, match=rf"queue '{queue}' .* exists with another"):
        other.publish(publications(queue, 1), soon())
    other.close()


def test_what_is_refused_at_the_call_leaves_the_session_usable(session: AmqpSession, queue: str) -> None:
    bad = Publication(queue, message(header=object()))
    for refused in (bad, Publication(queue, message(), delay=2**28), Publication("", message())):
        with pytest.raises(UnsupportedFeature):
            session.publish([*publications(queue, 1), refused], soon())
    session.publish(publications(queue, 1), soon())
    assert session.purge(queue) == 1


def test_what_has_too_long_a_name_can_be_no_queue(session: AmqpSession, queue: str) -> None:
    for ask in (session.depth, session.purge, session.stats, session.verify, session.letters):
        with pytest.raises(UnsupportedFeature, match="takes names of 1 to"):
            ask("q" * 300)
    session.publish(publications(queue, 1), soon())
    assert session.depth(queue) == 1


def test_priorities_of_a_classic_queue(rabbitmq: RabbitMQ, queue: str) -> None:
    settings = settings_for(rabbitmq.url, queue_type="classic", queue_max_priority=9)
    session = AmqpSession(settings, 10)
    for priority in (1, 9, 5):
        sent = message(str(priority).encode())
        session.publish([Publication(queue, type(sent)(headers={}, body=sent.body, priority=priority))], soon())
    with consuming(settings, queue) as consumer:
        assert [delivery.body for delivery in receive(consumer, 3)] == [b"9", b"5", b"1"]
    session.close()


def test_delays_do_not_leak_into_queues_of_similar_names(rabbitmq: RabbitMQ, session: AmqpSession, queue: str) -> None:
    session.publish(publications(queue, 1, delay=0.2) + publications(f"old.{queue}", 1, delay=0.2), soon())
    with consuming(settings_for(rabbitmq.url), queue, f"old.{queue}") as consumer:
        assert sorted(delivery.queue for delivery in receive(consumer, 2)) == sorted([queue, f"old.{queue}"])


def test_a_broker_that_blocks_publishers_says_why(rabbitmq: RabbitMQ, queue: str) -> None:
    rabbitmq.control("set_disk_free_limit", str(10**15))
    try:
        session = AmqpSession(settings_for(rabbitmq.url, publish_timeout=1), 10)
        started = time.monotonic()
        with pytest.raises(PublishTimeout, match=r"blocks publishers .*disk"):
            session.publish(publications(queue, 1), soon(1))
        session.close()
        assert time.monotonic() - started < 3.0
    finally:
        rabbitmq.control("set_disk_free_limit", "1000000")


def test_a_frozen_broker_is_a_timeout(rabbitmq: RabbitMQ, session: AmqpSession, queue: str) -> None:
    session.publish(publications(queue, 1), soon())
    rabbitmq.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(PublishTimeout, match="did not confirm 200 message"):
            session.publish([Publication(queue, message(b"x" * 100_000)) for _ in range(200)], soon(1))
        session.close()
        assert time.monotonic() - started < 3.0
    finally:
        rabbitmq.thaw()


@pytest.mark.parametrize(
    ("credentials", "text"),
    [("guest:wrong@", "refused access"), ("nobody:wrong@", "refused access"), ("", "no answer|refused|vhost")],
)
def test_no_access(rabbitmq: RabbitMQ, credentials: str, text: str) -> None:
    url = f"amqp://{credentials or 'guest:guest@'}127.0.0.1:{rabbitmq.port}/{'' if credentials else 'no-such-host'}"
    with pytest.raises(BrokerUnreachable, match=text) as raised:
        AmqpSession(settings_for(url), 5)
    assert "wrong" not in str(raised.value)


def test_no_permission_to_declare(rabbitmq: RabbitMQ, queue: str) -> None:
    rabbitmq.control("add_user", "reader", "secret")
    rabbitmq.control("set_permissions", "reader", "^$", "^$", ".*")
    session = AmqpSession(settings_for(f"amqp://reader:secret@127.0.0.1:{rabbitmq.port}//"), 5)
    with pytest.raises(PublishRejected, match="refused access"):
        session.publish(publications(queue, 1), soon())
    session.close()
