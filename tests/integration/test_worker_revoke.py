"""Revoking tasks and pausing queues: wherever the task is, whoever is up."""

from __future__ import annotations

import time

import pytest

from taskq import AsyncResult
from taskq.errors import TaskRevoked
from tests.support import Stage, eventually

TROUBLE = "tests.apps.trouble:app"


def ended_as_revoked(*results: AsyncResult[str]) -> None:
    for result in results:
        with pytest.raises(TaskRevoked):
            result.get(timeout=15)
        assert result.status == "REVOKED"


def test_before_it_runs_with_no_worker_up(stage: Stage) -> None:
    client = stage.client()
    revoked, other = client.send_task("good", ["revoked"]), client.send_task("good", ["other"])
    revoked.revoke()
    with stage.worker(TROUBLE) as worker:
        assert other.get(timeout=15) == "other"
        ended_as_revoked(revoked)
        assert worker.stop() == 0
    later = client.send_task("good", ["later"], task_id="a-known-id", countdown=1)
    later.revoke()
    for _ in range(2):
        # It outlives the workers that heard of it.
        with stage.worker(TROUBLE) as worker:
            worker.started()
            assert worker.stop() == 0
    with stage.worker(TROUBLE):
        ended_as_revoked(later)
    assert [trace["key"] for trace in stage.traces("good")] == ["other"]


def test_while_it_waits_behind_others_for_its_eta_and_for_its_retry(stage: Stage) -> None:
    with stage.worker(TROUBLE, "-c", "1"):
        client = stage.client()
        holding = client.send_task("wait", ["gate"])
        stage.traced("wait")
        behind = [client.send_task("good", ["behind"]) for _ in range(5)]
        delayed = client.send_task("good", ["delayed"], countdown=1.5)
        for result in (*behind, delayed):
            result.revoke()
        stage.open_gate("gate")
        assert holding.get(timeout=15) == "gate"
        retried = client.send_task("again", [5, 1.0])
        stage.traced("again")
        retried.revoke()
        ended_as_revoked(*behind, delayed, retried)
        assert len(stage.traces("again")) == 1
        assert stage.traces("good") == []


def test_while_it_runs(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        client = stage.client()
        left_alone, ended = client.send_task("wait", ["gate"]), client.send_task("wait", ["never"])
        stage.traced("wait", 2)
        left_alone.revoke()
        ended.revoke(terminate=True)
        ended_as_revoked(ended)
        assert [trace["error"] for trace in stage.traced("interrupted")] == ["Terminated"]
        assert worker.logged("child_died") == []
        stage.open_gate("gate")
        assert left_alone.get(timeout=15) == "gate"
        assert worker.stop() == 0


@pytest.mark.parametrize("way", ["catch", "lock"])
def test_while_it_runs_and_does_not_listen(sqlite_stage: Stage, way: str) -> None:
    with sqlite_stage.worker(TROUBLE) as worker:
        hanging = sqlite_stage.client().send_task("hang", [way])
        sqlite_stage.traced("hang")
        began = time.monotonic()
        hanging.revoke(terminate=True)
        ended_as_revoked(hanging)
        assert time.monotonic() - began < 2.0
        assert len(sqlite_stage.traces("hang")) == 1
        assert len(worker.logged("task_revoked")) == 1
        assert worker.stop() == 0


def test_a_paused_queue_rests_while_producers_go_on(stage: Stage) -> None:
    client = stage.client()
    client.pause(stage.queue)
    results = [client.send_task("good", [str(number)]) for number in range(10)]
    with stage.worker(TROUBLE) as worker:
        worker.started()
        eventually(lambda: worker.logged("queues_paused"), "the worker knows")
        assert worker.stop() == 0
    assert stage.traces("good") == []
    with stage.worker(TROUBLE) as worker:
        worker.started()
        client.resume(stage.queue)
        assert [result.get(timeout=15) for result in results] == [str(number) for number in range(10)]
        holding = client.send_task("wait", ["gate"])
        stage.traced("wait")
        client.pause(stage.queue)
        eventually(lambda: len(worker.logged("queues_paused")) == 3, "the worker knows")
        resting = [client.send_task("good", ["late"]) for _ in range(20)]
        stage.open_gate("gate")
        assert holding.get(timeout=15) == "gate"
        eventually(lambda: stage.depth() == 20, "all wait in the queue")
        client.resume(stage.queue)
        assert [result.get(timeout=15) for result in resting] == ["late"] * 20
        assert worker.stop() == 0
