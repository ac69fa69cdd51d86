"""SIGTTIN and SIGTTOU: children come and go while the worker works."""

from __future__ import annotations

import signal

from tests.support import Stage, Worker, eventually

BASIC = "tests.apps.basic:app"


def scaled(worker: Worker, number: int, children: int) -> None:
    """Send the signal, and wait until so many children are to be there."""
    before = len(worker.logged("scaled"))
    worker.send(number)
    eventually(lambda: len(worker.logged("scaled")) > before, "the worker scales")
    assert worker.logged("scaled")[-1]["children"] == children


def holding(stage: Stage, *keys: str) -> None:
    """Send tasks that hold on to a child until the gate of their name opens."""
    for key in keys:
        stage.client().send_task("hold", [key, key])


def test_more_children_take_what_waits(stage: Stage) -> None:
    with stage.worker(BASIC, "-c", "1") as worker:
        holding(stage, "a", "b", "c")
        stage.traced("hold")
        scaled(worker, signal.SIGTTIN, 2)
        scaled(worker, signal.SIGTTIN, 3)
        assert len({trace["pid"] for trace in stage.traced("hold", 3)}) == 3
        for key in "abc":
            stage.open_gate(key)
        stage.traced("released", 3)
        assert worker.stop() == 0


def test_fewer_children_finish_first_and_an_idle_one_goes_first(stage: Stage) -> None:
    with stage.worker(BASIC, "-c", "3") as worker:
        holding(stage, "a", "b")
        stage.traced("hold", 2)
        processes = len(worker.processes())
        scaled(worker, signal.SIGTTOU, 2)
        eventually(lambda: len(worker.processes()) == processes - 1, "the idle child goes at once")
        scaled(worker, signal.SIGTTOU, 1)
        holding(stage, "c")
        stage.open_gate("a")
        stage.open_gate("b")
        stage.traced("released", 2)
        stage.traced("hold", key="c")
        eventually(lambda: len(worker.processes()) == processes - 2, "one child is left")
        holding(stage, "d")
        stage.open_gate("c")
        stage.open_gate("d")
        stage.traced("released", 4)
        assert {trace["key"] for trace in stage.traces("hold")} == {"a", "b", "c", "d"}
        assert len(stage.traces("hold")) == 4
        assert worker.logged("task_crashed") == []
        assert worker.stop() == 0


def test_who_has_yet_to_leave_stays_when_more_are_wanted(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    with stage.worker(BASIC, "-c", "2") as worker:
        holding(stage, "a", "b")
        stage.traced("hold", 2)
        processes = len(worker.processes())
        scaled(worker, signal.SIGTTOU, 1)
        scaled(worker, signal.SIGTTIN, 2)
        holding(stage, "c")
        stage.open_gate("a")
        stage.traced("hold", key="c")
        assert len(worker.processes()) == processes, "never more at once than wanted"
        stage.open_gate("b")
        stage.open_gate("c")
        stage.traced("released", 3)
        assert worker.stop() == 0


def test_one_child_is_the_least(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(BASIC, "-c", "1").started() as worker:
        worker.send(signal.SIGTTOU)
        eventually(lambda: worker.logged("not_scaled"), "the worker says so")
        assert sqlite_stage.client().send_task("add", [1, 2]).get(timeout=15) == 3
        assert worker.stop() == 0
