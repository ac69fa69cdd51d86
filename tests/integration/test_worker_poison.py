"""Crashes that take more than their own process with them, tasks that must not run twice, and what is told of the dead."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from taskq.errors import TaskFailed, WorkerLost
from taskq.signature import Signature
from tests.support import Stage, Worker, eventually

TROUBLE = "tests.apps.trouble:app"


class Service:
    """A worker that is started again whenever it dies, as systemd would."""

    def __init__(self, stage: Stage, *options: str) -> None:
        self.stage = stage
        self.options = options
        self.deaths = 0
        self.worker = self._start()

    def _start(self) -> Worker:
        return self.stage.worker(TROUBLE, *self.options)

    def look(self) -> None:
        """Start it again if it is dead."""
        if self.worker.process.poll() is not None:
            self.worker.__exit__(None, None, None)
            self.deaths += 1
            self.worker = self._start()


@pytest.mark.parametrize("children", ["1", "3"])
def test_poison_that_takes_the_worker_with_it_is_found_among_a_thousand_good_tasks(stage: Stage, children: str) -> None:
    client = stage.client()
    good = [Signature[str]("good", [f"{number}"]) for number in range(1000)]
    poison = [Signature[str]("poison") for _ in range(2)]
    results = client.send_many([*good[:500], poison[0], *good[500:502], poison[1], *good[502:]])
    poisonous = [results[500], results[503]]
    harmless = [result for result in results if result not in poisonous]
    service = Service(stage, "-c", children)

    def all_over() -> bool:
        service.look()
        return all(result.ready() for result in results)

    stage.until(all_over, "every task has ended", 60.0)
    assert [result.get() for result in harmless] == [f"{number}" for number in range(1000)]
    for result in poisonous:
        with pytest.raises(TaskFailed, match="crashed"):
            result.get()
    letters = stage.dead_letters(2)
    assert {letter.headers["id"] for letter in letters} == {result.id for result in poisonous}
    assert {letter.headers["tq-dead-reason"] for letter in letters} == {"crashed"}
    starts = Counter(trace["id"] for trace in stage.traces("poison"))
    assert {starts[result.id] for result in poisonous} <= {3, 4}
    assert {trace["crashes"] for trace in stage.traces("good")} == {0}
    assert service.worker.stop() == 0
    assert stage.depth() == 0


def test_crash_counts_survive_the_worker(stage: Stage) -> None:
    client = stage.client()
    result = client.send_task("segfault")
    with stage.worker(TROUBLE, "-c", "1", "--max-crashes", "4") as first:
        stage.traced("segfault", 2)
        first.send(signal.SIGKILL, group=True)
        first.wait()
    before = len(stage.traces("segfault"))
    with stage.worker(TROUBLE, "-c", "1", "--max-crashes", "4"), pytest.raises(TaskFailed, match="crashed"):
        result.get(timeout=15)
    counts = [trace["crashes"] for trace in stage.traces("segfault")]
    # Killed between the copy that counts the crash and the ack of what it replaces, the worker leaves both.
    assert 4 <= len(counts) <= 7
    assert min(counts[before:]) >= 1
    # The run that the worker did not survive counts too, in a counter of its own.
    assert max(counts) in (2, 3)


def test_a_task_that_runs_at_most_once_does_not_run_again(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        client = stage.client()
        assert client.send_task("good", ["x"]).get(timeout=15) == "x"
        lost = client.send_task("once", ["never"])
        (trace,) = stage.traced("once")
        assert eventually(lambda: lost.status == "STARTED", "its beginning is recorded")
        signal_child(trace["pid"])
        with pytest.raises(WorkerLost):
            lost.get(timeout=15)
        (letter,) = stage.dead_letters(1)
        assert (letter.headers["tq-dead-reason"], letter.headers["tq-dead-signal"]) == ("lost", "SIGKILL")
        stage.open_gate("open")
        assert client.send_task("once", ["open"]).get(timeout=15) == "open"
        assert len(stage.traces("once", id=lost.id)) == 1
        assert worker.stop() == 0


def signal_child(process: int) -> None:
    import os

    os.kill(process, signal.SIGKILL)


def test_a_task_that_runs_at_most_once_does_not_run_again_after_its_worker(stage: Stage) -> None:
    client = stage.client()
    with stage.worker(TROUBLE, "-c", "1") as first:
        begun = client.send_task("once", ["gate"])
        stage.traced("once")
        waiting = client.send_task("once", ["gate"])
        first.send(signal.SIGKILL, group=True)
        first.wait()
    stage.open_gate("gate")
    with stage.worker(TROUBLE) as second:
        with pytest.raises(WorkerLost):
            begun.get(timeout=15)
        assert waiting.get(timeout=15) == "gate"
        assert len(stage.traces("once", id=begun.id)) == 1
        assert stage.dead_letters(1)[0].headers["tq-dead-reason"] == "lost"
        assert second.stop() == 0


def test_without_results_what_may_have_begun_is_lost(stage: Stage) -> None:
    stage.settings["backend"] = "off"
    with stage.worker(TROUBLE, "-c", "1") as first:
        stage.client().send_task("once", ["never"])
        stage.traced("once")
        first.send(signal.SIGKILL, group=True)
        first.wait()
    with stage.worker(TROUBLE):
        assert stage.dead_letters(1)[0].headers["tq-dead-reason"] == "lost"
    assert len(stage.traces("once")) == 1


def test_at_the_end_of_the_grace_it_is_lost_and_not_given_back(stage: Stage) -> None:
    with stage.worker(TROUBLE, "--grace", "0.3") as worker:
        lost = stage.client().send_task("once", ["never"])
        stage.traced("once")
        assert worker.stop() == 0
        with pytest.raises(WorkerLost):
            lost.get(timeout=5)
    assert stage.depth() == 0


def test_a_task_that_does_not_want_to_run_again_after_a_crash(stage: Stage) -> None:
    with stage.worker(TROUBLE):
        with pytest.raises(WorkerLost, match="SIGSEGV"):
            stage.client().send_task("fragile").get(timeout=15)
        (letter,) = stage.dead_letters(1)
        assert letter.headers["tq-dead-reason"] == "worker lost"
        assert letter.headers["tq-dead-signal"] == "SIGSEGV"
    assert len(stage.traces("fragile")) == 1


def test_the_dead_tell_what_they_died_of(stage: Stage) -> None:
    with stage.worker(TROUBLE) as worker:
        result = stage.client().send_task("segfault")
        with pytest.raises(TaskFailed, match="crashed"):
            result.get(timeout=15)
        (letter,) = stage.dead_letters(1)
        assert letter.headers["tq-dead-signal"] == "SIGSEGV"
        assert "MiB at its peak" in letter.headers["tq-dead-detail"]
        assert "string_at" in letter.headers["tq-dead-traceback"]
        assert len(letter.headers["tq-history"]) == 3
        assert "string_at" in str(worker.logged("child_died")[0]["stack"])
