"""A process that runs tasks dies: nothing is lost, the guilty task is counted, its neighbours are not."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from taskq.errors import TaskFailed
from taskq.signature import Signature
from tests.support import Stage, eventually

WAYS = ["SIGKILL", "SIGSEGV", "exit"]


def test_a_task_whose_process_dies_runs_again(stage: Stage) -> None:
    with stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        client = stage.client()
        for how in WAYS:
            assert client.send_task("die", [how, 1]).get(timeout=15) == 1
            last = stage.traces("die")[-2:]
            assert [trace["crashes"] for trace in last] == [0, 1]
            assert last[0]["pid"] != last[1]["pid"]
            # A new child stands within a second.
            assert last[1]["at"] - last[0]["at"] < 1.0
        assert [line["died"].split(",")[0] for line in worker.logged("child_died")] == ["SIGKILL", "SIGSEGV", "exit code 3"]
        assert len(worker.logged("task_crashed")) == 3
        assert worker.stop() == 0


@pytest.mark.parametrize("how", ["SIGSEGV", "exit"])
def test_a_task_that_keeps_killing_is_dead_lettered(stage: Stage, how: str) -> None:
    with stage.worker() as worker:
        client = stage.client()
        result = client.send_task("die", [how, 100])
        with pytest.raises(TaskFailed, match="crashed"):
            result.get(timeout=15)
        assert [trace["crashes"] for trace in stage.traces("die")] == [0, 1, 2]
        (letter,) = stage.dead_letters(1)
        died = {"SIGSEGV": "SIGSEGV", "exit": "exit code 3"}[how]
        assert letter.headers["tq-dead-reason"] == "crashed"
        assert died in letter.headers["tq-dead-detail"]
        assert "MiB" in letter.headers["tq-dead-detail"]
        assert letter.headers["tq-dead-queue"] == stage.queue
        assert letter.headers["tq-crashes"] == 3
        assert letter.headers["id"] == result.id
        assert b'"SIGSEGV"' in letter.body or b'"exit"' in letter.body
        assert len(worker.logged("task_dead_lettered")) == 1
        assert client.send_task("add", [1, 2]).get(timeout=15) == 3


def test_neighbours_of_a_crash_are_innocent(stage: Stage) -> None:
    client = stage.client()
    before = [Signature[str]("mark", [f"before {number}"]) for number in range(100)]
    after = [Signature[str]("mark", [f"after {number}"]) for number in range(100)]
    client.send_many([*before, Signature("die", ["SIGKILL", 2]), *after])
    with stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        marks = stage.traced("mark", 200)
        stage.traced("die", 3)
        assert [trace["crashes"] for trace in stage.traces("die")] == [0, 1, 2]
        assert {trace["crashes"] for trace in marks} == {0}
        # Tasks that had ended when the child died are settled, those that had not begun are run once.
        eventually(lambda: stage.depth() == 0, "the queue is empty")
        assert worker.stop() == 0
    assert max(Counter(trace["key"] for trace in stage.traces("mark")).values()) == 1


def test_an_idle_child_that_is_killed_is_replaced(stage: Stage) -> None:
    with stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        client = stage.client()
        client.send_task("mark", ["first"]).get(timeout=15)
        (first,) = stage.traces("mark")
        os.kill(first["pid"], signal.SIGKILL)
        client.send_task("mark", ["second"]).get(timeout=15)
        assert stage.traces("mark")[1]["pid"] != first["pid"]
        assert {trace["crashes"] for trace in stage.traces("mark")} == {0}
        assert worker.logged("task_crashed") == []


def test_the_zygote_is_killed(stage: Stage) -> None:
    with stage.worker("tests.apps.basic:app", "-c", "2") as worker:
        client = stage.client()
        held = client.send_task("hold", ["long", "gate"])
        (holding,) = stage.traced("hold")
        (zygote,) = set(worker.processes()) - {worker.pid} - children_of(worker.processes(), holding["pid"])
        os.kill(zygote, signal.SIGKILL)
        stage.traced("hold", 2)
        stage.open_gate("gate")
        assert held.get(timeout=15) == "long"
        assert len(worker.logged("zygote_died")) == 1
        assert worker.stop() == 0


def children_of(processes: list[int], one: int) -> set[int]:
    """The processes that have the same parent as this one."""
    parent = parent_of(one)
    return {process for process in processes if parent_of(process) == parent}


def parent_of(process: int) -> int:
    with open(f"/proc/{process}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_no_process_outlives_a_killed_supervisor(stage: Stage) -> None:
    client = stage.client()
    with stage.worker() as worker:
        busy = client.send_task("busy")
        stage.traced("busy")
        worker.send(signal.SIGKILL)
        worker.wait()
        eventually(lambda: not worker.processes(), "all processes of the worker are gone", 2.0)
    with stage.worker():
        assert busy.get(timeout=15) == "came again"
    assert [trace["redelivered"] for trace in stage.traces("busy")] == [False, True]


def test_another_worker_takes_over_at_once(stage: Stage) -> None:
    client = stage.client()
    with stage.worker("tests.apps.basic:app", "-c", "1") as first, stage.worker("tests.apps.basic:app", "-c", "1") as second:
        first.started()
        second.started()
        busy = client.send_task("busy")
        (trace,) = stage.traced("busy")
        victim = next(worker for worker in (first, second) if trace["pid"] in worker.processes())
        victim.send(signal.SIGKILL)
        assert busy.get(timeout=15) == "came again"
