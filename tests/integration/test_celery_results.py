"""A Celery client reads in Redis what becomes of the tasks that it has sent to our workers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from taskq.errors import DeadLettered
from tests.conftest import staged
from tests.redis_server import Redis
from tests.servers import RabbitMQ
from tests.support import Stage, close_celery, eventually

# Celery calls it, and redis-py 8 says so.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def stage(rabbitmq: RabbitMQ, redis: Redis, queue: str, tmp_path: Path) -> Iterator[Stage]:
    yield from staged(Stage(rabbitmq.url, queue, tmp_path, {"queue_type": "classic", "backend": redis.url}))


@pytest.fixture
def celery(stage: Stage) -> Iterator[Celery]:
    app = Celery("shop", broker=stage.broker, backend=stage.settings["backend"], set_as_current=False)
    app.conf.task_default_queue = stage.queue
    yield app
    # Celery's results talk to the server when they are collected: while it still runs.
    gc.collect()
    close_celery(app)


def test_values_failures_and_whatever_else_becomes_of_a_task(stage: Stage, celery: Celery) -> None:
    def send(name: str, *args: Any, **options: Any) -> Any:
        return celery.send_task(name, args, **options)

    with stage.worker() as worker:
        sums = [send("add", number, 1) for number in range(50)]
        assert [one.get(timeout=15) for one in sums] == list(range(1, 51))
        assert sums[0].state == "SUCCESS"
        assert sums[0].date_done is not None

        failed = send("fail", "no")
        with pytest.raises(ValueError, match="no") as caught:
            failed.get(timeout=15)
        assert caught.value.args == ("no", 7)
        assert "raise ValueError(text, 7)" in failed.traceback

        expired = send("add", 1, 2, expires=datetime.now(UTC) - timedelta(seconds=5))
        with pytest.raises(TaskRevokedError, match="expired"):
            expired.get(timeout=15)

        # Our client reads the same.
        assert stage.client().result(sums[7].id).get(timeout=5) == 8
        assert worker.stop() == 0


def test_a_celery_client_sees_a_retry_and_a_dead_letter(stage: Stage, celery: Celery) -> None:
    with stage.worker("tests.apps.trouble:app", "--unknown-task-ttl", "0.2"):
        again = celery.send_task("again", (1, 3600.0))
        eventually(lambda: again.state == "RETRY", "it is to run again")
        assert repr(again.info) == "ValueError('attempt 1')"
        assert not again.ready()
        with pytest.raises(DeadLettered, match="unknown task: no worker of queue"):
            celery.send_task("no such task").get(timeout=15)
