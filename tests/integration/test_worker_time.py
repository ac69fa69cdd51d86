"""Time lives in the broker: what is due later costs workers nothing, and no death of theirs can lose or delay it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from taskq.errors import TaskExpired
from taskq.signature import Signature
from tests.support import Stage, Worker, eventually

TROUBLE = "tests.apps.trouble:app"
#: How much later than it is due a task may start, in seconds.
LATE = 2.0


def memory(worker: Worker) -> int:
    """What all its processes have for themselves, in bytes."""
    total = 0
    for process in worker.processes():
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def test_many_tasks_that_are_due_later_cost_a_worker_nothing(stage: Stage) -> None:
    count = 20_000 if stage.broker.startswith("sqlite:") else 3_000
    client = stage.client(publish_timeout=60.0)
    with stage.worker(TROUBLE) as worker:
        assert client.send_task("good", ["warm"]).get(timeout=15) == "warm"
        before = memory(worker)
        client.send_many(Signature("good", ["later"], {}, {"countdown": 3600.0}) for _ in range(count))
        waits = []
        for number in range(200):
            sent = time.monotonic()
            client.send_task("good", [f"now {number}"]).get(timeout=15)
            waits.append(time.monotonic() - sent)
        assert memory(worker) - before < 10 << 20
        assert sorted(waits)[197] < 0.1
        assert not stage.traces("good", key="later")
        assert worker.stop() == 0


def test_workers_that_are_killed_delay_nothing(stage: Stage) -> None:
    client = stage.client()
    with stage.worker(TROUBLE) as first:
        client.send_task("good", ["warm"]).get(timeout=15)
        due = {}
        for number in range(40):
            client.send_task("good", [str(number)], countdown=2.5)
            due[str(number)] = time.monotonic() + 2.5
        retried = client.send_task("again", [1, 2.5])
        stage.traced("again")
        first.send(9, group=True)
        first.wait()
    with stage.worker(TROUBLE):
        stage.until(lambda: len(stage.traces("good")) == 41, "all have run")
        assert retried.get(timeout=15) == 1
    late = {trace["key"]: trace["at"] - due[trace["key"]] for trace in stage.traces("good") if trace["key"] in due}
    assert len(late) == 40
    assert min(late.values()) > -0.2
    assert max(late.values()) < LATE


def test_what_has_expired_is_recorded_and_not_run(stage: Stage) -> None:
    client = stage.client()
    short = client.send_task("good", ["short"], expires=0.2)
    passed = client.send_task("good", ["passed"], expires=datetime.now(UTC) - timedelta(seconds=5))
    eta = client.send_task("good", ["eta"], countdown=1.5, expires=1)
    in_time = client.send_task("good", ["in time"], expires=60)
    time.sleep(0.3)
    with stage.worker(TROUBLE) as worker:
        assert in_time.get(timeout=15) == "in time"
        for result in (short, passed, eta):
            with pytest.raises(TaskExpired):
                result.get(timeout=15)
        assert len(worker.logged("task_expired")) == 3
        eventually(lambda: stage.depth() == 0, "the queue is empty")
    assert [trace["key"] for trace in stage.traces("good")] == ["in time"]
