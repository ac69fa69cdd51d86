"""Celery's own clients and workers beside ours, with RabbitMQ between them and Redis behind them."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery.canvas
import pytest
from celery import Celery
from celery.exceptions import ChordError

from tests.chaos.workflows import celerys, faults, ours, workflow
from tests.conftest import staged
from tests.redis_server import Redis, running_redis
from tests.servers import RabbitMQ
from tests.support import Stage, Worker, close_celery, eventually

#: Celery ships no types.
canvas: Any = celery.canvas
FLOWS = "tests.apps.flows:app"
#: Celery announces that its errbacks of chords will be called for each member one day.
pytestmark = pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with running_redis() as server:
        yield server
        # Celery's results unsubscribe when they are collected, and complain where there is no server any more.
        gc.collect()


@pytest.fixture
def stage(rabbitmq: RabbitMQ, redis: Redis, queue: str, tmp_path: Path) -> Iterator[Stage]:
    yield from staged(Stage(rabbitmq.url, queue, tmp_path, {"backend": redis.url, "queue_type": "classic"}))


@pytest.fixture
def client(stage: Stage) -> Iterator[Any]:
    client: Any = Celery("shop", broker=stage.broker, backend=stage.settings["backend"], set_as_current=False)
    client.conf.task_default_queue = stage.queue
    client.call = lambda task, *args, **kwargs: client.signature(task, args=args, kwargs=kwargs)
    yield client
    close_celery(client)


def test_a_celery_client_reads_what_becomes_of_its_workflows(stage: Stage, client: Any) -> None:
    call = client.call
    with stage.worker(FLOWS, TASKQ_UNKNOWN_TASK_TTL="0.5"):
        steps = canvas.chain(call("add", 1, 2), call("add", 3), call("add", 4), app=client).apply_async()
        assert steps.get(timeout=15) == 10
        assert steps.parent.get(timeout=1) == 6
        both = canvas.group([call("add", 1, 2), call("add", 3, 4)], app=client).apply_async()
        assert both.get(timeout=15) == [3, 7]
        total = canvas.chord([call("one", number) for number in range(10)], call("total"), app=client).apply_async()
        assert total.get(timeout=15) == 45
        mixed = canvas.chain(call("add", 1, 1), canvas.group([call("add", 1), call("add", 2)]), call("total"), call("add", 1))
        assert mixed.apply_async().get(timeout=15) == 8
        inner = canvas.chord([call("one", 1), call("one", 2)], call("total"), app=client)
        nested = canvas.chord([inner, canvas.chain(call("one", 3), call("add", 1))], call("total"), app=client).apply_async()
        assert nested.get(timeout=15) == 7
        with pytest.raises(ValueError, match="no"):
            canvas.chain(call("fail"), call("note"), app=client).apply_async().get(timeout=15)
        for bad in ("fail", "die", "unheard"):
            body = call("total")
            body.link_error(call("told", name=bad))
            broken = canvas.chord([call("one", 1), call(bad)], body, app=client).apply_async()
            # Its own handle looks at the members first.
            with pytest.raises(ChordError, match=r"Dependency .* raised"):
                client.AsyncResult(broken.id).get(timeout=30)
            assert [told["task_id"] for told in stage.traced("told", name=bad)] == [broken.id]
        linked = call("add", 1, 2)
        linked.link(call("note", name="linked"))
        assert linked.apply_async().get(timeout=15) == 3
        assert stage.traced("note", name="linked")[0]["values"] == [3]
    assert len(stage.traces("total")) == 4


def test_a_taskq_client_reads_what_celery_workers_make_of_its_workflows(stage: Stage) -> None:
    flows = ours(stage)
    with celery_worker(stage):
        assert flows.chain(flows.call("work", 1), flows.call("note"), flows.call("note")).delay().get(30) == [[1]]
        members = [flows.call("work", number) for number in range(3)]
        assert flows.chord(members, flows.call("note")).delay().get(15) == [[0, 1, 2]]
        with pytest.raises(ValueError, match="no"):
            flows.call("fail").delay().get(15)


@pytest.mark.parametrize("make", [ours, celerys])
def test_both_fleets_work_on_the_same_workflows(stage: Stage, make: Any) -> None:
    chance, flows, expected = random.Random(7), make(stage), {}
    with celery_worker(stage) as other, stage.worker(FLOWS, "-c", "1", TASKQ_PREFETCH="1") as worker:
        worker.started()
        eventually(lambda: "ready" in other.text, "the Celery worker is ready", 30)
        for number in range(30):
            flow, expected[str(number)] = workflow(flows, chance, str(number))
            flow.apply_async()
        stage.until(lambda: {t["key"] for t in stage.traces() if "key" in t} >= expected.keys(), "all end", 60)
        eventually(lambda: not stage.depth(), "nothing is left to do")
    flows.close()
    assert faults(stage, expected) == []
    by_celery = [trace for trace in stage.traces() if "celery" in (trace["event"], trace.get("by"))]
    by_taskq = worker.logged("task_succeeded")
    assert by_celery, "one fleet has worked"
    assert by_taskq, "and so has the other"


def celery_worker(stage: Stage) -> Worker:
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.celery_flows", "worker", "-P", "solo", "-l", "INFO"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Worker(command, stage.environment(C_FORCE_ROOT="1"), stage.folder / "celery.log")
