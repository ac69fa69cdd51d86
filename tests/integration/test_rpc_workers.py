"""``rpc://``: results that go back to their callers as messages, with our own clients and with Celery's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from taskq import chord
from taskq.errors import DeadLettered, TaskRevoked, UnsupportedFeature
from taskq.signature import Signature
from tests.conftest import staged
from tests.servers import RabbitMQ
from tests.support import Stage, Worker, close_celery, eventually


@pytest.fixture
def stage(rabbitmq: RabbitMQ, queue: str, tmp_path: Path) -> Iterator[Stage]:
    yield from staged(Stage(rabbitmq.url, queue, tmp_path, {"backend": "rpc://", "queue_type": "classic"}))


@pytest.fixture
def worker(stage: Stage) -> Iterator[Worker]:
    with stage.worker("tests.apps.flows:app") as worker:
        yield worker


def test_a_caller_gets_what_its_calls_come_to(stage: Stage, worker: Worker) -> None:
    client = stage.client()
    results = client.send_many(Signature[int]("add", (n, n)) for n in range(50))
    assert [result.get(15) for result in results] == [2 * n for n in range(50)]
    failed = client.send_task("fail")
    with pytest.raises(ValueError, match="no"):
        failed.get(15)
    with pytest.raises(DeadLettered, match="crashed"):
        client.send_task("die").get(15)
    later = client.send_task("one", [1], countdown=1)
    later.revoke()
    with pytest.raises(TaskRevoked):
        later.get(15)


def test_the_steps_of_a_chain_reply_to_whoever_sent_the_chain(stage: Stage, worker: Worker) -> None:
    client = stage.client()
    add = Signature[int]("add", (1, 2), send=client._send)
    chain = add | Signature[int]("add", (3,)) | Signature[int]("add", (4,))
    result = chain.delay()
    assert result.get(15) == 10
    assert result.parent.get(15) == 6
    with pytest.raises(UnsupportedFeature, match="a chord needs a backend that counts"):
        chord([add], Signature[int]("total")).delay()


def test_a_caller_that_is_gone_holds_nobody_up(stage: Stage, worker: Worker) -> None:
    client = stage.client()
    client.send_task("after_gate", [1, "open"])
    eventually(lambda: stage.depth() == 0, "the task runs")
    client.close()
    stage.open_gate("open")
    other = stage.client()
    assert other.send_task("add", [1, 2]).get(15) == 3
    assert not worker.logged("broker_failed")


def test_a_celery_client_gets_what_its_calls_come_to(stage: Stage, worker: Worker) -> None:
    client: Any = Celery("shop", broker=stage.broker, backend="rpc://", set_as_current=False)
    client.conf.task_default_queue = stage.queue
    try:
        assert client.send_task("add", [1, 2]).get(timeout=15) == 3
        with pytest.raises(ValueError, match="no"):
            client.send_task("fail").get(timeout=15)
        assert client.send_task("add", [1, 2], chain=[client.signature("add", args=[3])]).get(timeout=15) == 3
    finally:
        close_celery(client)
