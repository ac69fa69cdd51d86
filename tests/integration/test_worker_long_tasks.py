"""Nothing waits behind a long task."""

from __future__ import annotations

import time

from taskq.signature import Signature
from tests.support import Stage, eventually


def test_short_tasks_pass_a_long_one(stage: Stage) -> None:
    with stage.worker() as worker:
        client = stage.client()
        # Many short ones first, so that children are given many tasks at once.
        client.send_many([Signature("mark", [f"early {number}"]) for number in range(200)])
        stage.traced("mark", 200)
        long = client.send_task("hold", ["long", "gate"])
        stage.traced("hold")
        sent = {}
        for number in range(50):
            client.send_task("mark", [f"{number}"])
            sent[f"{number}"] = time.monotonic()
        marks = stage.traced("mark", 250)
        waited = {trace["key"]: trace["at"] - sent[trace["key"]] for trace in marks if trace["key"] in sent}
        assert len(waited) == 50
        assert max(waited.values()) < 0.5
        stage.open_gate("gate")
        assert long.get(timeout=15) == "long"
        assert worker.stop() == 0


def test_what_was_handed_to_a_child_with_a_long_task_is_taken_back(stage: Stage) -> None:
    client = stage.client()
    short = [Signature[str]("mark", [f"{number}"]) for number in range(300)]
    client.send_many([*short[:250], Signature[str]("hold", ["long", "gate"]), *short[250:]])
    with stage.worker() as worker:
        stage.traced("mark", 300)
        assert len(stage.traces("released")) == 0
        stage.open_gate("gate")
        stage.traced("released")
        eventually(lambda: worker.logged("task_succeeded", task="hold"), "the long task ends")
        assert worker.stop() == 0
    assert len(stage.traces("mark")) == 300
    assert len(stage.traces("hold")) == 1
    assert stage.depth() == 0
