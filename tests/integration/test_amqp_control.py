"""Control entries on RabbitMQ: who is told what, on real nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from taskq.broker.amqp.consumer import AmqpConsumer
from taskq.broker.amqp.control import publication
from taskq.control import Control, Pause, Resume, Revoke
from taskq.errors import ConnectionLost, UnsupportedFeature
from tests.integration.amqp_support import consuming, publications, put, receive, run_until, session_of, settings_for
from tests.servers import RabbitMQ, running_node


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A node of our own: control entries are for everybody on a node."""
    with running_node() as node:
        yield node


def say(node: RabbitMQ, *controls: Control) -> None:
    with session_of(node) as session:
        for control in controls:
            session.control(control, time.monotonic() + 10)


def heard(consumer: AmqpConsumer, count: int) -> list[Control]:
    """The next ``count`` entries, which the consumer is woken for."""
    controls: list[Control] = []

    def enough() -> bool:
        consumer.receive()
        controls.extend(consumer.controls())
        return len(controls) >= count

    run_until(consumer, enough)
    return controls


def test_every_worker_hears_of_it_and_one_that_comes_later_hears_what_stands(node: RabbitMQ, queue: str) -> None:
    settings = settings_for(node.url)
    entries: list[Control] = [Revoke(queue), Pause(queue), Revoke(f"{queue}.2", terminate=True, at=3.5)]
    with consuming(settings, queue) as left, consuming(settings, queue) as right:
        for consumer in (left, right):
            assert queue not in str(consumer.controls())
        say(node, *entries)
        for consumer in (left, right):
            assert sorted(map(str, heard(consumer, 3))) == sorted(map(str, entries))
            assert consumer.controls() == []
        say(node, Resume(queue), Revoke(queue, terminate=True))
        for consumer in (left, right):
            assert len(heard(consumer, 2)) == 2
    latest: list[Control] = [Revoke(f"{queue}.2", terminate=True, at=3.5), Revoke(queue, terminate=True), Resume(queue)]
    with consuming(settings, queue) as late:
        standing = [entry for entry in late.controls() if queue in str(entry)]
        assert sorted(map(str, standing)) == sorted(map(str, latest))
        assert standing.index(latest[0]) < standing.index(latest[1])
    with session_of(node) as session:
        assert [entry for entry in session.controls() if queue in str(entry)] == standing
        # and the session is as usable as before
        session.publish(publications(queue, 1), time.monotonic() + 10)


def test_entries_survive_the_kill_of_the_broker(node: RabbitMQ, queue: str) -> None:
    settings = settings_for(node.url)
    with consuming(settings, queue) as consumer:
        consumer.controls()
        say(node, Pause(queue), Revoke(queue))
        node.sync()
        node.kill()
        with pytest.raises(ConnectionLost):
            run_until(consumer, lambda: bool(consumer.receive()))
    node.start()
    with consuming(settings, queue) as consumer:
        assert {Pause(queue), Revoke(queue)} <= set(consumer.controls())
        say(node, Resume(queue))
        assert heard(consumer, 1) == [Resume(queue)]


def test_thousands_of_entries_delay_a_connection_by_little_and_connecting_adds_none(node: RabbitMQ, queue: str) -> None:
    entries = [Revoke(f"{queue}.{number}", at=1e9) for number in range(5000)]
    with session_of(node) as session:
        session.publish([publication(entry) for entry in entries], time.monotonic() + 20)
    lengths, seconds = [], []
    for _ in range(3):
        consumer = AmqpConsumer(settings_for(node.url), [queue])
        started = time.monotonic()
        consumer.connect(10)
        seconds.append(time.monotonic() - started)
        assert consumer._controls is not None
        lengths.append(consumer._controls.seen)
        assert [entry for entry in consumer.controls() if queue in str(entry)] == entries
        consumer.close()
    assert min(seconds) < 1.0, seconds
    assert len(set(lengths)) == 1, lengths


def test_entries_do_not_disturb_the_deliveries(node: RabbitMQ, queue: str) -> None:
    put(node, queue, 500)
    with consuming(settings_for(node.url), queue, window=10) as consumer:
        consumer.controls()
        say(node, *[Revoke(f"{queue}.{number}") for number in range(50)])
        seen = 0
        while seen < 500:
            arrived = receive(consumer, 1)
            seen += len(arrived)
            for delivery in arrived:
                consumer.ack(delivery)
        assert len([entry for entry in consumer.controls() if queue in str(entry)]) == 50


def test_a_broker_without_streams_does_the_rest(queue: str, caplog: pytest.LogCaptureFixture) -> None:
    flags = "quorum_queue,implicit_default_bindings,virtual_host_metadata,maintenance_mode_status,user_limits"
    with running_node(RABBITMQ_FEATURE_FLAGS=flags) as node:
        with session_of(node) as session:
            with pytest.raises(UnsupportedFeature, match="stream_queue"):
                session.control(Pause(queue), time.monotonic() + 10)
            assert session.controls() == []
            session.publish(publications(queue, 1), time.monotonic() + 10)
        with caplog.at_level(logging.WARNING), consuming(settings_for(node.url), queue) as consumer:
            assert consumer.controls() == []
            assert len(receive(consumer, 1)) == 1
    assert [record.levelname for record in caplog.records if "control_unsupported" in record.getMessage()] == ["WARNING"]
