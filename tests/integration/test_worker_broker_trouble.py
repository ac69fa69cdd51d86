"""RabbitMQ misbehaves: connections are reset, stall, and lose their queues. A worker never goes deaf."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import kombu
import pytest

from tests.proxy import Proxy
from tests.servers import RabbitMQ
from tests.support import Stage, eventually

TROUBLE = "tests.apps.trouble:app"


@pytest.fixture
def proxy(rabbitmq: RabbitMQ) -> Iterator[Proxy]:
    with Proxy(rabbitmq.port) as proxy:
        yield proxy


def through(proxy: Proxy) -> dict[str, str]:
    """The environment of a worker that reaches the broker through this proxy."""
    return {"TASKQ_BROKER": f"amqp://guest:guest@127.0.0.1:{proxy.port}//"}


def test_fifty_resets_in_a_row(amqp_stage: Stage, proxy: Proxy) -> None:
    client = amqp_stage.client()
    with amqp_stage.worker(TROUBLE, **through(proxy)) as worker:
        worker.started()
        holding = client.send_task("wait", ["gate"])
        amqp_stage.traced("wait")
        for number in range(50):
            proxy.cut()
            sent = time.monotonic()
            assert client.send_task("good", [str(number)]).get(timeout=15) == str(number)
            assert time.monotonic() - sent < 10.0
        amqp_stage.open_gate("gate")
        assert holding.get(timeout=15) == "gate"
        assert len(amqp_stage.traces("wait")) == 1
        assert worker.stop() == 0
    runs = Counter(trace["key"] for trace in amqp_stage.traces("good"))
    assert set(runs) == {str(number) for number in range(50)}
    assert {trace["crashes"] for trace in amqp_stage.traces("good")} == {0}


def test_a_connection_that_stalls(amqp_stage: Stage, proxy: Proxy) -> None:
    client = amqp_stage.client()
    with amqp_stage.worker(TROUBLE, "--heartbeat", "1", **through(proxy)) as worker:
        assert client.send_task("good", ["before"]).get(timeout=15) == "before"
        proxy.stall()
        stalled = time.monotonic()
        sent = client.send_task("good", ["meanwhile"])
        eventually(lambda: worker.logged("broker_lost"), "the worker notices")
        assert time.monotonic() - stalled < 4.0
        proxy.flow()
        assert sent.get(timeout=15) == "meanwhile"
        assert worker.stop() == 0


def test_a_queue_that_is_deleted_under_the_worker(amqp_stage: Stage) -> None:
    client = amqp_stage.client()
    with amqp_stage.worker(TROUBLE) as worker:
        assert client.send_task("good", ["before"]).get(timeout=15) == "before"
        with kombu.Connection(amqp_stage.broker) as connection, connection.channel() as channel:
            channel.queue_delete(amqp_stage.queue)
        # What is published meanwhile may go down with the queue: that is what whoever deletes it asks for.
        eventually(lambda: worker.logged("broker_connected"), "the worker has connected anew")
        assert client.send_task("good", ["after"]).get(timeout=15) == "after"
        assert worker.stop() == 0
