"""What RabbitMQ refuses of what follows a task: the task keeps its own end, its chord is counted, its siblings go out once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import kombu
import pytest

from taskq import chord
from taskq.errors import ChordError, DeadLettered
from taskq.signature import Signature
from tests.support import Stage, eventually

TROUBLE = "tests.apps.basic:app"


@pytest.fixture
def foreign(amqp_stage: Stage) -> Iterator[str]:
    """A queue of somebody else's: a classic one, as Celery declares it."""
    name = f"foreign-{amqp_stage.queue}"
    with kombu.Connection(amqp_stage.broker) as connection, connection.channel() as channel:
        channel.queue_declare(name, durable=True, auto_delete=False)
        yield name
        channel.queue_delete(name)


def test_a_refused_errback_leaves_the_failure_its_chord_and_its_siblings(amqp_stage: Stage, foreign: str) -> None:
    client = amqp_stage.client()

    def call(name: str, *args: object) -> Signature[object]:
        return Signature(name, args, send=client._send)

    failing = call("fail", "its own")
    failing.link_error(call("mark", "good before").set())
    failing.link_error(call("mark", "bad").set(queue=foreign))
    failing.link_error(call("mark", "good after").set())
    with amqp_stage.worker(TROUBLE) as worker:
        result = chord([failing, call("add", 1, 1)], call("echo")).delay()
        neighbour = client.send_task("add", [2, 2])
        assert neighbour.get(timeout=15) == 4
        with pytest.raises(ChordError, match="its own"):
            result.get(timeout=15)
        eventually(lambda: worker.logged("errback_not_sent"), "the refused one is told of")
        began = time.monotonic()
        assert client.send_task("add", [3, 3]).get(timeout=15) == 6
        assert time.monotonic() - began < 10.0
        assert not worker.logged("broker_lost")
        assert worker.stop() == 0
    assert not amqp_stage.depth(f"{amqp_stage.queue}.dead")


def test_a_refused_link_is_one_dead_letter(amqp_stage: Stage, foreign: str) -> None:
    client = amqp_stage.client()
    first = Signature[int]("add", (1, 1), send=client._send)
    first.link(Signature("echo", (), {"queue": foreign}, send=client._send))
    first.link(Signature("echo", (), {}, {"queue": foreign}, send=client._send))
    with amqp_stage.worker(TROUBLE) as worker:
        with pytest.raises(DeadLettered, match="cannot be settled"):
            first.delay().get(timeout=15)
        assert client.send_task("add", [3, 3]).get(timeout=15) == 6
        eventually(lambda: amqp_stage.depth(f"{amqp_stage.queue}.dead") == 1, "one dead letter")
        assert not worker.logged("broker_lost")
        assert worker.stop() == 0
