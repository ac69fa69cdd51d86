"""The real Celery on the other side of the wire, sharing a classic queue with taskq."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from tests.conftest import staged
from tests.servers import RabbitMQ
from tests.support import Stage, Worker, eventually

VALUES = [
    datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC),
    datetime(2024, 2, 29, 1, 2, 3),
    date(2024, 1, 1),
    time_of_day(1, 2, 3, 4),
    Decimal("1.10"),
    UUID("12345678-1234-5678-1234-567812345678"),
    b"plain",
    b"\x00\xff",
    ["Grüße", 1.5, None, True, {"nested": [date(2024, 1, 2)]}],
]


@pytest.fixture
def stage(rabbitmq: RabbitMQ, queue: str, tmp_path: Path) -> Iterator[Stage]:
    yield from staged(Stage(rabbitmq.url, queue, tmp_path, {"queue_type": "classic"}))


@pytest.fixture
def celery(stage: Stage) -> Iterator[Celery]:
    """A Celery client; it knows the tasks of ``tests.apps.basic`` by name."""
    app = Celery("shop", broker=stage.broker, set_as_current=False)
    app.conf.task_default_queue = stage.queue
    yield app
    app.close()


def celery_task(app: Celery, name: str) -> Any:
    """What the code of a Celery fleet would import to send this task."""

    def stub(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    return app.task(stub, name=name, typing=False)


def celery_worker(stage: Stage) -> Worker:
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.celery_side", "worker", "-P", "solo", "-l", "INFO"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Worker(command, stage.environment(C_FORCE_ROOT="1"), stage.folder / "celery.log")


def test_a_celery_client_sends_to_a_taskq_worker(stage: Stage, celery: Celery) -> None:
    client = stage.client()
    with stage.worker() as worker:
        add = celery_task(celery, "add")
        sums = [add.delay(number, b=1) for number in range(10)]
        echo = celery_task(celery, "echo").delay(*VALUES, key=VALUES[0])
        assert [client.result(one.id).get(timeout=15) for one in sums] == list(range(1, 11))
        values = [*VALUES, VALUES[0]]
        assert client.result(echo.id).get(timeout=15) == [*values, *[type(value).__name__ for value in values]]
        assert worker.stop() == 0
    assert stage.depth() == 0


def test_a_taskq_client_sends_to_a_celery_worker(stage: Stage) -> None:
    client = stage.client()
    sent = client.send_task("tests.celery.echo", VALUES, {"key": VALUES[0]})
    # A Celery worker takes ten seconds to end, so it is killed.
    with celery_worker(stage):
        (trace,) = stage.traced("celery")
        assert trace["id"] == sent.id
        assert trace["args"] == repr(VALUES)
        assert trace["kwargs"] == repr({"key": VALUES[0]})
        assert trace["retries"] == 0
        later = client.send_task("tests.celery.echo", ["later"], countdown=1)
        stage.traced("celery", id=later.id)


def test_the_eta_of_a_celery_client_is_honoured(stage: Stage, celery: Celery) -> None:
    with stage.worker() as worker:
        worker.started()
        sent = time.monotonic()
        mark = celery_task(celery, "mark")
        mark.apply_async(["later"], countdown=1)
        mark.apply_async(["past"], eta=datetime.now(UTC) - timedelta(seconds=5))
        marks = {trace["key"]: trace["at"] - sent for trace in stage.traced("mark", 2)}
        assert list(marks) == ["past", "later"]
        # taskq takes a tenth of a second for equal clocks; RabbitMQ delays by whole seconds
        assert 0.85 <= marks["later"] < 6.0
        eventually(lambda: stage.depth() == 0, "the message is acked")
