"""Real workers that are sent a call twice, as over a connection that broke before it was confirmed; its task runs once."""

from __future__ import annotations

import signal
import uuid

import pytest

from taskq.errors import WorkerLost
from taskq.message import dead_letter_queue
from tests.support import Stage, eventually

TROUBLE = "tests.apps.trouble:app"


def sent(stage: Stage, copies: int, gate: str) -> str:
    task_id = str(uuid.uuid4())
    for _ in range(copies):
        stage.client().send_task("once", [gate], task_id=task_id)
    return task_id


def nothing_left(stage: Stage) -> bool:
    return stage.depth() == 0


@pytest.mark.parametrize("copies", [2, 5])
def test_of_copies_one_runs(stage: Stage, copies: int) -> None:
    stage.open_gate("open")
    with stage.worker(TROUBLE, "-c", "2") as one, stage.worker(TROUBLE, "-c", "2") as two:
        one.started()
        two.started()
        ids = [sent(stage, copies, "open") for _ in range(20)]
        results = [stage.client().result(task_id).get(timeout=20) for task_id in ids]
        assert results == ["open"] * len(ids)
        # Copies that came while it ran are looked at again.
        eventually(lambda: nothing_left(stage), "the copies are gone", 20)
        assert one.stop() == two.stop() == 0
    assert sorted(trace["id"] for trace in stage.traces("once")) == sorted(ids)
    assert not stage.depth(dead_letter_queue(stage.queue))


def test_a_copy_ends_with_the_run_that_was_lost(stage: Stage) -> None:
    with stage.worker(TROUBLE, "-c", "1") as first:
        first.started()
        task_id = sent(stage, 1, "never")
        stage.traced("once")
        with stage.worker(TROUBLE, "-c", "1") as second:
            second.started()
            stage.client().send_task("once", ["never"], task_id=task_id)
            eventually(lambda: second.logged("duplicate_met", other="taken"), "the copy waits")
            first.send(signal.SIGKILL, group=True)
            first.wait()
            with pytest.raises(WorkerLost):
                stage.client().result(task_id).get(timeout=20)
            eventually(lambda: second.logged("duplicate_met", other="over"), "the copy ends", 20)
            eventually(lambda: nothing_left(stage), "nothing is left")
            assert second.stop() == 0
    assert len(stage.traces("once")) == 1
    [letter] = stage.dead_letters(1)
    assert letter.headers["tq-dead-reason"] == "lost"
