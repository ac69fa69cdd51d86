"""The end of a worker: what runs may finish, the rest goes back at no cost, nothing is left behind."""

from __future__ import annotations

import signal
import time
from datetime import datetime

import pytest

from taskq.signature import Signature
from taskq.workers.zygote import END_SECONDS
from tests.support import Stage, Worker, eventually

BASIC = "tests.apps.basic:app"
SIGNALS = [signal.SIGTERM, signal.SIGINT]


def marks(count: int) -> list[Signature[str]]:
    return [Signature("mark", [str(number)]) for number in range(count)]


def given_back(stage: Stage, count: int) -> None:
    """So many messages are ready again, and nobody blames them for anything."""
    eventually(lambda: stage.depth() == count, f"{count} messages are ready again")
    assert all("tq-crashes" not in message.headers for message in stage.drain(count))


def seconds_to_stop(worker: Worker) -> float:
    """How long its end took by its own log: what the machine does beside it counts for less there."""
    begun, over = (
        datetime.fromisoformat(worker.logged(event)[0]["timestamp"]) for event in ("worker_stopping", "worker_stopped")
    )
    return (over - begun).total_seconds()


def ended(worker: Worker) -> None:
    """The worker has ended in peace, with all its processes."""
    assert worker.wait() == 0
    assert eventually(lambda: not worker.processes(), "no process is left", 5.0)
    assert len(worker.logged("worker_stopped")) == 1
    assert worker.logged("task_crashed") == []
    assert "Traceback" not in worker.text


@pytest.mark.parametrize("group", [False, True], ids=["supervisor", "group"])
@pytest.mark.parametrize("number", SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_what_runs_finishes_and_the_rest_goes_back(stage: Stage, number: int, group: bool) -> None:
    client = stage.client()
    held = client.send_task("hold", ["long", "gate"])
    with stage.worker(BASIC, "-c", "1") as worker:
        stage.traced("hold")
        client.send_many(marks(20))
        worker.send(number, group=group)
        eventually(lambda: worker.logged("worker_stopping"), "the worker begins to stop")
        assert worker.process.poll() is None
        stage.open_gate("gate")
        ended(worker)
        assert held.get(timeout=5) == "long"
        assert len(stage.traces("hold")) == 1
        assert stage.traces("mark") == []
        given_back(stage, 20)


def test_what_was_prefetched_goes_back(stage: Stage) -> None:
    """Short tasks first, so that the child is given many at once."""
    client = stage.client()
    client.send_many([*marks(300), Signature("hold", ["long", "gate"]), *marks(50)])
    with stage.worker(BASIC, "-c", "1") as worker:
        stage.traced("hold")
        worker.send(signal.SIGTERM, group=True)
        eventually(lambda: worker.logged("worker_stopping"), "the worker begins to stop")
        stage.open_gate("gate")
        ended(worker)
        assert len(stage.traces("mark")) == 300
        given_back(stage, 50)


@pytest.mark.parametrize("group", [False, True], ids=["supervisor", "group"])
def test_a_second_signal_ends_it_at_once(stage: Stage, group: bool) -> None:
    client = stage.client()
    client.send_many([Signature("hold", ["a", "never"]), Signature("busy")])
    with stage.worker() as worker:
        stage.traced("hold")
        stage.traced("busy")
        worker.send(signal.SIGINT, group=group)
        eventually(lambda: worker.logged("worker_stopping"), "the worker begins to stop")
        worker.send(signal.SIGINT, group=group)
        started = time.monotonic()
        ended(worker)
        assert time.monotonic() - started < 10.0
        assert seconds_to_stop(worker) < END_SECONDS
        given_back(stage, 2)


def test_at_the_end_of_the_grace_what_runs_is_killed_and_given_back(stage: Stage) -> None:
    client = stage.client()
    client.send_task("busy")
    with stage.worker(BASIC, "--grace", "0.5") as worker:
        stage.traced("busy")
        started = time.monotonic()
        worker.send(signal.SIGTERM)
        ended(worker)
        assert 0.5 <= time.monotonic() - started < 4.0
        given_back(stage, 1)


def test_an_idle_worker_ends_at_once(stage: Stage) -> None:
    with stage.worker() as worker:
        worker.started()
        started = time.monotonic()
        worker.send(signal.SIGTERM)
        ended(worker)
        assert time.monotonic() - started < 10.0
        assert seconds_to_stop(worker) < END_SECONDS


def test_children_that_end_at_the_same_moment_are_not_waited_for(stage: Stage) -> None:
    """The zygote hears of many ends at once, from children of a supervisor that listens no more."""
    with stage.worker(BASIC, "-c", "12") as worker:
        worker.started()
        eventually(lambda: len(worker.processes()) == 14, "all children are up")
        worker.send(signal.SIGTERM)
        ended(worker)
        assert seconds_to_stop(worker) < END_SECONDS


@pytest.mark.parametrize("group", [False, True], ids=["supervisor", "group"])
def test_a_signal_during_the_import_of_the_application(sqlite_stage: Stage, group: bool) -> None:
    with sqlite_stage.worker("tests.apps.slow:app") as worker:
        sqlite_stage.traced("importing")
        worker.send(signal.SIGTERM, group=group)
        assert worker.wait() == 0
        assert eventually(lambda: not worker.processes(), "no process is left", 8.0)
        assert "Traceback" not in worker.text


def test_the_tasks_of_a_stopped_worker_run_elsewhere(stage: Stage) -> None:
    client = stage.client()
    results = client.send_many(Signature[str]("mark", [str(number), 0.02]) for number in range(100))
    with stage.worker(BASIC, "-c", "1") as first:
        stage.traced("mark", 5)
        assert first.stop() == 0
    assert len(stage.traces("mark")) < 100
    with stage.worker(BASIC, "-c", "2"):
        assert [result.get(timeout=15) for result in results] == [str(number) for number in range(100)]
    traces = stage.traces("mark")
    assert len(traces) == 100
    assert {trace["crashes"] for trace in traces} == {0}
