"""Limits of time and memory: whatever a task does, it ends, and only its own process pays for it."""

from __future__ import annotations

import time

import pytest

from taskq.errors import SoftTimeLimitExceeded, TaskFailed, TimeLimitExceeded
from taskq.signature import Signature
from tests.support import Stage, eventually

TROUBLE = "tests.apps.trouble:app"
#: How much later than its limit a task may end, in seconds.
TOLERANCE = 0.5


@pytest.mark.parametrize("way", ["spin", "sleep", "lock", "socket", "catch", "regex"])
def test_a_task_that_never_ends_ends_at_its_limit(sqlite_stage: Stage, way: str) -> None:
    with sqlite_stage.worker(TROUBLE) as worker:
        client = sqlite_stage.client()
        hanging = client.send_task("hang", [way], time_limit=0.6)
        (trace,) = sqlite_stage.traced("hang")
        with pytest.raises(TimeLimitExceeded, match=r"time limit of 0\.6"):
            hanging.get(timeout=15)
        assert 0.5 <= time.monotonic() - trace["at"] < 0.6 + TOLERANCE
        (letter,) = sqlite_stage.dead_letters(1)
        assert letter.headers["tq-dead-reason"] == "time limit"
        assert letter.headers["tq-dead-signal"] == "SIGKILL"
        # Where it stood, whatever held the interpreter.
        stood = {
            "spin": "spin",
            "sleep": "<lambda>",
            "lock": "hold_lock",
            "socket": "read_dead_socket",
            "regex": "backtrack",
        }.get(way, way)
        assert stood in letter.headers["tq-dead-traceback"]
        assert len(sqlite_stage.traces("hang")) == 1
        assert client.send_task("good", ["next"]).get(timeout=15) == "next"
        assert worker.stop() == 0


def test_limits_of_the_task_and_of_the_worker(stage: Stage) -> None:
    with stage.worker(TROUBLE, "--time-limit", "1.2", "--soft-time-limit", "1") as worker:
        client = stage.client()
        own = client.send_task("limited")
        workers = client.send_task("hang", ["spin"])
        with pytest.raises(TimeLimitExceeded):
            own.get(timeout=15)
        with pytest.raises(SoftTimeLimitExceeded):
            workers.get(timeout=15)
        assert worker.stop() == 0


def test_a_soft_limit_is_an_exception_in_the_task(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        client = stage.client()
        assert client.send_task("tidy").get(timeout=15) == "tidied up"
        with pytest.raises(SoftTimeLimitExceeded):
            client.send_task("untidy").get(timeout=15)
        assert [line["error"] for line in worker.logged("task_failed")] == [
            "SoftTimeLimitExceeded('the task ran into its soft time limit')"
        ]
        assert worker.logged("child_died") == []
        assert worker.stop() == 0


def test_a_task_that_ran_into_its_limit_is_tried_again_if_it_says_so(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        client = stage.client()
        assert client.send_task("hang_once", [1]).get(timeout=15) == 1
        with pytest.raises(TimeLimitExceeded):
            client.send_task("hang_once", [9]).get(timeout=15)
        assert [trace["retries"] for trace in stage.traces("hang_once")] == [0, 1, 0, 1, 2]
        assert {trace["crashes"] for trace in stage.traces("hang_once")} == {0}
        assert worker.stop() == 0


def test_tasks_within_their_limits_are_left_alone(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(TROUBLE) as worker:
        client = sqlite_stage.client()
        keys = [f"{number}" for number in range(300)]
        results = client.send_many(Signature[str]("quick", [key, 0.15 if int(key) % 30 == 0 else 0.0]) for key in keys)
        assert [result.get(timeout=20) for result in results] == keys
        assert worker.logged("child_died") == []
        assert worker.stop() == 0


def test_a_task_that_takes_too_much_memory_is_killed_while_it_runs(stage: Stage) -> None:
    with stage.worker(TROUBLE, "--memory-limit", "150M", "--max-crashes", "2") as worker:
        client = stage.client()
        neighbour = client.send_task("wait", ["gate"])
        stage.traced("wait")
        with pytest.raises(TaskFailed, match="memory limit"):
            client.send_task("devour", [200]).get(timeout=15)
        assert len(stage.traces("devour")) == 2
        (letter,) = stage.dead_letters(1)
        assert letter.headers["tq-dead-reason"] == "memory limit"
        assert "MiB" in letter.headers["tq-dead-detail"]
        stage.open_gate("gate")
        assert neighbour.get(timeout=15) == "gate"
        assert [trace["crashes"] for trace in stage.traces("wait")] == [0]
        assert worker.stop() == 0


def test_children_are_replaced_after_so_many_tasks(stage: Stage) -> None:
    with stage.worker(TROUBLE, "--max-tasks-per-child", "10") as worker:
        client = stage.client()
        results = client.send_many(Signature[int]("whereabouts") for _ in range(200))
        processes = [result.get(timeout=20) for result in results]
        assert max(processes.count(process) for process in set(processes)) == 10
        # The last child of each slot may have run fewer.
        assert 20 <= len(set(processes)) <= 21
        assert worker.logged("child_died") == []
        assert worker.stop() == 0


def test_children_that_have_grown_are_replaced_between_tasks(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(TROUBLE, "-c", "1", "--max-memory-per-child", "120M") as worker:
        client = sqlite_stage.client()
        first = client.send_task("leak", [150]).get(timeout=15)
        eventually(lambda: client.send_task("whereabouts").get(timeout=15) != first, "the child was replaced")
        assert worker.logged("child_died") == []
        assert worker.stop() == 0
