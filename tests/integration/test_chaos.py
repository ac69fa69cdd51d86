"""SIGKILLs at random instants against children, supervisors and producers: whatever was confirmed is done in the end."""

from __future__ import annotations

import time

from taskq.message import dead_letter_queue
from tests.integration.chaos import Chaos
from tests.support import Stage, eventually

SEED = 20


def survive(stage: Stage, seconds: float) -> None:
    stage.settings["max_crashes"] = 1000
    with Chaos(stage, SEED) as chaos:
        stage.traced("mark")
        chaos.rage(seconds)
        chaos.calm()
        confirmed = {trace["id"]: trace["key"] for trace in stage.traces("confirmed")}
        client, deadline = stage.client(), time.monotonic() + 15
        results = {task_id: client.result(task_id) for task_id in confirmed}
        missing = [one for one, result in results.items() if not result.wait(max(0.0, deadline - time.monotonic()))]
        assert missing == []
        assert {task_id: result.get() for task_id, result in results.items()} == confirmed
        assert confirmed.keys() <= {trace["id"] for trace in stage.traces("mark")}
        eventually(lambda: stage.depth() == 0, "the queue is empty")
        assert [worker.stop() for worker in chaos.workers] == [0, 0]
    assert stage.depth() == 0
    assert stage.depth(dead_letter_queue(stage.queue)) == 0
    assert chaos.kills.total() > 10
    print(f"confirmed {len(confirmed)}, executions {len(stage.traces('mark'))}")


def test_chaos_on_sqlite(sqlite_stage: Stage) -> None:
    survive(sqlite_stage, 8.0)


def test_chaos_on_rabbitmq(amqp_stage: Stage) -> None:
    survive(amqp_stage, 4.0)
