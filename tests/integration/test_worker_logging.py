"""The lines of tasks: they say which task they belong to, and the application's own configuration stays its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support import ROOT, Stage, eventually, json_lines


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_an_applications_own_configuration_is_untouched(sqlite_stage: Stage, start_method: str) -> None:
    stage = sqlite_stage
    with stage.worker("tests.apps.configured:app", "--start-method", start_method) as worker:
        client = stage.client()
        assert client.send_task("untouched").get(timeout=15) is True
        talk = client.send_task("talk", ["order shipped", "logging"])
        talk.get(timeout=15)
        said = client.send_task("talk", ["order paid", "structlog"])
        said.get(timeout=15)
        eventually(lambda: f"OWN WARNING shop [{talk.id} talk 1] order shipped" in worker.text, "the line in the app's form")
        eventually(
            lambda: f"attempt=1 event='order paid' task='talk' task_id='{said.id}'" in worker.text,
            "structlog's line in the app's form",
        )
        assert worker.text.count("order shipped") == 1
        # taskq's own lines are JSON all the same, and the application's handlers don't get them.
        assert worker.logged("task_succeeded", task_id=talk.id)
        assert "OWN INFO taskq" not in worker.text


def test_every_line_of_a_task_in_json(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    with stage.worker() as worker:
        client = stage.client()
        sent = {}
        for through in ("logging", "structlog"):
            for number in range(3):
                text = f"{through} {number}"
                sent[text] = client.send_task("talk", [text, through])
        crashed = client.send_task("die", ["SIGKILL", 1])
        assert crashed.get(timeout=15) == 1
        for text, result in sent.items():
            result.get(timeout=15)
            (line,) = eventually(lambda text=text: worker.logged(text), text)  # type: ignore[misc]
            expected = {"task_id": result.id, "task": "talk", "attempt": 1, "logger": "shop"}
            assert expected.items() <= line.items()
        assert worker.logged("task_succeeded", task_id=crashed.id, attempt=2)
        assert worker.stop() == 0
    lines = json_lines(worker.log)
    assert [line for line in lines if "event" not in line] == []
    # A child between two tasks, the supervisor and the zygote speak for no task's logger.
    for line in worker.logged("worker_stopped") + worker.logged("child_died"):
        assert not {"task_id", "task", "attempt"} & line.keys()


def test_a_log_that_nobody_reads_holds_nothing_up(sqlite_stage: Stage) -> None:
    client = sqlite_stage.client()
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "taskq", "worker", "-A", "tests.apps.basic:app", "-Q", sqlite_stage.queue, "-c", "2"]
    worker = subprocess.Popen(command, cwd=ROOT, env=sqlite_stage.environment(), stderr=writing, start_new_session=True)
    os.close(writing)
    try:
        # Some two hundred bytes for each of them: the pipe is full after a quarter.
        results = [client.send_task("add", [number, 1]) for number in range(1200)]
        assert [result.get(timeout=60) for result in results] == [number + 1 for number in range(1200)]
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
        assert b"task_succeeded" in os.read(reading, 1 << 20)
    finally:
        os.close(reading)
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
