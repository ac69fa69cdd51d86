"""A worker whose result backend goes away and comes back: nothing is lost meanwhile, and nothing else is held up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import chord
from taskq.signature import Signature
from tests.conftest import staged
from tests.postgres_server import running_postgres
from tests.redis_server import running_redis
from tests.support import Stage, eventually


@pytest.fixture(params=[running_redis, running_postgres], ids=["redis", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    with request.param() as server:
        yield server


@pytest.fixture
def stage(server: Any, queue: str, tmp_path: Path) -> Iterator[Stage]:
    yield from staged(Stage(f"sqlite:///{tmp_path}/taskq.db", queue, tmp_path, {"backend": server.url}))


def test_what_ends_while_the_backend_is_away_is_stored_when_it_is_back(stage: Stage, server: Any) -> None:
    client = stage.client()
    with stage.worker() as worker:
        assert client.send_task("add", [1, 2]).get(15) == 3
        server.kill()
        results = [client.send_task("mark", [str(number)]) for number in range(20)]
        stage.traced("mark", 20)
        eventually(lambda: worker.logged("broker_failed"), "it says so")
        assert len(worker.logged("broker_failed")) == 1, "once"
        server.restart()
        assert [result.get(15) for result in results] == [str(number) for number in range(20)]
        eventually(lambda: stage.depth() == 0, "and only now the messages are acked")
        assert len(stage.traces("mark")) == 20, "none ran twice"
        assert worker.stop() == 0


def test_limits_hold_while_the_backend_is_away(stage: Stage, server: Any) -> None:
    client = stage.client()
    with stage.worker("tests.apps.trouble:app") as worker:
        worker.started()
        server.kill()
        sent = time.monotonic()
        client.send_task("hang", ["spin"], time_limit=1.0)
        [died] = eventually(lambda: worker.logged("child_died"), "the task is ended")
        assert 1.0 <= time.monotonic() - sent < 4.0, died
        server.restart()


def test_a_chord_goes_on_when_the_backend_is_back(stage: Stage, server: Any) -> None:
    client = stage.client()

    def call(name: str, *args: Any) -> Signature[Any]:
        return Signature(name, args, send=client._send)

    with stage.worker("tests.apps.flows:app") as worker:
        result = chord([call("after_gate", number, "open") for number in range(2)], call("total")).delay()
        eventually(lambda: stage.depth() == 0, "the members run")
        server.kill()
        stage.open_gate("open")
        eventually(lambda: worker.logged("broker_failed"), "it says so")
        server.restart()
        assert result.get(20) == 1
    assert len(stage.traces("total")) == 1


def test_a_worker_waits_for_its_backend(stage: Stage, server: Any) -> None:
    server.kill()
    with stage.worker() as worker:
        worker.started()
        result = stage.client().send_task("add", [1, 2])
        eventually(lambda: worker.logged("broker_failed"), "it says so")
        server.restart()
        assert result.get(15) == 3
