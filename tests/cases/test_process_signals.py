"""What an application or a task does to the signals, timers and forks of its process is undone, and costs nobody else."""

from __future__ import annotations

import os
import signal
import time

import pytest

from taskq.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from tests.support import Stage, eventually

APP = "tests.apps.process:app"


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_deaths_are_noticed_where_the_import_has_patched_everything(sqlite_stage: Stage, library: str) -> None:
    with sqlite_stage.worker(APP, "-c", "1", IMPORT=library) as worker:
        client = sqlite_stage.client()
        assert client.send_task("run", ["exit", True]).get(timeout=15) == "done"
        with pytest.raises(TimeLimitExceeded):
            client.send_task("limited").get(timeout=15)
        assert client.send_task("whose", [7]).get(timeout=15) == 7
        assert worker.logged("start_method_changed") == []
        assert worker.stop() == 0


def test_the_import_has_replaced_signal_handlers(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1", IMPORT="signals") as worker:
        client = sqlite_stage.client()
        assert client.send_task("run", ["exit", True]).get(timeout=15) == "done", "the end of a child is heard of"
        with pytest.raises(SoftTimeLimitExceeded):
            client.send_task("soft").get(timeout=15)
        held = client.send_task("hold", ["key"])
        sqlite_stage.traced("hold")
        worker.send(signal.SIGTERM, group=True)
        eventually(lambda: worker.logged("worker_stopping"), "the worker begins to stop")
        sqlite_stage.open_gate("gate")
        assert worker.wait() == 0
        assert held.get(timeout=5) == "key"
        assert len(worker.logged("child_died")) == 1
        assert worker.logged("zygote_died") == []


def test_a_clock_that_a_task_has_replaced_is_not_what_the_next_ones_limits_go_by(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1", "--time-limit", "30") as worker:
        client = sqlite_stage.client()
        client.send_task("run", ["clock"]).get(timeout=15)
        held = client.send_task("hold", ["key"])
        (holding,) = sqlite_stage.traced("hold")
        # Limits are looked at meanwhile.
        eventually(lambda: time.time() > holding["at"] + 0.5)
        sqlite_stage.open_gate("gate")
        assert held.get(timeout=15) == "key"
        assert worker.logged("child_died") == []


def test_what_a_task_has_put_in_the_place_of_what_we_need_costs_its_process_alone(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        client = sqlite_stage.client()
        client.send_task("run", ["time"])
        sqlite_stage.traced("run")
        others = [client.send_task("whose", [number]) for number in range(5)]
        assert [other.get(timeout=15) for other in others] == list(range(5))
        assert worker.stop() == 0
    # Its own end is what it has spoilt.
    [letter] = sqlite_stage.drain(1, f"{sqlite_stage.queue}.dead")
    assert letter.headers["task"] == "run"
    assert not sqlite_stage.depth(f"{sqlite_stage.queue}.dead")


@pytest.mark.parametrize("left", ["loop_signals", "default_signals", "alarm", "dump_later"])
def test_what_a_task_leaves_behind_does_not_strike_the_next_one(sqlite_stage: Stage, left: str) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        client = sqlite_stage.client()
        client.send_task("run", [left]).get(timeout=15)
        held = client.send_task("hold", ["key"])
        (holding,) = sqlite_stage.traced("hold")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(holding["pid"], number)
        sleeper = client.send_task("whose", [1])
        sqlite_stage.open_gate("gate")
        assert (held.get(timeout=15), sleeper.get(timeout=15)) == ("key", 1)
        ended = sqlite_stage.traces("run")[0]["at"]
        # Longer than the timers that were left.
        eventually(lambda: client.send_task("run").get(timeout=15) and sqlite_stage.traces("run")[-1]["at"] > ended + 0.5)
        assert {trace["pid"] for trace in sqlite_stage.traces("run")} == {holding["pid"]}
        assert worker.logged("child_died") == []
        assert worker.stop() == 0


@pytest.mark.parametrize(("how", "status"), [("return", 0), ("raise", 1), ("exit", 7)])
def test_a_forked_copy_ends_when_it_comes_out_of_the_task(sqlite_stage: Stage, how: str, status: int) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        client = sqlite_stage.client()
        assert client.send_task("run", [f"fork_{how}"]).get(timeout=15) == "done"
        assert os.waitstatus_to_exitcode(sqlite_stage.traces("copy")[0]["status"]) == status
        assert [client.send_task("whose", [number]).get(timeout=15) for number in range(20)] == list(range(20))
        assert worker.logged("child_died") == worker.logged("task_failed") == []
        assert len(worker.logged("task_succeeded", task="run")) == 1
        assert worker.stop() == 0


def test_a_forked_copy_that_comes_out_later_speaks_for_nobody(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        client = sqlite_stage.client()
        client.send_task("run", ["fork_stay"]).get(timeout=15)
        before = len(worker.processes())
        sqlite_stage.open_gate("copy")
        eventually(lambda: len(worker.processes()) == before - 1, "the copy has ended")
        assert [client.send_task("whose", [number]).get(timeout=15) for number in range(20)] == list(range(20))
        assert worker.logged("child_died") == []
        assert worker.stop() == 0


def test_a_copy_that_the_import_forks_is_no_second_zygote(sqlite_stage: Stage) -> None:
    with sqlite_stage.worker(APP, "-c", "1", IMPORT="fork") as worker:
        assert sqlite_stage.client().send_task("whose", [1]).get(timeout=15) == 1
        assert len(worker.processes()) == 3
        assert worker.stop() == 0


@pytest.mark.parametrize("how", ["terminate", "pool"])
def test_processes_that_a_task_forks_end_when_they_are_told_to(sqlite_stage: Stage, how: str) -> None:
    with sqlite_stage.worker(APP, "-c", "1") as worker:
        answer = sqlite_stage.client().send_task("run", [how]).get(timeout=15)
        assert answer == {"terminate": str(-signal.SIGTERM), "pool": "done"}[how]
        assert worker.stop() == 0
