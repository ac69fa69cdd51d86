"""Children that somebody has stopped: replaced when it was one of them, left alone when the whole worker was."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from taskq.workers.children import STOPPED_SECONDS
from tests.support import Stage, Worker, eventually


def state_of(process: int) -> str:
    """As the kernel names it: R (runs), S (sleeps), T (is stopped)."""
    return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0]


def test_a_stopped_child_is_replaced_and_its_task_runs_again(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        held = sqlite_stage.client().send_task("hold", ["key", "gate"])
        (holding,) = sqlite_stage.traced("hold")
        os.kill(holding["pid"], signal.SIGSTOP)
        since = time.monotonic()
        again = sqlite_stage.traced("hold", 2)[1]
        assert STOPPED_SECONDS <= again["at"] - since < STOPPED_SECONDS + 1
        sqlite_stage.open_gate("gate")
        assert held.get(timeout=15) == "key"
        (crashed,) = worker.logged("task_crashed")
        assert crashed["died"].startswith("SIGKILL")
        assert "after it had been stopped for 5." in crashed["died"]
        assert len(worker.logged("stopped_child_killed", pid=holding["pid"])) == 1
        assert worker.stop() == 0


def test_a_child_that_is_continued_in_time_is_left_alone(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        held = sqlite_stage.client().send_task("hold", ["key", "gate"])
        (holding,) = sqlite_stage.traced("hold")
        os.kill(holding["pid"], signal.SIGSTOP)
        eventually(lambda: worker.logged("child_stopped"), "the worker hears of it")
        os.kill(holding["pid"], signal.SIGCONT)
        eventually(lambda: worker.logged("child_continued"), "the worker hears of it")
        sqlite_stage.open_gate("gate")
        assert held.get(timeout=15) == "key"
        assert len(sqlite_stage.traces("hold")) == 1
        assert worker.logged("child_died") == []


def test_a_worker_that_is_stopped_as_a_whole_goes_on_as_if_nothing_had_been(sqlite_stage: Stage) -> None:
    """As Ctrl-Z and ``fg`` do; the supervisor had heard that its child was stopped before it was stopped itself."""
    with sqlite_stage.worker("tests.apps.basic:app", "-c", "1") as worker:
        held = sqlite_stage.client().send_task("hold", ["key", "gate"])
        (holding,) = sqlite_stage.traced("hold")
        os.kill(holding["pid"], signal.SIGSTOP)
        eventually(lambda: worker.logged("child_stopped"), "the worker hears of it")
        worker.send(signal.SIGSTOP, group=True)
        stopped_at = time.monotonic()
        eventually(lambda: time.monotonic() - stopped_at > STOPPED_SECONDS + 0.5, "more time passes than a child has")
        assert stopped(worker)
        # The supervisor first, so that it has every opportunity to be wrong.
        worker.send(signal.SIGCONT)
        eventually(lambda: state_of(worker.pid) == "S", "the supervisor waits again")
        worker.send(signal.SIGCONT, group=True)
        eventually(lambda: worker.logged("child_continued"), "the worker hears of it")
        sqlite_stage.open_gate("gate")
        assert held.get(timeout=15) == "key"
        assert len(sqlite_stage.traces("hold")) == 1
        assert worker.logged("child_died") == []
        assert worker.logged("stopped_child_killed") == []
        assert worker.stop() == 0


def stopped(worker: Worker) -> bool:
    return {state_of(process) for process in worker.processes()} == {"T"}
